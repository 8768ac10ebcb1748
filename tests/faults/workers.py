"""The workers of a run as processes: started, tormented and stopped here, with the reason of each end on record.

How a worker is started stands here alone. FAULTS_MUTANT names a mutant to run in its place. Must never touch a process
that it did not start.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
MUTANT = "FAULTS_MUTANT"


def command() -> list[str]:
    """What starts a worker."""
    mutant = os.environ.get(MUTANT)
    module = ["tests.faults.mutants.run", mutant] if mutant else ["sync_worker"]
    return [sys.executable, "-m", *module, "run"]


@dataclass(frozen=True, slots=True)
class End:
    """How a worker ended: by whose hand, with which code, and how long after it was told, seconds."""

    worker: str
    told: str
    """killed, terminated, or empty where it ended by itself."""
    code: int | None
    seconds: float
    log: str


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process takes."""

    rss_bytes: int
    threads: int
    cpu_s: float


@dataclass(slots=True)
class Worker:
    """A worker process. `busy` is held by whoever torments it."""

    name: str
    process: subprocess.Popen[bytes]
    log_path: Path
    clock: Path | None
    busy: threading.Lock = field(default_factory=threading.Lock)
    told: str = ""
    seconds: float = 0.0

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def says(self, event: str) -> bool:
        """Whether its log has this event."""
        return bool(self.events(event))

    def events(self, event: str) -> list[dict[str, Any]]:
        """The lines of its log with this event; the last one may still be being written."""
        whole, _, _ = self.log_path.read_text("utf-8", "replace").rpartition("\n")
        return [
            json.loads(line) for line in whole.splitlines() if line.startswith("{") and f'"event": "{event}"' in line
        ]

    def kill(self) -> None:
        self.told = "killed"
        self.process.kill()
        self.process.wait(60)

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def terminate(self, timeout_s: float) -> None:
        """SIGTERM, and wait; killed where it doesn't end, which `ends` shows by its code."""
        self.told = "terminated"
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(60)
        self.seconds = time.monotonic() - began

    def usage(self) -> Usage | None:
        """None where it is gone."""
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self.process.pid)
            with process.oneshot():
                times = process.cpu_times()
                return Usage(process.memory_info().rss, process.num_threads(), times.user + times.system)
        return None

    def set_clock(self, offset: str) -> None:
        """As libfaketime reads it: "+3h". The file is replaced, never half written."""
        assert self.clock is not None, "this run's workers have no clock that could be set"
        draft = self.clock.with_suffix(".draft")
        draft.write_text(offset, "utf-8")
        draft.replace(self.clock)


class Fleet:
    """The workers of a run, those of before included."""

    def __init__(self, environment: Mapping[str, str], directory: Path, *, clocks: bool = False) -> None:
        self.workers: list[Worker] = []
        self._environment = environment
        self._directory = directory
        self._clocks = clocks
        self._lock = threading.Lock()
        self._closed = False

    def start(self) -> Worker:
        """One more worker."""
        with self._lock:
            name = f"worker-{len(self.workers)}"
            log_path, clock = self._directory / f"{name}.log", None
            environment = dict(self._environment)
            if self._clocks:
                clock = self._directory / f"{name}.clock"
                clock.write_text("+0", "utf-8")
                environment |= clock_environment(clock)
            with log_path.open("ab") as log:
                process = subprocess.Popen(command(), env=environment, cwd=ROOT, stdout=log, stderr=log)
            worker = Worker(name, process, log_path, clock)
            self.workers.append(worker)
            return worker

    @property
    def running(self) -> list[Worker]:
        return [worker for worker in list(self.workers) if worker.running]

    @contextmanager
    def victim(self, pick: int, *, pid: int | None = None) -> Iterator[Worker | None]:
        """A running worker that nobody else torments, for as long as the block lasts; None where there is none.

        pid: this one, or none.
        """
        chosen = None
        running = [worker for worker in self.running if pid is None or worker.process.pid == pid]
        for n in range(len(running)):
            worker = running[(pick + n) % len(running)]
            if worker.busy.acquire(blocking=False):
                if worker.running:
                    chosen = worker
                    break
                worker.busy.release()
        try:
            yield chosen
        finally:
            if chosen is not None:
                chosen.busy.release()

    def terminate_all(self, timeout_s: float) -> None:
        """SIGTERM to all at once, and wait for all."""
        running = self.running
        if running:
            with ThreadPoolExecutor(len(running)) as pool:
                list(pool.map(lambda worker: worker.terminate(timeout_s), running))

    def ends(self) -> list[End]:
        return [
            End(
                worker.name,
                worker.told,
                worker.process.poll(),
                worker.seconds,
                worker.log_path.read_text("utf-8", "replace"),
            )
            for worker in self.workers
        ]

    def close(self) -> None:
        """Nothing of it is left."""
        for worker in self.running:
            worker.kill()


def clock_environment(clock: Path) -> dict[str, str]:
    """Lets the file set the wall clock of a process. Its monotonic clock stays: no operator can move that one."""
    library = clock_library()
    assert library is not None, "libfaketime is not there"
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_CACHE_DURATION": "1",
        "DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_FORCE_MONOTONIC_FIX": "0",
    }


def clock_library() -> Path | None:
    """The library of the package libfaketime, where it was built for this machine."""
    spec = importlib.util.find_spec("libfaketime")
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted(Path(spec.origin).parent.rglob("libfaketime.so.1"))), None)
