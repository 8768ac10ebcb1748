"""Holds of the removal breaker, for who must decide: what waits, and letting it go (semantics §5).

Releasing begins with one short transaction; what follows goes in the steps that workers take too, so it may be left at any time.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

from sync_worker.database import arrays
from sync_worker.database.revision import expect_revision
from sync_worker.database.sessions import Session, apply_session, translated
from sync_worker.enrollment import breaker, release
from sync_worker.enrollment.breaker import Hold
from sync_worker.enrollment.release import Release
from sync_worker.errors import FatalError
from sync_worker.operations.operator import operator
from sync_worker.settings import Settings

# While another worker takes the steps, how often to look.
_LOOK_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class Progress:
    """Of a release: removals looked at, of so many; another worker may have taken the steps."""

    done: int
    total: int


class Holds:
    """The holds of the settings' database."""

    def __init__(self, settings: Settings) -> None:
        url = settings.database_url.get_secret_value()
        expect_revision(url, "holds")
        self._session: Session = apply_session(url, "holds")
        arrays.register(self._session)

    def close(self) -> None:
        self._session.close()

    def list(self) -> "list[Hold]":
        """Every hold there is, the oldest first."""
        return breaker.holds(self._session)

    def end(self, segment_id: UUID) -> Release:
        """End the hold. Raises FatalError where the segment isn't held."""
        ended = release.end_hold(self._session, segment_id.bytes, operator())
        if ended is None:
            raise FatalError(f"segment {segment_id} is not held; `sync-worker holds list` shows which are")
        return ended

    def follow(self, ended: Release) -> Iterator[Progress]:
        """Take the steps of the release, or watch who takes them, until it is through."""
        yield Progress(0, ended.total)
        while (progress := self._progress(ended)) is not None:
            yield progress
            taken = release.step(self._session)
            if taken is None or (not taken.people and not taken.finished):
                time.sleep(_LOOK_EVERY_S)
        yield Progress(ended.total, ended.total)

    def _progress(self, ended: Release) -> Progress | None:
        with translated():
            row = self._session.execute(breaker.SQL["release_progress"], {"number": ended.number}).fetchone()
        return None if row is None else Progress(*row)
