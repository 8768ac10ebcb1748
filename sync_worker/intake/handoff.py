"""The one place where the consumer's thread and the applying thread meet: batches one way, positions the other.

At most one batch waits while one is being applied: that keeps the database busy, and a longer queue would only hide an
outage. Nothing here blocks for ever.
"""

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sync_worker.events import Partition, Record


@dataclass(frozen=True, slots=True)
class Establish:
    """Partitions just assigned, whose positions are wanted. `generation` names the assignment."""

    partitions: tuple[Partition, ...]
    generation: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Records in order of arrival; where each of their partitions stands when the batches before are applied, and this one is."""

    records: Sequence[Record]
    before: Mapping[Partition, int]
    after: Mapping[Partition, int]


@dataclass(frozen=True, slots=True)
class Established:
    """Where the partitions of an `Establish` stand."""

    positions: Mapping[Partition, int]
    generation: int


@dataclass(frozen=True, slots=True)
class Committed:
    """Positions that a transaction has reached."""

    positions: Mapping[Partition, int]


@dataclass(frozen=True, slots=True)
class Rewound:
    """A position was set back while this worker read ahead: what it holds of that partition can't be used."""

    partitions: tuple[Partition, ...]


Work = Establish | Batch
Reply = Established | Committed | Rewound


class Handoff:
    """Thread-safe; one consumer, one applying thread."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._work: deque[Work] = deque()
        self._replies: deque[Reply] = deque()
        self._busy = False
        self._closed = False
        self._abandoned = False

    # the consumer's side

    def offer(self, batch: Batch) -> bool:
        """Hand over a batch, unless one is waiting already."""
        with self._condition:
            if any(isinstance(work, Batch) for work in self._work):
                return False
            self._work.append(batch)
            self._condition.notify_all()
            return True

    def ask(self, question: Establish) -> None:
        with self._condition:
            self._work.append(question)
            self._condition.notify_all()

    def has_room(self, timeout_s: float = 0.0) -> bool:
        """True as soon as a batch would be taken, or False after `timeout_s`."""
        with self._condition:
            return self._condition.wait_for(lambda: not any(isinstance(work, Batch) for work in self._work), timeout_s)

    def replies(self) -> list[Reply]:
        """What was answered since the last call."""
        if not self._replies:
            return []
        with self._condition:
            answered = list(self._replies)
            self._replies.clear()
            return answered

    def close(self) -> None:
        """No more work will come; what was handed over is still applied."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()

    def wait_until_idle(self, timeout_s: float) -> bool:
        """True once everything handed over is applied, or never will be; False after `timeout_s`."""
        with self._condition:
            return self._condition.wait_for(lambda: self._abandoned or (not self._work and not self._busy), timeout_s)

    # the applying side

    def take(self, timeout_s: float) -> Work | None:
        """The next piece of work, or None after `timeout_s`. The last one is done when the next is asked for."""
        with self._condition:
            self._busy = False
            self._condition.notify_all()
            self._condition.wait_for(lambda: bool(self._work) or self._closed, timeout_s)
            if not self._work:
                return None
            self._busy = True
            work = self._work.popleft()
            self._condition.notify_all()
            return work

    def reply(self, reply: Reply) -> None:
        with self._condition:
            self._replies.append(reply)

    def abandon(self) -> None:
        """The applying thread is gone: nothing that was handed over will be applied, so nobody needs to wait for it."""
        with self._condition:
            self._abandoned = True
            self._condition.notify_all()

    @property
    def finished(self) -> bool:
        """Closed, and everything handed over is applied."""
        with self._condition:
            return self._closed and not self._work
