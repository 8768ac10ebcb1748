"""The part of the worker between Kafka and Kafka, driven in the test's own process: batches in, rows and encoded changes out.

For properties over many small histories, where a worker process per history would take hours. It calls what the worker's
loops call (checkpoint, backfill step, encoder) on a real PostgreSQL, and decides nothing itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import psycopg

from sync_worker.database import arrays
from sync_worker.database.sessions import apply_session
from sync_worker.enrollment import backfill
from sync_worker.errors import InvalidRecord
from sync_worker.events import Partition, Record, RecordName, Rejection
from sync_worker.intake.decoding import Decoder
from sync_worker.loops import checkpoint
from sync_worker.outbox.encoding import ChangeEncoder, OutboxRow
from sync_worker.outbox.windows import NOTHING_SEEN, Window, Windows
from sync_worker.schema.store import load_schemas
from tests.model.events import Event, HandEdit, to_record
from tests.model.model import HandAnswer
from tests.support.wire import decode_change, encode

PARTITION = Partition("input", 0)
_TABLES = (
    "membership, method, source, enrollment, outbox, dead_letter, dead_letter_count, backfill, position, relay_window"
)


class _Message:
    """What a dead letter asks of a Kafka message."""

    def __init__(self, offset: int, value: bytes) -> None:
        self._offset = offset
        self._value = value

    def offset(self) -> int:
        return self._offset

    def key(self) -> bytes | None:
        return b"key"

    def value(self) -> bytes:
        return self._value

    def headers(self) -> list[tuple[str, bytes]] | None:
        return None

    def timestamp(self) -> tuple[int, int]:
        return 1, 1_700_000_000_000


class Engine:
    """One database, one session that applies, one that is the LMS. `reset` empties it for the next history."""

    def __init__(self, database_url: str) -> None:
        self.session = apply_session(database_url, "test")
        arrays.register(self.session)
        # A worker takes a transaction again that came to an end because it stood still for two seconds; here nobody does.
        self.session.execute("set lock_timeout = '60s'; set idle_in_transaction_session_timeout = '120s'")
        self.lms = psycopg.connect(database_url, autocommit=True, options="-c search_path=sync_worker")
        self.windows = Windows(database_url)
        schemas = load_schemas()
        self._decoder = Decoder(
            schemas, None, {PARTITION.topic: frozenset(RecordName) - {RecordName.ENROLLMENT_CHANGED}}
        )
        changed = schemas.current[RecordName.ENROLLMENT_CHANGED]
        self._encoder = ChangeEncoder(changed.parsed, prefix=changed.single_object_prefix, source="/test")
        self._offset = 0
        self.reset()

    def reset(self) -> None:
        self.lms.execute(f"truncate {_TABLES}")
        self.lms.execute("insert into position (topic, partition, next_offset) values (%s, %s, 0)", PARTITION)
        self._offset = 0

    def close(self) -> None:
        self.session.close()
        self.lms.close()
        self.windows.close()

    def apply(self, events: Iterable[Event], *, steps: int = 1000) -> checkpoint.Outcome:
        """Apply a batch as the worker does, and every backfill that it makes."""
        outcome = checkpoint.Outcome()
        records = [self._record(event) for event in events]
        if records:
            checkpoint.commit(self.session, records, {PARTITION: records[0].next_offset - 1}, outcome)
        self.backfill(steps)
        return outcome

    def backfill(self, people_per_step: int = 1000) -> None:
        while backfill.step(self.session, people_per_step) is not None:
            pass

    def _record(self, event: Event) -> Record:
        name, fields = to_record(event)
        value = encode(name, fields)
        self._offset += 1
        content: Any
        try:
            content = self._decoder.decode(PARTITION.topic, value, None)
        except InvalidRecord as verdict:
            content = Rejection(verdict.reason, verdict.detail)
        return Record(PARTITION, self._offset, content, _Message(self._offset - 1, value))

    def edit(self, edit: HandEdit) -> HandAnswer:
        """Change a hand-made group membership as the LMS does."""
        statement = (
            "insert into course_group_member (course_id, group_id, user_id) values (%s, %s, %s)"
            if edit.action == "insert"
            else "delete from course_group_member where course_id = %s and group_id = %s and user_id = %s"
        )
        try:
            self.lms.execute(statement, (edit.course_id, edit.group_id, edit.user_id))
        except psycopg.Error as error:
            assert error.sqlstate in {"SW001", "SW002"}, error
            return error.sqlstate  # type: ignore[return-value]  # one of them
        return "ok"

    def enrollments(self) -> dict[tuple[str, str], dict[str, Any]]:
        rows = self.lms.execute(
            "select course_id::text, user_id::text, status, roles, groups::text[], suspended_in_course, sources, version "
            "from course_enrollment"
        ).fetchall()
        names = ("status", "roles", "groups", "suspended_in_course", "sources", "version")
        return {(row[0], row[1]): dict(zip(names, row[2:], strict=True)) for row in rows}

    def group_members(self) -> set[tuple[str, str, str, bool, tuple[str, ...]]]:
        rows = self.lms.execute(
            "select course_id::text, group_id::text, user_id::text, managed, methods::text[] from course_group_member"
        ).fetchall()
        return {(course, group, user, managed, tuple(methods)) for course, group, user, managed, methods in rows}

    def changes(self) -> list[dict[str, Any]]:
        """Every EnrollmentChanged so far, in the order of the outbox, through the relay's reading and encoding."""
        snapshot = self.lms.execute("select pg_current_snapshot()::text").fetchone()
        assert snapshot is not None
        window = Window(1, NOTHING_SEEN, snapshot[0], "0", published=False)
        rows = [row for chunk in self.windows.chunks(window, 0, 5000) for row in chunk]
        return [decode_change(self._encoder.encode(row).value) for row in rows if isinstance(row, OutboxRow)]

    def dead_letters(self) -> list[tuple[str, int]]:
        """(reason, offset) of each, in order."""
        return self.lms.execute("select reason, record_offset from dead_letter order by id").fetchall()


def reasons(outcomes: Sequence[checkpoint.Outcome]) -> list[str]:
    return [str(rejection.reason) for outcome in outcomes for _, rejection in outcome.rejected]
