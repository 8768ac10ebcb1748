"""Makes the root of the image's last stage: the interpreter, what it and the packages load, and nothing else.

Run in the build stage by the interpreter that will run the worker: `rootfs.py APP ROOT`. It must never copy a shell, a
compiler or pip, and what it takes from Debian's packages it names, so that scanners know what is inside.
"""

from __future__ import annotations

import compileall
import os
import py_compile
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

# Of the standard library: what a service never imports.
_LEFT_OUT = (
    "__pycache__", "config-*", "dist-packages", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "site-packages", "test",
    "tests", "tkinter", "turtledemo", "_tkinter*", "_dbm*", "_gdbm*", "_curses*", "readline*", "EXTERNALLY-MANAGED",
)  # fmt: skip
_USER = 65532
_AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"
# The loader's cache tells where libraries lie that are in none of its own folders, as those of an interpreter in /usr/local.
_DATA = (_AUTHORITIES, "/usr/share/zoneinfo", "/etc/ld.so.cache")
_TEXTS = {
    "/etc/passwd": f"root:x:0:0:root:/:/sbin/nologin\nworker:x:{_USER}:{_USER}:worker:/:/sbin/nologin\n",
    "/etc/group": f"root:x:0:\nworker:x:{_USER}:\n",
    "/etc/nsswitch.conf": "hosts: files dns\n",
}
_COMMAND = "from sync_worker.__main__ import main\n\nmain()\n"
_ALIVE = '''"""The image's HEALTHCHECK: whether /livez says that the loops make progress. Without a fixed port there is nothing to ask."""

import os
import sys
import urllib.request

port = int(os.environ.get("SYNC_WORKER_HTTP_PORT") or 8080)
if port > 0:
    host = os.environ.get("SYNC_WORKER_HTTP_HOST") or "127.0.0.1"
    try:
        urllib.request.urlopen(f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}/livez", timeout=4)
    except OSError as error:
        sys.exit(f"not alive: {error}")
'''


def main(app: Path, root: Path) -> None:
    """Fill `root`, for the packages that lie in `app`."""
    interpreter = Path(sys.executable).resolve()
    standard = Path(sysconfig.get_path("stdlib"))
    for folder in ("bin", "lib", "lib64", "sbin"):
        if (place := Path("/", folder)).is_symlink():
            root.mkdir(exist_ok=True)
            (root / folder).symlink_to(place.readlink())
            (root / folder).resolve().mkdir(parents=True, exist_ok=True)
    copied = [_copy(interpreter, root)]
    (root / interpreter.relative_to("/")).with_name("python3").symlink_to(interpreter.name)
    shutil.copytree(standard, root / standard.relative_to("/"), ignore=shutil.ignore_patterns(*_LEFT_OUT),
                    ignore_dangling_symlinks=True)  # fmt: skip
    copied += [_copy(library, root) for library in sorted(_libraries([interpreter, *_modules(root, app)], app))]
    for name in _DATA:
        source, target = Path(name), root / name[1:]
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True)
        else:
            shutil.copy2(source, target)
    default_authorities = root / "usr/lib/ssl/cert.pem"  # where Debian's OpenSSL looks
    default_authorities.parent.mkdir(parents=True, exist_ok=True)
    default_authorities.symlink_to(_AUTHORITIES)
    for name, text in _TEXTS.items():
        _write(root / name[1:], text)
    _write(root / "usr/share/sync-worker/alive.py", _ALIVE)
    command = root / "usr/local/bin/sync-worker"
    _write(command, f"#!{interpreter}\n{_COMMAND}")
    command.chmod(0o755)
    _name_packages([*copied, standard / "os.py"], root)
    # A read-only root can't keep compiled modules: they are made here, and never compared with their sources again.
    for tree in (app, root / standard.relative_to("/")):
        compileall.compile_dir(
            tree, quiet=2, workers=os.cpu_count() or 1, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
            stripdir=root if tree != app else None, prependdir="/" if tree != app else None,
        )  # fmt: skip


def _modules(root: Path, app: Path) -> Iterator[Path]:
    for folder in (root, app):
        yield from (path for path in folder.rglob("*.so*") if path.is_file())


def _libraries(loaded: list[Path], app: Path) -> set[Path]:
    """The shared libraries that these need, and the loader; those that a wheel brings along are in `app` already."""
    found: set[Path] = set()
    for path in loaded:
        said = subprocess.run(["ldd", str(path)], capture_output=True, text=True, check=False).stdout
        for line in said.splitlines():
            if "not found" in line:
                raise SystemExit(f"{path}: {line.strip()}")
            word = line.rpartition("=>")[2].split("(")[0].strip()
            if word.startswith("/") and not word.startswith(f"{app}/"):
                found.add(Path(word))
    # Loaded by glibc itself, when a thread ends.
    return found | {path.with_name("libgcc_s.so.1") for path in found if path.name == "libc.so.6"}


def _copy(source: Path, root: Path) -> Path:
    """A file under the name by which it is looked for, in the folder that this name leads to; that name."""
    place = source.parent.resolve() / source.name
    target = root / place.relative_to("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)
    return place


def _name_packages(files: list[Path], root: Path) -> None:
    """One file for each of Debian's packages that something is from, as scanners of images without dpkg expect it."""
    names = {form for path in files for form in (str(path), str(path.resolve()), str(path).removeprefix("/usr"))}
    said = subprocess.run(["dpkg-query", "-S", *sorted(names)], capture_output=True, text=True, check=False).stdout
    for package in {line.partition(": ")[0].split(",")[0] for line in said.splitlines() if not line.startswith("div")}:
        status = subprocess.run(["dpkg-query", "-s", package], capture_output=True, text=True, check=True).stdout
        _write(root / "var/lib/dpkg/status.d" / package.partition(":")[0], status)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
