"""Looks at the status document every few seconds and remembers, so that a request for the page asks nobody anything.

A page that waited for a database would be gone exactly when it is needed. Must never fail: what can't be read is a fact
to be shown.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import structlog

from sync_worker.errors import SyncWorkerError
from sync_worker.service.document import Reading, StatusDocument
from sync_worker.service.history import History, Sample
from sync_worker.service.redaction import Redactor

EVERY_S: Final = 5.0
# While somebody has the page open.
WATCHED_EVERY_S: Final = 2.0
WATCHED_FOR_S: Final = 15.0
# A document that is slow to read is read less often: at most a tenth of the time goes into it.
_REST: Final = 9.0
_CLOSE_S: Final = 0.5

log = structlog.get_logger(__name__)

Change = Mapping[str, Any]


class Recent(NamedTuple):
    """The newest changes, or why there are none; changes None where nobody has looked yet."""

    changes: Sequence[Change] | None = None
    error: str = ""


class Observed(NamedTuple):
    """What is known at a moment: the last reading, the last that is a document, and what was seen before."""

    now: float
    latest: Reading | None
    known: Reading | None
    history: History
    recent: Recent


class Observer:
    """Observes from `start` to `close`. `recent` reads the newest changes, for as long as somebody looks at the page."""

    def __init__(
        self,
        document: StatusDocument,
        recent: Callable[[], Sequence[Change]],
        redactor: Redactor,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._document = document
        self._read_recent = recent
        self._redactor = redactor
        self._clock = clock
        self._history = History()
        self._recent = Recent()
        self._looked_at = float("-inf")
        self._closing = threading.Event()
        self._wanted = threading.Event()
        self._thread = threading.Thread(target=self._run, name="observer", daemon=True)

    def start(self) -> None:
        """Begin, in a thread of its own."""
        self._thread.start()

    def close(self) -> None:
        """End soon; what is being read is not waited for long."""
        self._closing.set()
        self._wanted.set()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_S)

    def look(self) -> Observed:
        """What is known. For some seconds from now on somebody watches."""
        now = self._clock()
        if not self._watched(now):
            self._wanted.set()
        self._looked_at = now
        return Observed(now, self._document.latest, self._document.known, self._history, self._recent)

    def observe(self) -> None:
        """Look once."""
        reading = self._document.get()
        if reading.document is None:
            return
        self._history.add(Sample.of(reading.at, reading.document))
        if self._watched(self._clock()):
            self._recent = self._recent_changes()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wanted.clear()
            started = self._clock()
            try:
                self.observe()
            except Exception:
                # A defect, and none of the worker's business: the page says how old its numbers are.
                log.error("observer_failed", exc_info=True)
            now = self._clock()
            every_s = WATCHED_EVERY_S if self._watched(now) else EVERY_S
            # Somebody who begins to watch wakes us up, or would look at what is five seconds old.
            self._wanted.wait(max(every_s - (now - started), _REST * (now - started)))

    def _watched(self, now: float) -> bool:
        return now - self._looked_at < WATCHED_FOR_S

    def _recent_changes(self) -> Recent:
        try:
            return Recent(self._read_recent())
        except SyncWorkerError as error:
            return Recent(self._recent.changes, self._redactor.line(str(error)))
        except Exception as error:  # a part of the page, said there; the reason goes to the log
            log.warning("recent_changes_failed", exc_info=True)
            return Recent(self._recent.changes, f"{type(error).__name__}; the worker's log says more")
