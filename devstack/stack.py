"""Puts the services together, and takes them down again whatever happens to us.

It must never leave a process or a temporary directory behind, unless it is told to keep them.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Self

from devstack import docker_stack, external, native, native_postgres, reaper
from devstack.errors import DevstackError
from devstack.parts import Kafka, Part, Postgres, Registry


class Kind(StrEnum):
    """Where the services run."""

    NATIVE = "native"
    DOCKER = "docker"
    EXTERNAL = "external"


def choose_kind() -> Kind:
    """DEVSTACK, if it is set; else docker where an engine answers, else native."""
    chosen = os.environ.get("DEVSTACK")
    if not chosen:
        return Kind.DOCKER if docker_stack.docker_answers() else Kind.NATIVE
    try:
        return Kind(chosen)
    except ValueError as error:
        raise DevstackError(f"DEVSTACK is {chosen!r}; it may be {', '.join(Kind)}") from error


class Stack:
    """Kafka and PostgreSQL, and a schema registry when asked for. Make one with `Stack.start`."""

    def __init__(
        self,
        kind: Kind,
        directory: Path,
        *,
        kafka_properties: Mapping[str, str],
        kafka_jvm: Sequence[str],
        postgres_parameters: Mapping[str, str],
        durable: bool,
        temporary: bool,
        keep: bool,
    ) -> None:
        self.kind = kind
        self.directory = directory
        self._registry: Registry | None = None
        self._temporary = temporary
        self._keep = keep
        # Before there is anything to leave behind.
        self._watchdog = _watchdog(directory, temporary=temporary) if kind is Kind.NATIVE else None
        try:
            directory.mkdir(mode=0o700 if temporary else 0o777, parents=not temporary, exist_ok=not temporary)
            (directory / reaper.PIDS).mkdir(exist_ok=True)
            self.kafka = _kafka(kind, directory, kafka_properties, kafka_jvm)
            self.postgres = _postgres(kind, directory, postgres_parameters, durable=durable)
        except BaseException:
            if temporary:
                reaper.remove(directory)
            self._dismiss_watchdog()
            raise

    @classmethod
    def start(
        cls,
        *,
        registry: bool = False,
        directory: Path | None = None,
        kind: Kind | str | None = None,
        keep: bool = False,
        durable: bool = True,
        kafka_properties: Mapping[str, str] | None = None,
        kafka_jvm: Sequence[str] = native.QUICK_JVM,
        postgres_parameters: Mapping[str, str] | None = None,
        timeout_s: float = 120,
    ) -> Self:
        """Start what is needed and wait until it is ready.

        Without a directory everything lives in a temporary one that is removed in the end; a directory that is given
        stays, with the logs, and another native stack can go on with its data. Durable: PostgreSQL survives kill -9
        and power loss with all that it acknowledged. Keep: the services outlive this process and the `with` block,
        until `close`. Properties and parameters are the servers' own; an external stack ignores them. kafka_jvm: Java's options for a
        native broker; none of them is how a broker runs that is there to stay.
        """
        chosen = choose_kind() if kind is None else Kind(kind)
        if chosen is Kind.NATIVE:
            # Before there is a run directory: this may take long, and be interrupted.
            native.fetch_programs(with_registry=registry)
        if chosen is Kind.DOCKER and keep:
            docker_stack.keep_after_exit()
        stack = cls(
            chosen,
            (directory or _temporary_name()).resolve(),
            kafka_properties=kafka_properties or {},
            kafka_jvm=kafka_jvm,
            postgres_parameters=postgres_parameters or {},
            durable=durable,
            temporary=directory is None,
            keep=keep,
        )
        try:
            if registry:
                stack._registry = _registry(chosen, stack.directory)
            _start(stack._parts, timeout_s)
        except BaseException:
            stack.close()
            raise
        if keep:
            stack._dismiss_watchdog()
        return stack

    def start_registry(self, *, timeout_s: float = 120) -> Registry:
        """The schema registry, started unless it runs."""
        if self._registry is None:
            self._registry = _registry(self.kind, self.directory)
        self._registry.start(timeout_s=timeout_s)
        return self._registry

    @property
    def registry(self) -> Registry:
        """The schema registry; DevstackError when the stack has none."""
        if self._registry is None:
            raise DevstackError("this stack has no schema registry: Stack.start(registry=True), or start_registry()")
        return self._registry

    def environment(self) -> dict[str, str]:
        """The settings by which a worker finds these services."""
        addresses = {
            "SYNC_WORKER_KAFKA_BOOTSTRAP_SERVERS": self.kafka.bootstrap_servers,
            "SYNC_WORKER_DATABASE_URL": self.postgres.url(),
        }
        if self._registry is not None:
            addresses["SYNC_WORKER_SCHEMA_REGISTRY_URL"] = self._registry.url
        return addresses

    def check(self) -> None:
        """DevstackError, with the end of its log, if a service has ended."""
        for part in self._parts:
            part.check()

    def close(self) -> None:
        """End every service, and remove the directory if it is a temporary one."""
        if self.kind is Kind.NATIVE:
            reaper.end_run(self.directory, gently=not self._temporary)
        for part in self._parts:
            part.discard()
        if self._temporary:
            reaper.remove(self.directory)
        # Last: should we die before, it does the rest.
        self._dismiss_watchdog()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._keep:
            self.close()

    def _dismiss_watchdog(self) -> None:
        if self._watchdog is not None:
            self._watchdog.kill()
            self._watchdog.wait()
            self._watchdog = None

    @property
    def _parts(self) -> list[Part]:
        parts: list[Part] = [self.kafka, self.postgres]
        return parts if self._registry is None else [*parts, self._registry]


def _temporary_name() -> Path:
    """A name only: the watchdog must know it before it exists, so it can't be `tempfile.mkdtemp` that makes it."""
    return native_postgres.default_parent() / f"devstack-{secrets.token_hex(6)}"


def _kafka(kind: Kind, directory: Path, properties: Mapping[str, str], jvm: Sequence[str]) -> Kafka:
    match kind:
        case Kind.NATIVE:
            return native.kafka(directory, properties, jvm)
        case Kind.DOCKER:
            return docker_stack.kafka(directory, properties)
        case Kind.EXTERNAL:
            return external.kafka()


def _postgres(kind: Kind, directory: Path, parameters: Mapping[str, str], *, durable: bool) -> Postgres:
    match kind:
        case Kind.NATIVE:
            return native_postgres.postgres(directory, parameters, durable=durable)
        case Kind.DOCKER:
            return docker_stack.postgres(directory, parameters, durable=durable)
        case Kind.EXTERNAL:
            return external.postgres()


def _registry(kind: Kind, directory: Path) -> Registry:
    match kind:
        case Kind.NATIVE:
            return native.registry(directory)
        case Kind.DOCKER:
            return docker_stack.registry(directory)
        case Kind.EXTERNAL:
            return external.registry()


def _start(parts: list[Part], timeout_s: float) -> None:
    """Side by side: each spends its start waiting. The first failure is the answer."""
    pool = ThreadPoolExecutor(len(parts))
    try:
        futures = [pool.submit(part.start, timeout_s=timeout_s) for part in parts]
        for future in wait(futures, return_when=FIRST_EXCEPTION).done:
            future.result()
    finally:
        # Without waiting: after a failure or Ctrl-C, the others fail as soon as the caller ends their processes.
        pool.shutdown(wait=False, cancel_futures=True)


def _watchdog(directory: Path, *, temporary: bool) -> subprocess.Popen[bytes]:
    """A process that ends the run when we die, even by SIGKILL.

    The kernel's own way, a signal on the parent's death, comes when the thread that started the child ends.
    """
    return subprocess.Popen(
        # Isolated and without site packages: it starts in a few milliseconds and depends on nothing of ours.
        [
            sys.executable,
            "-I",
            "-S",
            reaper.__file__,
            str(os.getpid()),
            str(directory),
            "temporary" if temporary else "given",
        ],
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # What kills our process group must not take the watchdog with it.
        start_new_session=True,
    )
