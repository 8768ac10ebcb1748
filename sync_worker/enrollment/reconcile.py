"""Compares what is with what the facts say, a piece at a time and without a lock; repair.py mends what it finds.

What should be is asked of the rule that every path uses (semantics §2), never worked out here. Must never find anything on a
healthy database, whatever goes on beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, NamedTuple
from uuid import UUID

from sync_worker.database.arrays import texts, uuids
from sync_worker.database.sessions import Session
from sync_worker.database.statements import load
from sync_worker.errors import SettingsError

SQL = load("sync_worker.enrollment", "reconcile.sql")

STEP = 1000
_NIL, _END = bytes(16), b"\xff" * 16


class Kind(StrEnum):
    """What is wrong with a contribution, or with a row."""

    MISSING = "missing"
    UNWANTED = "unwanted"
    DIFFERENT = "different"
    ROW_GONE = "row_gone"
    HAND_MADE_LEFT = "hand_made_left"
    UNKNOWN_METHOD = "unknown_method"
    VERSION_WENT_BACK = "version_went_back"
    UNREADABLE = "unreadable"
    PENDING = "pending"


REPAIRABLE: Final = frozenset({Kind.MISSING, Kind.UNWANTED, Kind.DIFFERENT, Kind.ROW_GONE, Kind.HAND_MADE_LEFT})
"""What the facts settle. Of a pending one nothing is wrong, its backfill is on the way; the others need somebody who knows more."""


class Part(StrEnum):
    """Which table is read: what should be there first, then what is there, so that a row is whole before it is judged."""

    MEMBERS = "members"
    SOURCES = "sources"
    ROWS = "rows"


class Key(NamedTuple):
    """A contribution's place: what a source gives a user in a course."""

    course: bytes
    user: bytes
    source: str

    @property
    def person(self) -> bytes:
        return self.course + self.user


@dataclass(frozen=True, slots=True)
class Difference:
    """A contribution that is not what the facts say; `key.source` is empty for what is wrong with the row itself.

    by_rule: it is a method's of this course, so its membership decides; else a source fact does, or that there is none.
    """

    kind: Kind
    key: Key
    now: Any = None
    should_be: Any = None
    by_rule: bool = False


@dataclass(frozen=True, slots=True)
class Scope:
    """What to compare: everything, or what belongs to a course, a segment's methods, a method, and all of these at once."""

    course: UUID | None = None
    segment: UUID | None = None
    method: UUID | None = None

    def __str__(self) -> str:
        named = {"course": self.course, "segment": self.segment, "method": self.method}
        return " ".join(f"{name} {id_}" for name, id_ in named.items() if id_ is not None) or "everything"


@dataclass(frozen=True, slots=True)
class Lane:
    """A range of one table's keys, both ends included, each of two ids. methods: only these; None: whatever is there."""

    part: Part
    first: bytes
    last: bytes
    methods: tuple[str, ...] | None = None


@dataclass(slots=True)
class Look:
    """What a step saw. next: where the next one begins, None at the lane's end. looked_at: keys of the table.

    suspended, hand_made: what depends on the past, and no fact can vouch for.
    """

    differences: list[Difference] = field(default_factory=list)
    next: bytes | None = None
    looked_at: int = 0
    pending: int = 0
    suspended: int = 0
    hand_made: int = 0


def lanes(session: Session, scope: Scope) -> list[Lane]:
    """What to read for a scope, in order. Raises SettingsError for a method that nothing is known of, or is elsewhere."""
    if scope == Scope():
        return [Lane(part, _NIL * 2, _END * 2) for part in Part]
    ids = {"course": scope.course, "segment": scope.segment, "method": scope.method}
    found = session.execute(SQL["methods_in_scope"], ids, binary=True).fetchall()
    if scope.method is not None and not found:
        raise SettingsError(f"there is no such method: {scope}")
    methods = tuple(str(UUID(bytes=method)) for method, _, _ in found)
    segments = sorted({segment for _, _, segment in found})
    members = [Lane(Part.MEMBERS, segment + _NIL, segment + _END, methods) for segment in segments]
    if scope == Scope(course=scope.course) and scope.course is not None:
        whole = scope.course.bytes
        return members + [Lane(part, whole + _NIL, whole + _END) for part in (Part.SOURCES, Part.ROWS)]
    courses = sorted({course for _, course, _ in found})
    return members + [Lane(Part.ROWS, course + _NIL, course + _END, methods) for course in courses]


def look(session: Session, lane: Lane, start: bytes, n: int = STEP) -> Look:
    """Compare the next n keys of a lane from `start` on, without a lock (why that is right: reconcile.sql)."""
    rows = session.execute(
        SQL[lane.part.value],
        {
            "from_first": UUID(bytes=start[:16]),
            "from_second": UUID(bytes=start[16:]),
            "to_first": UUID(bytes=lane.last[:16]),
            "to_second": UUID(bytes=lane.last[16:]),
            "methods": None if lane.methods is None else list(lane.methods),
            "n": n,
        },
        prepare=True,
        binary=True,
    ).fetchall()
    seen = Look()
    keys: list[Key] = []
    last = b""
    for first, second, course, source, fault, suspended, hand_made in rows:
        if source is not None:
            keys.append(Key(course, second, source))
        seen.suspended += suspended
        if first + second != last:
            last = first + second
            seen.looked_at += 1
            seen.hand_made += hand_made
            if fault is not None:
                seen.differences.append(Difference(Kind(fault), Key(first, second, "")))
    for difference in compare(session, keys):
        if difference.kind is Kind.PENDING:
            seen.pending += 1
        # What is there, but wrong, is met again among the rows: told once.
        elif lane.part is Part.ROWS or difference.kind in {Kind.MISSING, Kind.ROW_GONE}:
            seen.differences.append(difference)
    if len(rows) >= n and last < lane.last:
        seen.next = (int.from_bytes(last) + 1).to_bytes(32)
    return seen


def compare(session: Session, keys: Sequence[Key]) -> list[Difference]:
    """Which of these contributions are not what the facts say, in one snapshot."""
    if not keys:
        return []
    rows = session.execute(SQL["differences"], columns(keys), prepare=True, binary=True).fetchall()
    return [Difference(Kind(kind), keys[n - 1], now, should_be, by_rule) for n, by_rule, now, should_be, kind in rows]


def columns(keys: Sequence[Key]) -> dict[str, Any]:
    """As the statements take them."""
    return {
        "courses": uuids([key.course for key in keys]),
        "users": uuids([key.user for key in keys]),
        "sources": texts([key.source for key in keys]),
    }
