"""The status document as the HTTP port hands it out: made at most once in a second however many ask, without secrets.

A failure is kept as long as a success, and the last success for as long as the worker lives: what was known is shown, with
its age, while it can't be read anew. Must never let more than a few threads wait for it.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import structlog

from sync_worker.errors import SyncWorkerError
from sync_worker.service.redaction import Redactor

MAX_AGE_S: Final = 1.0
_READERS: Final = 4  # so many threads may wait for a document; the others stay free for probes
_WAIT_S: Final = 5.0

log = structlog.get_logger(__name__)

Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Reading:
    """The document, or why there is none. at: by the clock of the `StatusDocument`, seconds."""

    at: float
    document: Document | None
    error: str = ""


class StatusDocument:
    """Reads by `read`, which may take long and fail; `clock` is monotonic, in seconds."""

    def __init__(
        self, read: Callable[[], Document], redactor: Redactor, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._read = read
        self._redactor = redactor
        self._clock = clock
        self._making = threading.Lock()
        self._readers = threading.BoundedSemaphore(_READERS)
        self._latest: Reading | None = None
        self._known: Reading | None = None

    @property
    def latest(self) -> Reading | None:
        """What was last found out, good or bad, without asking for anything."""
        return self._latest

    @property
    def known(self) -> Reading | None:
        """The last reading that is a document."""
        return self._known

    def get(self) -> Reading:
        """The document as it is now, within a second; waits for it a few seconds, or not at all where many do already."""
        if (fresh := self._fresh()) is not None:
            return fresh
        if not self._readers.acquire(blocking=False):
            return Reading(self._clock(), None, "too many requests wait for the status; try again")
        try:
            if not self._making.acquire(timeout=_WAIT_S):
                return Reading(self._clock(), None, "the status takes long to read; try again")
            try:
                return self._fresh() or self._make()
            finally:
                self._making.release()
        finally:
            self._readers.release()

    def _fresh(self) -> Reading | None:
        latest = self._latest
        return latest if latest and self._clock() - latest.at < MAX_AGE_S else None

    def _make(self) -> Reading:
        try:
            document = self._redactor.mapping(self._read(), self._redactor.text)
        except SyncWorkerError as error:
            made = Reading(self._clock(), None, self._redactor.line(str(error)))
        except Exception as error:  # the page must say so; the reason goes to the log, redacted
            log.warning("status_failed", exc_info=True)
            made = Reading(self._clock(), None, f"{type(error).__name__}; the worker's log says more")
        else:
            self._known = made = Reading(self._clock(), document)
        self._latest = made
        return made
