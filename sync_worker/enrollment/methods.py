"""Applies method events under the exclusive lock: the method, and its effect at once where few people are touched.

A large effect becomes a `backfill` row of the same transaction and is applied in steps (backfill.py); the exclusive lock,
which stops every other batch, must never be held for a whole segment.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID

from sync_worker.database.arrays import int4s, uuids
from sync_worker.database.sessions import Session
from sync_worker.enrollment.apply import SQL, Applied
from sync_worker.enrollment.backfill import NOBODY
from sync_worker.enrollment.converge import METHOD_CHANGED, converge
from sync_worker.enrollment.folding import Facts
from sync_worker.errors import RejectionReason
from sync_worker.events import Method, Rejection, text_of

# About one backfill step: what the exclusive lock is held for at most.
MAX_PEOPLE_AT_ONCE = 1000
# Finding the holders of a contribution reads the course's rows; in a larger course the backfill does it, outside of the lock.
_MAX_COURSE_ROWS_AT_ONCE = 20_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Stored:
    """A method as the database has it."""

    method_id: bytes
    version: int
    course_id: bytes
    segment_id: bytes
    segment_name: str | None
    kind: str
    name: str
    active: bool
    visible: bool
    role: str | None
    group_id: bytes | None
    on_removal: str
    deleted: bool

    def says(self, event: Method) -> bool:
        """Is this, all fields but event_id and occurred_at, what the event says (contract §2)?"""
        return all(getattr(self, name) == getattr(event, name) for name in self.__slots__)

    def reads_alike(self, event: Method) -> bool:
        """Does the rule see no difference (semantics §2)? Names, or the eye of a method that isn't active, change nothing."""
        if self.deleted:
            return True
        return (
            self.segment_id,
            self.active and self.visible,
            self.role,
            self.group_id,
            self.on_removal,
            self.deleted,
        ) == (
            event.segment_id,
            event.active and event.visible,
            event.role,
            event.group_id,
            event.on_removal,
            event.deleted,
        )


def apply_methods(session: Session, facts: Facts, max_people: int = MAX_PEOPLE_AT_ONCE) -> Applied:
    """Method events of one batch, one per method."""
    applied = Applied(Counter())
    session.execute(SQL["lock_exclusive"], prepare=True)
    ids = sorted(facts.methods)
    stored = read_methods(session, ids)
    pairs: list[tuple[bytes, bytes, int]] = []
    for method_id in ids:
        ordinal = facts.methods[method_id]
        record = facts.records[ordinal]
        event = cast("Method", record.content)
        before = stored.get(method_id)
        verdict = judge(before, event)
        if isinstance(verdict, Rejection):
            applied.rejected.append((record, verdict))
            continue
        applied.results["method", verdict] += 1
        if verdict == "applied":
            session.execute(SQL["method_put"], _columns(event), prepare=True)
            people = _people_at_once(session, before, event, max_people - len(pairs))
            pairs.extend((method_id, user, ordinal) for user in people)
    if pairs:
        applied.changes = converge(
            session,
            {
                "p_methods": uuids([method for method, _, _ in pairs]),
                "p_users": uuids([user for _, user, _ in pairs]),
                "p_ordinals": int4s([ordinal for _, _, ordinal in pairs]),
                "p_cause": METHOD_CHANGED,
            },
        )
    return applied


def read_methods(session: Session, ids: Sequence[bytes]) -> dict[bytes, Stored]:
    """These methods as they are stored; those never heard of are left out."""
    rows = session.execute(SQL["methods_before"], {"methods": uuids(ids)}, prepare=True, binary=True).fetchall()
    return {row[0]: Stored(*row) for row in rows}


def judge(before: Stored | None, event: Method) -> str | Rejection:
    """What becomes of an event where the method is stored like this: `applied`, `stale`, `repeated`, or its rejection."""
    method = text_of(event.method_id)
    if before is None:
        return "applied"
    if before.version > event.version:
        return "stale"
    if before.version == event.version:
        if before.says(event):
            return "repeated"
        return Rejection(
            RejectionReason.VERSION_CONFLICT,
            f"version {event.version} of method {method} was applied with other content; a change needs a higher version",
        )
    never = _never_valid(before, event, method)
    return "applied" if never is None else Rejection(RejectionReason.INVALID_EVENT, never)


def _never_valid(before: Stored, event: Method, method: str) -> str | None:
    """What contract §2 rules out for any later version of a method."""
    for name, old, new in (
        ("course_id", text_of(before.course_id), text_of(event.course_id)),
        ("kind", before.kind, event.kind),
    ):
        if old != new:
            return f"{name} of method {method} never changes: it is {old}, the event says {new}; another {name} needs a new method_id"
    if before.deleted and not event.deleted:
        return f"method {method} was deleted, which is final: a new method takes a new method_id"
    return None


def _people_at_once(session: Session, before: Stored | None, event: Method, room: int) -> list[bytes]:
    """Whom to apply the event to in this transaction; nobody where nothing changes for anyone or a backfill row was made instead."""
    method = {"method": UUID(bytes=event.method_id)}
    if before is not None and before.reads_alike(event):
        # A backfill under way goes on where it is, under the new version.
        session.execute(SQL["backfill_keep"], method | {"version": event.version}, prepare=True)
        return []
    if before is None and (event.deleted or not (event.active and event.visible)):
        return []
    scope: dict[str, Any] = method | {
        "segment": UUID(bytes=event.segment_id),
        "course": UUID(bytes=event.course_id),
        "deleted": event.deleted,
        "after": UUID(bytes=NOBODY),
        "n": room + 1,
        "rows": _MAX_COURSE_ROWS_AT_ONCE + 1,
    }
    if before is not None:
        (rows,) = cast("tuple[int]", session.execute(SQL["course_rows"], scope, prepare=True).fetchone())
        if rows > _MAX_COURSE_ROWS_AT_ONCE:
            session.execute(SQL["backfill_put"], method | {"version": event.version}, prepare=True)
            return []
        people = session.execute(SQL["people"], scope, prepare=True, binary=True).fetchall()
    else:
        people = session.execute(SQL["members"], scope, prepare=True, binary=True).fetchall()
    if len(people) > room:
        session.execute(SQL["backfill_put"], method | {"version": event.version}, prepare=True)
        return []
    session.execute(SQL["backfill_done"], method, prepare=True)
    return [row[0] for row in people]


def _columns(event: Method) -> dict[str, Any]:
    return {
        "method": UUID(bytes=event.method_id),
        "version": event.version,
        "course": UUID(bytes=event.course_id),
        "segment": UUID(bytes=event.segment_id),
        "segment_name": event.segment_name,
        "kind": event.kind,
        "name": event.name,
        "active": event.active,
        "visible": event.visible,
        "role": event.role,
        "group": UUID(bytes=event.group_id) if event.group_id is not None else None,
        "on_removal": event.on_removal,
        "deleted": event.deleted,
        "event": UUID(bytes=event.event_id),
        "time": _EPOCH + timedelta(microseconds=event.occurred_at),
        "traceparent": event.traceparent,
    }
