"""Runs one service as processes of this machine.

Every process registers in the run directory before it becomes the service, so that the reaper finds it whatever
happens to us. A process must never outlive a stack that was not asked to be kept.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

from devstack import reaper
from devstack.errors import DevstackError
from devstack.runner import Runner

_FOREIGN = ("PG", "KAFKA_", "JAVA_", "_JAVA", "JDK_", "CLASSPATH", "LOG4J", "QUARKUS_", "APICURIO_")
"""Prefixes of variables that would change what a service does, and were set for something else."""


@dataclass(frozen=True, slots=True)
class User:
    """An account of this machine."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Command:
    """A program, who runs it and with what."""

    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    user: User | None = None
    """None: whoever we are."""

    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
        return {**kept, **self.env}


class ProcessRunner(Runner):
    """A service as a process with its descendants."""

    def __init__(
        self, name: str, directory: Path, command: Command, preparation: Callable[[], Command | None] = lambda: None
    ) -> None:
        """The preparation is asked before each start for a command that must run to its end first."""
        super().__init__(name)
        self._directory = directory
        self._command = command
        self._preparation = preparation
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._live().pid

    @property
    def log_path(self) -> Path:
        return self._directory / f"{self.name}.log"

    def start(self) -> None:
        if self.running:
            return
        preparation = self._preparation()
        if preparation is not None:
            self._run(preparation)
        self._process = self._spawn(self._command)

    def stop(self, number: signal.Signals, timeout_s: float) -> None:
        if not self.running:
            return
        process = self._live()
        pids = reaper.tree(process.pid)
        reaper.continue_tree(process.pid)
        reaper.send(process.pid, number)
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise self.failure(f"still runs {timeout_s:g} s after {number.name}") from error
        self._await_end(pids)

    def kill(self) -> None:
        process = self._live()
        pids = reaper.kill_tree(process.pid)
        process.wait()
        self._await_end(pids)

    def pause(self) -> None:
        reaper.stop_tree(self._live().pid)

    def resume(self) -> None:
        reaper.continue_tree(self._live().pid)

    def log_tail(self, lines: int = 30) -> str:
        if not self.log_path.exists():
            return ""
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])

    def discard(self) -> None:
        if self.running:
            self.kill()

    def _run(self, command: Command, timeout_s: float = 120) -> None:
        process = self._spawn(command)
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            reaper.kill_tree(process.pid)
            process.wait()
            raise self.failure(f"its data was not prepared in {timeout_s:g} s") from error
        if code != 0:
            raise self.failure(f"preparing its data failed with exit code {code}")

    def _spawn(self, command: Command) -> subprocess.Popen[bytes]:
        pid_file = self._directory / reaper.PIDS / self.name
        try:
            with pid_file.open("wb") as pid_out, self.log_path.open("ab") as log:
                # The shell writes its own pid to the file we opened (it may not be allowed to) and becomes the
                # program: no moment is left in which a process runs that no file knows of.
                return subprocess.Popen(
                    ["/bin/sh", "-c", 'echo $$ >&0; exec "$@" </dev/null', str(pid_file), *command.argv],
                    env=command.environment(),
                    cwd="/",
                    stdin=pid_out,
                    stdout=log,
                    stderr=log,
                    # Ctrl-C in a terminal is for us alone; we end the services in order.
                    start_new_session=True,
                    **_as_user(command.user),
                )
        except OSError as error:
            raise DevstackError(f"{self.name}: could not be started: {error}") from error

    def _await_end(self, pids: list[int]) -> None:
        if not reaper.wait_gone(pids, timeout_s=10):
            raise self.failure("left processes behind that do not end")
        (self._directory / reaper.PIDS / self.name).unlink(missing_ok=True)

    def _live(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            raise self.failure("does not run" if self._process is None else f"ended ({self._process.returncode})")
        return self._process


class _AsUser(TypedDict, total=False):
    user: int
    group: int
    extra_groups: list[int]


def _as_user(user: User | None) -> _AsUser:
    return {} if user is None else {"user": user.uid, "group": user.gid, "extra_groups": []}
