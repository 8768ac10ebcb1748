"""Notices when most of a partition's records are rejected: a wrong schema rolled out, not garbage (design §6)."""

from collections import deque

from sync_worker.events import Partition, Rejection

WINDOW_S = 60.0
MIN_RECORDS = 500


class Tally:
    """Records and rejections of one partition over the last minute, in steps of a second."""

    __slots__ = ("_min_records", "_now", "_second", "_seconds", "_window_s")

    def __init__(self, window_s: float, min_records: int) -> None:
        self._window_s = window_s
        self._min_records = min_records
        self._second = -1
        self._now = [-1, 0, 0]
        self._seconds: deque[list[int]] = deque()

    def note(self, content: object, now_s: float) -> bool:
        """One more record; True where more than half of at least `min_records` within the window were rejected."""
        second = int(now_s)
        if second != self._second:
            self._second = second
            self._now = [second, 0, 0]
            self._seconds.append(self._now)
            while self._seconds[0][0] < now_s - self._window_s:
                self._seconds.popleft()
        self._now[1] += 1
        if type(content) is not Rejection:
            return False
        self._now[2] += 1
        records = sum(entry[1] for entry in self._seconds)
        return records >= self._min_records and 2 * sum(entry[2] for entry in self._seconds) > records


class RejectionGuard:
    """The tallies of a consumer's partitions; a partition that was away for a while finds its own again."""

    def __init__(self, *, window_s: float = WINDOW_S, min_records: int = MIN_RECORDS) -> None:
        self._window_s = window_s
        self._min_records = min_records
        self._tallies: dict[Partition, Tally] = {}

    def tally(self, partition: Partition) -> Tally:
        return self._tallies.setdefault(partition, Tally(self._window_s, self._min_records))
