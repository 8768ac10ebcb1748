"""Where runs take place: one native stack for many of them, proxies in front of its services, and a disk that can be filled.

Each run gets a database and topics of its own, so that one that went wrong leaves nothing to the next. Nothing of an
arena may outlive it, whatever happens to this process.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psutil

from devstack import Stack, native_postgres
from devstack.ports import HOST, free_port, kept_ports
from sync_worker.database.migrate import migrate
from tests.faults.proxy import Proxies, Proxy

TEMPLATE = "faults_template"
_DISK_BYTES = 1 << 30
_PREFIX = "faults-"
_BROKER = {
    "group.min.session.timeout.ms": "1000",
    "group.consumer.min.session.timeout.ms": "1000",
    "group.consumer.session.timeout.ms": "3000",
    "group.consumer.min.heartbeat.interval.ms": "500",
    "group.consumer.heartbeat.interval.ms": "1000",
}


class Disk:
    """The file system that the database lives on: a tmpfs of its own, which only root can make."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    def fill(self) -> int:
        """Leave no room; how many bytes were taken."""
        free = shutil.disk_usage(self.folder).free
        with self._filler.open("wb") as file, contextlib.suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, max(1, free))
        with self._filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            # Somebody freed or took some meanwhile: to the last page.
            while file.write(b"\0" * 4096):
                pass
        return free

    def clear(self) -> None:
        self._filler.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Arena:
    """A running stack. The workers are given the proxies' addresses, everybody else the services' own."""

    stack: Stack
    database: Proxy
    broker: Proxy
    registry: Proxy | None
    disk: Disk | None
    directory: Path

    def through_proxy(self, url: str) -> str:
        """A database's URL as workers get it."""
        parts = urlsplit(url)
        credentials = parts.netloc.rpartition("@")[0]
        return urlunsplit(parts._replace(netloc=f"{credentials}@{HOST}:{self.database.port}"))

    @property
    def bootstrap_servers(self) -> str:
        """The broker's address as workers get it."""
        return f"{HOST}:{self.broker.port}"

    @property
    def registry_url(self) -> str | None:
        """The registry's address as workers get it."""
        if self.registry is None:
            return None
        return urlunsplit(urlsplit(self.stack.registry.url)._replace(netloc=f"{HOST}:{self.registry.port}"))


@contextmanager
def open_arena(*, registry: bool, small_disk: bool = True) -> Iterator[Arena]:
    """Start everything, and end it. small_disk: where it can be, the database gets a file system that can be filled."""
    remove_leftovers()
    # PostgreSQL's account, which isn't root, must be able to get into it.
    directory = native_postgres.default_parent() / f"{_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
    directory.mkdir(mode=0o711)
    with ExitStack() as ending:
        ending.callback(_remove, directory)
        disk = _make_disk(directory) if small_disk else None
        proxies = ending.enter_context(Proxies())
        (directory / "kafka").mkdir()
        port, controller_port = kept_ports(directory / "kafka", 2)
        broker_port, database_port = free_port(), free_port()
        # A listener for those who come through the proxy: a client connects to where the broker says it is.
        inner_port = free_port()
        stack = ending.enter_context(
            Stack.start(
                kind="native",
                directory=directory,
                durable=True,
                registry=registry,
                kafka_properties={
                    **_BROKER,
                    "listeners": f"PLAINTEXT://{HOST}:{port},PROXIED://{HOST}:{inner_port},CONTROLLER://{HOST}:{controller_port}",
                    "advertised.listeners": f"PLAINTEXT://{HOST}:{port},PROXIED://{HOST}:{broker_port}",
                    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT",
                },
                postgres_parameters={
                    # Segments of the log are not hoarded: what is full is full at once.
                    "min_wal_size": "32MB", "max_wal_size": "192MB", "shared_buffers": "128MB",
                },
            )
        )  # fmt: skip
        migrate(stack.postgres.create_database(TEMPLATE))
        postgres_port = urlsplit(stack.postgres.url()).port
        assert postgres_port is not None
        registry_proxy = None
        if registry:
            registry_port = urlsplit(stack.registry.url).port
            assert registry_port is not None
            registry_proxy = proxies.to("registry", registry_port, free_port())
        yield Arena(
            stack,
            proxies.to("database", postgres_port, database_port),
            proxies.to("broker", inner_port, broker_port),
            registry_proxy,
            disk,
            directory,
        )


def remove_leftovers() -> None:
    """What a process that was killed left behind: directories, and the file systems in them."""
    for directory in native_postgres.default_parent().glob(f"{_PREFIX}*-*"):
        pid = directory.name.split("-")[1]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            _remove(directory)


def _make_disk(directory: Path) -> Disk | None:
    """Where PostgreSQL's home will be. None where it can't be: only root mounts."""
    folder = directory / "postgres"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "tmpfs", str(folder)]
    done = subprocess.run(["mount", *options], check=False, capture_output=True) if os.geteuid() == 0 else None
    return Disk(folder) if done is not None and done.returncode == 0 else None


def _remove(directory: Path) -> None:
    if os.path.ismount(directory / "postgres"):
        # Another harness that starts just now may be faster.
        subprocess.run(["umount", "--lazy", str(directory / "postgres")], check=False, capture_output=True)
    shutil.rmtree(directory, ignore_errors=True)
