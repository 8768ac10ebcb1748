"""Says a trouble that comes back with every attempt once, and then now and then: an outage of an hour is no thousands of lines.

It must never hide a trouble of another kind, nor how often one came.
"""

from __future__ import annotations

import time
from collections.abc import Callable

EVERY_S = 30.0


class Recurring:
    """Counts errors by their class. For one thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said_at: dict[type[Exception], float] = {}
        self._unsaid: dict[type[Exception], int] = {}

    def count(self, error: Exception) -> int:
        """How often an error of this class came since one was last said, this one too, if it is time to say it; else 0."""
        kind, now = type(error), self._clock()
        unsaid = self._unsaid.get(kind, 0) + 1
        if kind in self._said_at and now - self._said_at[kind] < EVERY_S:
            self._unsaid[kind] = unsaid
            return 0
        self._said_at[kind], self._unsaid[kind] = now, 0
        return unsaid
