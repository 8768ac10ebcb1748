"""`republish`: the present state of every row once more, for consumers that lost something (contract §5, docs/adr/0007).

Goes only as fast as the relay publishes, so that the outbox stays small. Interrupted, it may be run again: what was
written twice says the same.
"""

import time
from collections.abc import Iterator
from typing import Final
from uuid import UUID

import structlog

from sync_worker.database import arrays
from sync_worker.database.revision import expect_revision
from sync_worker.database.sessions import Contention, Session, apply_session, translated
from sync_worker.errors import RetryableError
from sync_worker.operations.operator import operator
from sync_worker.outbox import republish
from sync_worker.outbox.windows import waiting
from sync_worker.settings import Settings

# A few transactions of the relay.
MAX_WAITING_ROWS: Final = 20_000
# Workers change leaders within seconds; a relay that publishes nothing for so long isn't there.
PATIENCE_S: Final = 30.0
_LOOK_EVERY_S: Final = 0.1
_TRIES: Final = 20

log = structlog.get_logger(__name__)


class Republication:
    """One `republish`, of one course or of all."""

    def __init__(self, settings: Settings, course: UUID | None, *, max_waiting: int = MAX_WAITING_ROWS) -> None:
        url = settings.database_url.get_secret_value()
        expect_revision(url, "republish")
        self._session: Session = apply_session(url, "republish")
        arrays.register(self._session)
        self._course = course
        self._courses = republish.ALL if course is None else republish.Courses(course, course)
        self._max_waiting = max_waiting

    def close(self) -> None:
        self._session.close()

    def count(self) -> int:
        """How many rows it writes."""
        return republish.count(self._session, self._courses)

    def run(self, *, patience_s: float = PATIENCE_S) -> Iterator[int]:
        """How many rows are written so far, step by step.

        Raises RetryableError where the outbox is full and nobody publishes it.
        """
        republish.record(self._session, operator(), self._course, self.count())
        after, done = self._courses.beginning, 0
        while people := self._step(after):
            after, done = people[-1], done + len(people)
            yield done
            self._wait_for_the_relay(done, patience_s)

    def _step(self, after: republish.Key) -> list[republish.Key]:
        """Whoever holds a row goes first, a few times."""
        for attempt in range(1, _TRIES):
            try:
                return republish.step(self._session, self._courses, after)
            except Contention as error:
                log.info("lock_wait", attempt=attempt, reason=str(error))
        return republish.step(self._session, self._courses, after)

    def _wait_for_the_relay(self, done: int, patience_s: float) -> None:
        lowest, lowest_at = self._waiting(), time.monotonic()
        while lowest > self._max_waiting:
            if time.monotonic() - lowest_at > patience_s:
                raise RetryableError(
                    f"{done} rows were written, {lowest} wait in the outbox, and no worker publishes them: start one, then "
                    "run this again from the beginning (what was written twice says the same)"
                )
            time.sleep(_LOOK_EVERY_S)
            if (now := self._waiting()) < lowest:
                lowest, lowest_at = now, time.monotonic()

    def _waiting(self) -> int:
        with translated():
            return waiting(self._session)[0]
