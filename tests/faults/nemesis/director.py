"""Makes the faults of a plan happen at their times, beside one another, and writes down what really happened.

Faults of one resource wait for each other. A fault that found nothing to do, or no time, is written down as such and not
counted; one that failed in an unexpected way fails the run, since then nobody knows what was tested.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import psycopg
from confluent_kafka import KafkaException

from tests.faults.kinds import BY_NAME, Kind
from tests.faults.nemesis import broker, database, lines, registry, workers
from tests.faults.nemesis.scene import Scene
from tests.faults.plan import Fault

_AT_ONCE = 24
FAULTS: Mapping[str, Callable[[Scene, Fault], str | None]] = {
    kind.name: getattr(module, kind.name)
    for module in (workers, broker, database, lines, registry)
    for kind in BY_NAME.values()
    if hasattr(module, kind.name)
}


@dataclass(frozen=True, slots=True)
class Entry:
    """What became of a planned fault. Times are seconds since the run began; detail is None where nothing came of it."""

    kind: str
    began_s: float
    ended_s: float
    detail: str | None
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        what = self.detail if self.detail is not None else f"nothing came of it: {self.reason}"
        return f"{self.began_s:7.2f} … {self.ended_s:7.2f} s  {self.kind:22} {what}"


class Director:
    """Runs the faults of a plan, from `start` to `heal`."""

    def __init__(self, scene: Scene, faults: Sequence[Fault], began_s: float) -> None:
        self.log: list[Entry] = []
        self._scene = scene
        self._faults = faults
        self._began_s = began_s
        self._lock = threading.Lock()
        self._resources: dict[str, threading.Lock] = {kind.resource: threading.Lock() for kind in BY_NAME.values()}
        self._pool = ThreadPoolExecutor(_AT_ONCE, "nemesis")
        self._running: list[Future[None]] = []
        self._thread = threading.Thread(target=self._conduct, name="director", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def heal(self) -> None:
        """End all that lasts and wait until it is undone. Raises what went wrong in an unexpected way."""
        self._scene.over.set()
        self._thread.join()
        self._pool.shutdown(wait=True)
        for future in self._running:
            future.result()

    def taken(self) -> Counter[str]:
        """How many of each kind took effect."""
        return Counter(entry.kind for entry in self.log if entry.detail is not None)

    def _conduct(self) -> None:
        for fault in self._faults:
            if self._scene.over.wait(max(0.0, self._began_s + fault.at_s - time.monotonic())):
                return
            self._running.append(self._pool.submit(self._inject, BY_NAME[fault.kind], fault))

    def _inject(self, kind: Kind, fault: Fault) -> None:
        resource = self._resources[kind.resource] if kind.resource else threading.Lock()
        began = time.monotonic()
        while not resource.acquire(timeout=0.1):
            if self._scene.over.is_set():
                return self._write(fault, began, None, "its turn never came")
        try:
            if self._scene.over.is_set():
                return self._write(fault, began, None, "the run was over")
            began, reason = time.monotonic(), "there was nothing to do it to"
            try:
                detail = FAULTS[fault.kind](self._scene, fault)
            except (psycopg.OperationalError, KafkaException) as error:
                # Two faults at once: what this one needed is down just now.
                detail, reason = None, f"{type(error).__name__}: {str(error).strip()[:100]}"
            return self._write(fault, began, detail, reason)
        finally:
            resource.release()

    def _write(self, fault: Fault, began: float, detail: str | None, reason: str) -> None:
        entry = Entry(
            fault.kind,
            round(began - self._began_s, 2),
            round(time.monotonic() - self._began_s, 2),
            detail,
            "" if detail is not None else reason,
        )
        with self._lock:
            self.log.append(entry)
