"""What the story is played on: the stack, the commands of the worker, the worker itself, and two `tail`s on its output.

All of them are processes of the stack's run directory, so that its reaper ends them whatever happens to the demo. Must
never touch services that others run.
"""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from demo.errors import DemoError
from devstack import Stack
from devstack.process import Command, ProcessRunner
from sync_worker.kafka.broker import Broker
from sync_worker.operations.status import read_status
from sync_worker.service.logging import kafka_logger
from sync_worker.settings import Settings

_DEADLINE_S: Final = 60.0
_POLL_S: Final = 0.02
_STOP_S: Final = 30.0
_WORKER_LOG_LINES: Final = 15

Answer = TypeVar("Answer")


def await_that(what: str, ask: Callable[[], Answer | None], timeout_s: float = _DEADLINE_S) -> Answer:
    """The first answer that is not None; DemoError after the deadline."""
    deadline = time.monotonic() + timeout_s
    while (answer := ask()) is None:
        if time.monotonic() > deadline:
            raise DemoError(f"{what}: not within {timeout_s:g} s")
        time.sleep(_POLL_S)
    return answer


def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Whether it came true before the deadline."""
    deadline = time.monotonic() + timeout_s
    while not (true := condition()) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return true


class Services:
    """The worker on a stack. `directory` holds every log."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.directory = stack.directory
        self._worker = self._process("worker", "run")
        self._changes = self._process("changes", "tail", "--from-beginning")
        self._dead_letters = self._process("dead-letters", "tail", "--dead-letters", "--from-beginning")
        self._url = ""
        _use_only(stack.environment())
        self.settings = Settings.load(env_file=None)
        self._broker = Broker(self.settings, logger=kafka_logger())

    def command(self, *arguments: str) -> str:
        """Run `sync-worker …` to its end; what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "sync_worker", *arguments],
            cwd=self.directory,  # no .env file of somebody else's
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_DEADLINE_S,
            check=False,
        )
        if done.returncode != 0:
            raise DemoError(f"`sync-worker {' '.join(arguments)}` failed ({done.returncode}):\n{done.stderr}")
        return done.stdout

    # the worker

    def start_worker(self) -> None:
        """Start the worker and the tails, and wait until the worker is ready."""
        for process in (self._worker, self._changes, self._dead_letters):
            process.start()
        port = await_that("the worker tells its HTTP port", self._port)
        self._url = f"http://127.0.0.1:{port}"
        await_that("the worker is ready", lambda: self._get("/readyz"))

    @property
    def url(self) -> str:
        """Where the worker answers over HTTP."""
        return self._url

    @property
    def worker_pid(self) -> int:
        """The worker's process id."""
        return self._worker.pid

    @property
    def worker_log(self) -> Path:
        """The file with the worker's log."""
        return self._worker.log_path

    def wait_settled(self) -> dict[str, Any]:
        """Until all that was put in is applied and published; the document of `sync-worker status --json`.

        Not the worker's /status.json, which may be a second old and so from before the last record.
        """

        def settled() -> dict[str, Any] | None:
            self._see_worker()
            document = read_status(self.settings, self._broker)
            return document if document["settled"] is True else None

        return await_that("everything is applied and published", settled)

    def stop_worker(self) -> None:
        """SIGTERM; DemoError unless it ends in order."""
        if not self._worker.running:
            raise DemoError(f"the worker ended by itself:\n{self.worker_words()}")
        self._worker.stop(signal.SIGTERM, _STOP_S)
        if not any(line.get("event") == "worker_stopped" for line in _json_lines(self._worker.log_path)):
            raise DemoError(f"the worker did not end in order:\n{self.worker_words()}")

    def stop_tails(self) -> None:
        """End the two readers."""
        for process in (self._changes, self._dead_letters):
            process.stop(signal.SIGINT, _STOP_S)

    def discard(self) -> None:
        """End all of them at once."""
        for process in (self._worker, self._changes, self._dead_letters):
            process.discard()

    def worker_words(self) -> str:
        """The end of the worker's log; empty when it was not started."""
        return self._worker.log_tail(_WORKER_LOG_LINES)

    # what came out

    def changes(self) -> list[dict[str, Any]]:
        """Every EnrollmentChanged that `tail` has shown so far."""
        return self._shown(self._changes, "version")

    def dead_letters(self) -> list[dict[str, Any]]:
        """Every dead letter that `tail` has shown so far."""
        return self._shown(self._dead_letters, "dlq_reason")

    def _shown(self, process: ProcessRunner, marking_field: str) -> list[dict[str, Any]]:
        if not process.running:
            raise DemoError(f"`tail` ended by itself:\n{process.log_tail()}")
        return [line for line in _json_lines(process.log_path) if marking_field in line]

    def _port(self) -> int | None:
        self._see_worker()
        starts = [line for line in _json_lines(self._worker.log_path) if line.get("event") == "worker_starts"]
        return int(starts[-1]["http_port"]) if starts else None

    def _get(self, path: str) -> bytes | None:
        """The body of a good answer; None for any other, as nothing needs to be ready yet."""
        self._see_worker()
        try:
            with urllib.request.urlopen(self._url + path, timeout=10) as answer:  # noqa: S310 - our own address
                body: bytes = answer.read()
                return body
        except (urllib.error.URLError, TimeoutError):
            return None

    def _see_worker(self) -> None:
        if not self._worker.running:
            raise DemoError(f"the worker ended by itself:\n{self.worker_words()}")

    def _process(self, name: str, *arguments: str) -> ProcessRunner:
        # Python lets anything stand behind -X; the reaper knows its own by the run directory in their command line.
        argv = [sys.executable, "-X", f"run_directory={self.directory}", "-m", "sync_worker", *arguments]
        return ProcessRunner(name, self.directory, Command(argv), lambda: None)


def _use_only(addresses: dict[str, str]) -> None:
    """Make these the settings of this process and its children: what is set for another installation must not reach ours."""
    for name in [name for name in os.environ if name.startswith("SYNC_WORKER_")]:
        del os.environ[name]
    os.environ.update(
        addresses,
        SYNC_WORKER_HTTP_HOST="127.0.0.1",
        SYNC_WORKER_HTTP_PORT="0",
        SYNC_WORKER_LOG_FORMAT="json",
    )


def _json_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON lines of a file that others still write to: what has no line end yet is left for the next time."""
    if not path.exists():
        return []
    whole, _, _ = path.read_text(encoding="utf-8", errors="replace").rpartition("\n")
    return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]
