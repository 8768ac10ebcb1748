"""Users of the group view beside the workers: transactions of INSERTs and DELETEs that stay open for a while.

Each says what became of it, as far as its client can know. They talk to the database directly and as its owner, so that
they can also read which versions their edits made.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import psycopg

from tests.faults.sending import HandWork
from tests.model.events import HandEdit

Outcome = Literal["committed", "failed", "unknown"]
EDITORS = 3
_STATEMENTS = {
    "insert": "insert into course_group_member (course_id, group_id, user_id) values (%s, %s, %s)",
    "delete": "delete from course_group_member where course_id = %s and group_id = %s and user_id = %s",
}
_VERSIONS = "select version from outbox where xid = pg_current_xact_id() and course_id = %s and user_id = %s order by id desc limit 1"


@dataclass(frozen=True, slots=True)
class Edited:
    """An edit and what it came to: the version of the row that it made, None where it changed nothing or was refused."""

    edit: HandEdit
    version: int | None
    outcome: Outcome
    sqlstate: str = ""


class Editing:
    """The users of a run, from `start` to `join`."""

    def __init__(self, work: Sequence[HandWork], database_url: str, began_s: float) -> None:
        self.done: list[Edited] = []
        self._url = database_url
        self._began_s = began_s
        self._lock = threading.Lock()
        self._failures: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._body, args=(work[n::EDITORS],), name="editor", daemon=True)
            for n in range(EDITORS)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self, deadline_s: float) -> None:
        """Until all edits are done. Raises what made a user fail for another reason than the database's."""
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        if self._failures:
            raise self._failures[0]
        assert not any(thread.is_alive() for thread in self._threads), "users of the group view did not end in time"

    def _body(self, work: Sequence[HandWork]) -> None:
        try:
            for each in work:
                time.sleep(max(0.0, self._began_s + each.at_s - time.monotonic()))
                done = self._transact(each)
                with self._lock:
                    self.done.extend(done)
        except BaseException as error:  # noqa: BLE001 - raised again by join
            self._failures.append(error)

    def _transact(self, work: HandWork) -> list[Edited]:
        edits: list[Edited] = []
        outcome: Outcome = "failed"
        try:
            with psycopg.connect(
                self._url, autocommit=True, options="-c search_path=sync_worker", connect_timeout=5
            ) as session:
                with session.transaction(force_rollback=work.rolled_back) as made:
                    for edit in work.edits:
                        edits.append(self._edit(session, edit))
                        time.sleep(work.pause_s)
                    outcome = "failed" if work.rolled_back else "unknown"
                # psycopg leaves the block without a word, and without a COMMIT, where the session is known to be lost by then.
                outcome = "committed" if made.status is made.Status.COMMITTED else "failed"
        except psycopg.errors.DeadlockDetected:
            outcome = "failed"
        except (psycopg.OperationalError, psycopg.errors.IdleInTransactionSessionTimeout):
            # Not even connected, or cut off, as by a process that stood still; after the COMMIT was sent nobody can tell.
            pass
        return [Edited(each.edit, each.version, outcome, each.sqlstate) for each in edits]

    @staticmethod
    def _edit(session: psycopg.Connection[Any], edit: HandEdit) -> Edited:
        """In a savepoint: a refusal ends the edit, not the user's transaction."""
        try:
            with session.transaction():
                where = (edit.course_id, edit.group_id, edit.user_id)
                before = _version(session, edit)
                session.execute(_STATEMENTS[edit.action].encode(), where)
                after = _version(session, edit)
        except psycopg.Error as error:
            if error.sqlstate in {"SW001", "SW002"}:
                return Edited(edit, None, "failed", str(error.sqlstate))
            raise
        return Edited(edit, after if after != before else None, "unknown")


def _version(session: psycopg.Connection[Any], edit: HandEdit) -> int | None:
    """The last version of the row that this transaction made."""
    row = session.execute(_VERSIONS, (edit.course_id, edit.user_id)).fetchone()
    return None if row is None else int(row[0])
