"""Why a person is, or is not, in a course: the row as it is, every fact behind it, and what the rule says of them now.

What the facts come to is asked of the rule in SQL, never worked out here. Must never write; in words: reasons.py.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sync_worker.database.sessions import Session
from sync_worker.database.statements import load

SQL = load("sync_worker.enrollment", "explain.sql")

Contribution = Mapping[str, Any]
"""What a source gives, as it is stored: kind, status, member, and role and group_id where there are any."""


@dataclass(frozen=True, slots=True)
class Fact:
    """Where something is known from: the event that said it last. No version: nothing was ever said."""

    version: int | None
    occurred_at: datetime | None
    event_id: str | None


@dataclass(frozen=True, slots=True)
class Step:
    """How far work in steps has come; total None where it wasn't counted."""

    done: int
    total: int | None


@dataclass(frozen=True, slots=True)
class Row:
    """The enrollment row. Its status is ABSENT where nothing enrolls the person any more."""

    status: str
    roles: Sequence[str]
    groups: Sequence[str]
    suspended: bool
    suspension_version: int
    sources: Mapping[str, Contribution]
    hand: Sequence[str]
    version: int
    updated_at: datetime
    cause_type: str
    cause_event_id: str | None
    cause_method_id: str | None


@dataclass(frozen=True, slots=True)
class MethodFacts:
    """A method."""

    method_id: str
    version: int
    kind: str
    name: str
    active: bool
    visible: bool
    deleted: bool
    role: str | None
    group_id: str | None
    on_removal: str
    occurred_at: datetime
    event_id: str
    segment_id: str
    segment_name: str | None

    @property
    def enabled(self) -> bool:
        return self.active and self.visible


@dataclass(frozen=True, slots=True)
class MembershipFacts:
    """A person in a segment. held: by the number of the hold under which the removal was marked; held_since: when that hold
    began, None where it was released, and then `release` says how far its removals are applied."""

    is_member: bool
    fact: Fact
    held: int | None
    held_since: datetime | None
    release: Step | None


@dataclass(frozen=True, slots=True)
class ByMethod:
    """What a method gives the person (`now`), and what the rule would have it give (`due`).

    stands: counts as a member for the rule, a removal that is held included. backfill: of the method, where it has not come to this
    person yet; backfill_version: the method's version that it applies.
    """

    method: MethodFacts
    membership: MembershipFacts
    stands: bool
    now: Contribution | None
    due: Contribution | None
    backfill_version: int | None
    backfill: Step | None


@dataclass(frozen=True, slots=True)
class BySource:
    """The same for another way in. status: what its last event said, None where there was none."""

    source: str
    status: str | None
    role: str | None
    fact: Fact
    now: Contribution | None
    due: Contribution | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """All of it. orphans: contributions that no method of the course and no other source stands behind, which only damage leaves;
    elsewhere: those of them that are methods of other courses."""

    course_known: bool
    user_known: bool
    row: Row | None
    methods: Sequence[ByMethod]
    sources: Sequence[BySource]
    orphans: Mapping[str, Contribution]
    elsewhere: Collection[str]


def explain(session: Session, course: UUID, user: UUID) -> Explanation:
    """In a transaction of the caller's, REPEATABLE READ, so that everything is of one moment."""
    who = {"course": course, "user": user}
    found = session.execute(SQL["enrollment"], who).fetchone()
    row = None if found is None else Row(*found)
    methods = [_by_method(columns) for columns in session.execute(SQL["methods"], who)]
    sources = [_by_source(columns) for columns in session.execute(SQL["sources"], who)]
    known = session.execute(SQL["heard_of"], who).fetchone()
    course_known, user_known = known or (False, False)
    behind = {each.method.method_id for each in methods} | {each.source for each in sources}
    orphans = {} if row is None else {source: each for source, each in row.sources.items() if source not in behind}
    elsewhere = session.execute(SQL["methods_elsewhere"], {"sources": list(orphans)}).fetchall() if orphans else ()
    return Explanation(
        course_known, user_known, row, methods, sources, orphans, {method_id for (method_id,) in elsewhere}
    )


def _by_method(columns: Sequence[Any]) -> ByMethod:
    method = MethodFacts(*columns[:14])
    is_member, version, occurred_at, event_id, held, held_since, released, to_release = columns[14:22]
    backfill_version, done, total, now, stands, delta = columns[22:]
    # Version 0 is a place to lock: nothing was ever said.
    fact = Fact(version, occurred_at, event_id) if version else Fact(None, None, None)
    release = None if released is None else Step(released, to_release)
    membership = MembershipFacts(bool(is_member), fact, held, held_since, release)
    backfill = None if backfill_version is None else Step(done, total)
    return ByMethod(method, membership, stands, now, _due(method.method_id, now, delta), backfill_version, backfill)


def _by_source(columns: Sequence[Any]) -> BySource:
    source, status, role, version, occurred_at, event_id, now, delta = columns
    return BySource(source, status, role, Fact(version, occurred_at, event_id), now, _due(source, now, delta))


def _due(source: str, now: Contribution | None, delta: Mapping[str, Any] | None) -> Contribution | None:
    """What the rule's answer comes to: no delta is no change, a null in it takes away."""
    due: Contribution | None = now if delta is None else delta[source]
    return due
