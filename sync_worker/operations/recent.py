"""The newest EnrollmentChanged of the topic, whichever worker published them: what the page shows as recent changes.

Read from the end of each partition, committed records only; belongs to no group and commits nothing. Ids alone, never a name.
"""

from typing import Any, Final

from sync_worker.operations.changes import ChangeDecoder
from sync_worker.operations.tailing import Fault, tail
from sync_worker.settings import Settings

COUNT: Final = 20
# A transaction of one record takes two offsets: so many hold the newest twenty, if they are all of one partition.
_OFFSETS: Final = 2 * COUNT + 10


class RecentChanges:
    """Reads the end of the changes' topic. One thread at a time."""

    def __init__(self, settings: Settings, decoder: ChangeDecoder) -> None:
        self._settings = settings
        self._decoder = decoder

    def read(self) -> list[dict[str, Any]]:
        """The newest first, at most twenty. Raises RetryableError while the broker is away; what can't be read is left out."""
        found = [
            change
            for change in tail(self._settings, until_end=True, last=_OFFSETS, decoder=self._decoder)
            if not isinstance(change, Fault) and "occurred_at" in change
        ]
        return sorted(found, key=lambda change: str(change["occurred_at"]), reverse=True)[:COUNT]
