"""What a worker says of itself in the database now and then: that it is there, which partitions it has, how fast it is.

For people who ask (`status`, the page). Nothing may be decided by it: who applies what is decided by positions, who
publishes by Kafka's fencing.
"""

import json
import time
from collections.abc import Callable, Iterable

from prometheus_client import Counter

from sync_worker import __version__
from sync_worker.database.sessions import Session
from sync_worker.database.statements import load
from sync_worker.events import Partition
from sync_worker.service.metrics import Metrics

SQL = load("sync_worker.loops", "statements.sql")
# Whoever said nothing for so long is gone without a word: killed, or cut off.
FORGOTTEN_AFTER_S = 600


class Presence:
    """The row of one worker. `holder` is the name under which it also holds the relay's lease."""

    def __init__(self, holder: str, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._holder = holder
        self._metrics = metrics
        self._clock = clock
        self._at, self._records, self._published = clock(), 0.0, 0.0

    def say(self, session: Session, assigned: Iterable[Partition]) -> None:
        """Write the row, with the rates since the last time, and take away the rows of workers long gone."""
        now, records, published = self._clock(), _total(self._metrics.records), _total(self._metrics.published)
        seconds = max(now - self._at, 0.001)
        partitions: dict[str, list[int]] = {}
        for partition in sorted(assigned):
            partitions.setdefault(partition.topic, []).append(partition.number)
        session.execute(
            SQL["worker_say"],
            {
                "holder": self._holder,
                "version": __version__,
                "partitions": json.dumps(partitions),
                "records_per_s": (records - self._records) / seconds,
                "published_per_s": (published - self._published) / seconds,
            },
            prepare=True,
        )
        session.execute(SQL["worker_forget"], {"seconds": FORGOTTEN_AFTER_S}, prepare=True)
        self._at, self._records, self._published = now, records, published

    def leave(self, session: Session) -> None:
        """Take the row away: this worker stops."""
        session.execute(SQL["worker_leave"], {"holder": self._holder})


def _total(counter: Counter) -> float:
    """A counter's sum over its labels."""
    return sum(
        sample.value for family in counter.collect() for sample in family.samples if sample.name.endswith("_total")
    )
