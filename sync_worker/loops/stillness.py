"""Notices partitions that stand still although records wait in them and both Kafka and PostgreSQL answer.

librdkafka sometimes never fetches, or never joins its group, again after a broker froze for about as long as the session
timeout. Nothing says so: heartbeats go on, no error comes. This must never ask for more than a new consumer: whether the
standstill has another reason (a lock, a schema that is unknown) is for intake to judge.
"""

from collections.abc import Callable, Mapping

from sync_worker.events import Partition

STILL_FOR_S = 30.0


class Stillness:
    """Where partitions stood when they were last seen to move. Used by the watch alone."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """clock: in seconds, monotonic."""
        self._clock = clock
        self._since: dict[Partition, tuple[int, float]] = {}

    def observe(
        self, assigned: frozenset[Partition], standing: Mapping[Partition, int], ends: Mapping[Partition, int]
    ) -> frozenset[Partition]:
        """The partitions that have stood still for STILL_FOR_S with records waiting; they are not named again before as long.

        assigned: this worker's. With none it looks at all of them: it may be shut out of its group. Positions and ends are
        offsets; a partition without a position stands at its beginning.
        """
        now = self._clock()
        before, self._since = self._since, {}
        for partition in assigned or ends:
            position = standing.get(partition, 0)
            if position < ends.get(partition, 0):
                known = before.get(partition)
                self._since[partition] = known if known is not None and known[0] == position else (position, now)
        still = frozenset(partition for partition, (_, since) in self._since.items() if now - since >= STILL_FOR_S)
        for partition in still:
            self._since[partition] = (self._since[partition][0], now)
        return still

    def forget(self) -> None:
        """An outage explains a standstill: begin anew after it."""
        self._since.clear()
