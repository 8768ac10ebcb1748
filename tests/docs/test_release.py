"""What `make dist` makes: the same bytes each time, from a checkout as from its own sdist, and all that a worker needs inside.

That a wheel installs and runs in an empty environment is test_pages.py's: its reader has nothing else.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from sync_worker import __version__

ROOT = Path(__file__).parents[2]


def built(source: Path, target: Path, *, epoch: int = 1_750_000_000) -> dict[str, bytes]:
    """The files that a build leaves in `target`."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--directory", target],
        cwd=source,
        env={**os.environ, "SOURCE_DATE_EPOCH": str(epoch)},
        check=True,
        capture_output=True,
    )
    return {path.name: path.read_bytes() for path in target.iterdir()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with wheel and sdist."""
    folder = tmp_path_factory.mktemp("dist")
    built(ROOT, folder)
    return folder


def test_the_same_sources_give_the_same_bytes(made: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere" / "checkout"
    for name in ("sync_worker", "schemas"):
        shutil.copytree(
            ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"), copy_function=shutil.copyfile
        )
    for name in ("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", ".gitignore"):
        shutil.copyfile(ROOT / name, copy / name)
    again = built(copy, tmp_path / "again")
    assert sorted(again) == [
        f"user_segment_sync_worker-{__version__}-py3-none-any.whl",
        f"user_segment_sync_worker-{__version__}.tar.gz",
    ]
    assert {path.name: path.read_bytes() for path in made.iterdir()} == again


def test_the_sdist_gives_the_same_wheel(made: Path, tmp_path: Path) -> None:
    with tarfile.open(next(made.glob("*.tar.gz"))) as sdist:
        sdist.extractall(tmp_path, filter="data")
    again = built(tmp_path / f"user_segment_sync_worker-{__version__}", tmp_path / "again")
    wheel = next(made.glob("*.whl"))
    assert again[wheel.name] == wheel.read_bytes()


def test_the_wheel_holds_schemas_migrations_statements_and_the_page(made: Path) -> None:
    with zipfile.ZipFile(next(made.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "sync_worker").rglob("*") if path.is_file()}
    schemas = {
        f"sync_worker/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "schemas").rglob("*") if path.is_file()
    }
    assert {name for name in sources if "__pycache__" not in name} | schemas == {
        name for name in names if ".dist-info/" not in name
    }
    assert any(name.startswith("sync_worker/database/migrations/versions/") for name in names)


def test_the_changelog_tells_of_this_version() -> None:
    assert re.search(rf"^## {re.escape(__version__)}\b", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert "version" in tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dynamic"]


def test_the_workflow_s_check_is_what_ci_runs() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8"))
    assert [step["run"] for step in workflow["jobs"]["check"]["steps"] if "run" in step] == ["bash .ci/run"]


def test_hooks_are_the_project_s_own_and_fetch_nothing() -> None:
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"]
    hooks = [hook for repository in repositories for hook in repository["hooks"]]
    assert {repository["repo"] for repository in repositories} == {"local"}
    assert {hook["language"] for hook in hooks} == {"system"}
    programs = {hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in hooks}
    assert [name for name in programs if not (Path(sys.executable).parent / name).exists()] == []


def test_what_runs_is_pinned_as_it_is_tested() -> None:
    tested, run = (pins(ROOT / "requirements" / name) for name in ("dev.txt", "run.txt"))
    assert {name: version for name, version in run.items() if tested.get(name) != version} == {}


def pins(file: Path) -> dict[str, str]:
    """Versions by name; each with a hash."""
    text = file.read_text("utf-8")
    found = re.findall(r"^([a-z0-9.-]+)==([^ ;\\]+)[^\n]*\\\n    --hash=sha256:", text, re.MULTILINE)
    assert len(found) == len(re.findall(r"^[a-z0-9.-]+==", text, re.MULTILINE)), f"{file.name}: a pin without a hash"
    return dict(found)
