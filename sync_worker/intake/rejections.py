"""Notices when most of a partition's records are rejected: a wrong schema rolled out, not garbage (design §6)."""

from collections import deque
from collections.abc import Hashable

from sync_worker.events import Rejection

WINDOW_S = 60.0
MIN_RECORDS = 500


class RejectionGuard:
    """Counts records and rejections per partition over the last minute, in steps of a second."""

    def __init__(self, *, window_s: float = WINDOW_S, min_records: int = MIN_RECORDS) -> None:
        self._window_s = window_s
        self._min_records = min_records
        self._seconds: dict[Hashable, deque[list[int]]] = {}

    def note(self, partition: Hashable, content: object, now_s: float) -> bool:
        """One more record; True where more than half of at least `min_records` within the window were rejected."""
        rejected = isinstance(content, Rejection)
        seconds = self._seconds.setdefault(partition, deque())
        second = int(now_s)
        if not seconds or seconds[-1][0] != second:
            seconds.append([second, 0, 0])
            while seconds[0][0] < now_s - self._window_s:
                seconds.popleft()
        seconds[-1][1] += 1
        if not rejected:
            return False
        seconds[-1][2] += 1
        records = sum(entry[1] for entry in seconds)
        return records >= self._min_records and 2 * sum(entry[2] for entry in seconds) > records
