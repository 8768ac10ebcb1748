"""What a method's event would do to whom, if it were applied now: the answer of `preview` (contract §5).

Through the worker's own verdict and the one rule in SQL, so it can't disagree with what then happens. It must never write,
nor take a lock that a batch or a backfill step would wait for.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, LiteralString, cast
from uuid import UUID

from psycopg import sql

from sync_worker.database.sessions import Session
from sync_worker.database.statements import load
from sync_worker.enrollment.backfill import NOBODY
from sync_worker.enrollment.methods import Stored, judge, read_methods
from sync_worker.events import Method, Rejection, text_of

SQL = load("sync_worker.enrollment", "preview.sql")

CHANGES: Final = ("ENROLLED", "UNENROLLED", "SUSPENDED", "REACTIVATED", "UPDATED")
"""What is published, one EnrollmentChanged for each person (semantics §3)."""
UNTOUCHED: Final = ("as_they_are", "nothing_given", "not_seen", "others")
"""Of whom nothing is published: what they have stays; they have nothing of the method and get nothing; their contribution
changes but, as it only gives a group, nobody sees it; enrolled by others, neither members nor holders."""

_EVERYBODY = UUID(bytes=NOBODY)
_LAST = UUID(int=2**128 - 1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class State:
    """A visible state, as EnrollmentState of contract §2."""

    status: str
    roles: Sequence[str]
    groups: Sequence[str]
    suspended_in_course: bool
    sources: Sequence[dict[str, Any]]


_ABSENT = State("ABSENT", [], [], False, [])


@dataclass(frozen=True, slots=True)
class Case:
    """People to whom the same happens. effect: one of CHANGES or UNTOUCHED; examples: a few of them, ids as text."""

    effect: str
    people: int
    examples: Sequence[str]
    before: State
    after: State


@dataclass(frozen=True, slots=True)
class Pending:
    """A backfill of this method that is under way, of an earlier version; `continues` where the event leaves it alone."""

    version: int
    done: int
    total: int | None
    continues: bool


@dataclass(frozen=True, slots=True)
class Preview:
    """The verdict on the event, `applied`, `stale`, `repeated` or its rejection, and where it is applied whom it reaches."""

    verdict: str | Rejection
    stored: Stored | None
    pending: Pending | None
    cases: Sequence[Case]


def preview(session: Session, event: Method, sample: int = 5) -> Preview:
    """What the event would do, all of its backfill included. sample: of how many people of a case the ids are given.

    In a transaction of the caller's, REPEATABLE READ and READ ONLY, with arrays registered.
    """
    stored = read_methods(session, [event.method_id]).get(event.method_id)
    verdict = judge(stored, event)
    if verdict != "applied":
        return Preview(verdict, stored, None, ())
    session.execute(SQL["gently"])
    after, pending = _reach(session, stored, event)
    scope = {
        "method": UUID(bytes=event.method_id),
        "segment": UUID(bytes=event.segment_id),
        "course": UUID(bytes=event.course_id),
        "deleted": event.deleted,
        "event": _row_of(session, event),
        "after": after,
        "sample": sample,
    }
    rows = session.execute(SQL["effect"], scope).fetchall()
    return Preview(verdict, stored, pending, [_case(*row) for row in rows])


def _reach(session: Session, stored: Stored | None, event: Method) -> tuple[UUID, Pending | None]:
    """Whom the event reaches: those behind this user id. An event that the rule reads alike reaches nobody, or goes on
    with the backfill that is under way."""
    alike = stored is not None and stored.reads_alike(event)
    row = session.execute(SQL["backfill"], {"method": UUID(bytes=event.method_id)}).fetchone()
    if row is None:
        return _LAST if alike else _EVERYBODY, None
    after, version, done, total = row
    return UUID(after) if alike else _EVERYBODY, Pending(version, done, total, continues=alike)


def _row_of(session: Session, event: Method) -> str:
    """The row that the table would hold, as PostgreSQL writes it, its generated columns made by the table's definition."""
    fields = {
        name: text_of(value) if isinstance(value, bytes) else value for name, value in event._asdict().items()
    } | {"occurred_at": (_EPOCH + timedelta(microseconds=event.occurred_at)).isoformat()}
    columns = session.execute(SQL["method_columns"]).fetchall()
    values = sql.SQL(", ").join(
        # An expression of our own migration, as PostgreSQL prints it.
        sql.Identifier(name) if expression is None else sql.SQL(cast("LiteralString", expression))
        for name, expression in columns
    )
    query = sql.SQL("select row({})::method::text from jsonb_populate_record(null::method, %s::jsonb)").format(values)
    (row,) = cast("tuple[str]", session.execute(query, (json.dumps(fields),)).fetchone())
    return row


def _case(
    effect: str, people: int, examples: list[str], suspended: bool,
    status: str, roles: list[str], groups: list[str], sources: dict[str, Any],
    after_status: str, after_roles: list[str], after_groups: list[str], after_sources: dict[str, Any],
) -> Case:  # fmt: skip
    before = _state(status, roles, groups, suspended, sources)
    after = _state(after_status, after_roles, after_groups, suspended, after_sources)
    return Case(effect, people, sorted(examples), before, after)


def _state(status: str, roles: list[str], groups: list[str], suspended: bool, sources: dict[str, Any]) -> State:
    if status == "ABSENT":
        return _ABSENT
    return State(
        status, roles, groups, suspended, [{"source": source, **sources[source]} for source in sorted(sources)]
    )
