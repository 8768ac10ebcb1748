"""The reference pages say what the code says."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs.generate import pages
from docs.generate.__main__ import main


def test_no_page_is_stale() -> None:
    assert sorted(pages.stale()) == [], "run `make reference` and look at what changed"


def test_a_stale_page_is_named_and_can_be_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in pages.PAGES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((pages.FOLDER / name).read_bytes())
    (tmp_path / "reference/metrics.md").write_text("old", "utf-8")
    (tmp_path / "reference/cli.md").unlink()
    monkeypatch.setattr(pages, "FOLDER", tmp_path)
    monkeypatch.setattr("docs.generate.__main__.FOLDER", tmp_path)
    monkeypatch.setattr("sys.argv", ["docs.generate", "--check"])
    assert main() == 3
    assert capsys.readouterr().out.splitlines() == [
        "docs/reference/metrics.md: stale, run `make reference`",
        "docs/reference/cli.md: stale, run `make reference`",
    ]
    monkeypatch.setattr("sys.argv", ["docs.generate"])
    assert main() == 0
    assert pages.stale() == {}
