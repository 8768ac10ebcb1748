"""Does what a Deployment does: a worker that says of itself that it hangs, three looks in a row, is killed and replaced.

A worker whose clock was set back in the middle of a wait hangs for as long as that in the Kafka client, which waits by the wall
clock; its loops are silent then, and /livez says so. Workers are only looked at here, never helped.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from tests.faults.stage import probe
from tests.faults.workers import Fleet, Worker

PERIOD_S = 4.0
FAILURES = 3


class Liveness:
    """Of a fleet; `look` as often as you like."""

    def __init__(self, fleet: Fleet, lives: Callable[[Worker], bool] = lambda worker: probe(worker, "/livez")) -> None:
        self.replaced: list[str] = []
        """Names of those that were killed."""
        self._fleet = fleet
        self._lives = lives
        self._failures: Counter[str] = Counter()
        self._looked_at = 0.0

    def look(self) -> None:
        if time.monotonic() - self._looked_at < PERIOD_S:
            return
        self._looked_at = time.monotonic()
        for worker in self._fleet.running:
            # Before it listens there is nothing to ask, and a start may take long.
            if not worker.says("worker_starts") or self._lives(worker):
                self._failures.pop(worker.name, None)
                continue
            self._failures[worker.name] += 1
            if self._failures[worker.name] >= FAILURES:
                self.replaced.append(worker.name)
                worker.kill()
                self._fleet.start()
