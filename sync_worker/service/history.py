"""The last minutes of the status document's numbers, in memory: what trends are drawn from, and how old a backlog is.

Bounded in time and in number, whoever looks. Must never ask anybody anything: it is fed.
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

KEEP_S: Final = 600.0
EVERY_S: Final = 5.0

Place = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Sample:
    """Some numbers of a status document. at: seconds of a monotonic clock; ends and positions by topic and partition."""

    at: float
    lag: Mapping[Place, int]
    ends: Mapping[Place, int]
    unpublished: int
    oldest_age_s: float
    records_per_s: float
    published_per_s: float

    @classmethod
    def of(cls, at: float, document: Mapping[str, Any]) -> "Sample":
        places = [((entry["topic"], entry["partition"]), entry) for entry in document["lag"]]
        present = [worker for worker in document["workers"] if worker["present"]]
        return cls(
            at,
            {place: entry["lag"] for place, entry in places},
            {place: entry["end"] for place, entry in places},
            document["outbox"]["unpublished"],
            document["outbox"]["oldest_age_s"] or 0.0,
            sum(worker["records_per_s"] for worker in present),
            sum(worker["published_per_s"] for worker in present),
        )

    @property
    def total_lag(self) -> int:
        """Records not applied yet, over all partitions."""
        return sum(self.lag.values())

    def topic_lag(self, topic: str) -> int:
        """Records of one topic that are not applied yet."""
        return sum(lag for place, lag in self.lag.items() if place[0] == topic)


@dataclass(frozen=True, slots=True)
class Age:
    """Seconds; `at_least` where what it was reckoned from has left the memory."""

    seconds: float
    at_least: bool


class History:
    """Samples of the last ten minutes, oldest first. Fed by one thread, read by any."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque(maxlen=int(KEEP_S / EVERY_S) + 1)
        self._newest: Sample | None = None

    def add(self, sample: Sample) -> None:
        """Between two samples that are kept lie at least five seconds; the newest one always counts."""
        self._newest = sample
        if not self._samples or sample.at - self._samples[-1].at >= EVERY_S:
            self._samples.append(sample)

    @property
    def samples(self) -> tuple[Sample, ...]:
        """What is kept of the last ten minutes, and the newest."""
        newest = self._newest
        if newest is None:
            return ()
        kept = [sample for sample in self._samples.copy() if newest.at - sample.at <= KEEP_S]
        return (*kept, newest) if kept[-1] is not newest else tuple(kept)

    def series(self, value: Callable[[Sample], float]) -> tuple[tuple[float, float], ...]:
        """One number over time."""
        return tuple((sample.at, value(sample)) for sample in self.samples)

    def backlog_age(self) -> Age:
        """How long the oldest record that isn't applied yet has been waiting, by when the ends passed the positions."""
        samples = self.samples
        if not samples:
            return Age(0.0, at_least=False)
        waiting = [(place, samples[-1].ends[place] - lag) for place, lag in samples[-1].lag.items() if lag > 0]
        ages = [_waiting_for(samples, place, position) for place, position in waiting]
        return max(ages, key=lambda age: (age.seconds, age.at_least), default=Age(0.0, at_least=False))


def _waiting_for(samples: tuple[Sample, ...], place: Place, position: int) -> Age:
    """The record at this position was written between the last sample that ends at or before it, and the next one."""
    now = samples[-1].at
    after = now
    for sample in reversed(samples):
        end = sample.ends.get(place)
        if end is None or end <= position:
            # Half way between the two is wrong by half an interval at most.
            return Age(now - (sample.at + after) / 2, at_least=False)
        after = sample.at
    return Age(now - after, at_least=True)
