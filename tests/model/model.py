"""A sequential model of semantics §1-§4: facts, contributions, enrollments and the changes they emit.

It answers what the worker must end with and publish, for the same records in the same batches. It must never import the
worker, do I/O, or gain a short cut that its rules don't have: it is right because it is plain.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from tests.model.events import (
    Batch,
    Entity,
    Event,
    HandEdit,
    MembershipChanged,
    MethodChanged,
    SourceChanged,
    SuspensionChanged,
    entity_of,
    record_name,
    same_content,
)
from tests.model.rule import (
    ABSENT,
    ChangeKind,
    Contribution,
    EnrollmentState,
    EnrollmentStatus,
    change_kind,
    contribution_of_method,
    contribution_of_source,
    methods_wanting,
    visible_state,
)
from tests.model.transactions import transactions
from tests.model.validity import flaw, flaw_after

Pair = tuple[str, str]
Cause = tuple[str, str | None]
HandAnswer = Literal["ok", "SW001", "SW002"]
BY_HAND: Cause = ("SQL", None)


@dataclass(frozen=True, slots=True)
class Change:
    """An EnrollmentChanged. `causes` are all facts of its transaction that touch the pair; the event names one."""

    course_id: str
    user_id: str
    version: int
    change: ChangeKind
    before: EnrollmentState
    after: EnrollmentState
    causes: frozenset[Cause]


@dataclass(frozen=True, slots=True)
class Enrollment:
    """A row of the view course_enrollment."""

    status: EnrollmentStatus
    roles: tuple[str, ...]
    groups: tuple[str, ...]
    suspended_in_course: bool
    sources: dict[str, Contribution]
    version: int


@dataclass(frozen=True, slots=True)
class GroupMember:
    """A row of the view course_group_member."""

    course_id: str
    group_id: str
    user_id: str
    managed: bool
    methods: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    event: Event
    reason: Literal["invalid_event", "version_conflict"]
    detail: str


@dataclass(slots=True)
class BatchResult:
    """What became of a batch. An event is applied when newest on arrival, even if its own batch then outdid it."""

    changes: list[Change] = field(default_factory=list)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    applied: int = 0
    stale: int = 0
    repeated: int = 0
    transactions: int = 0


@dataclass(slots=True)
class _Row:
    contributions: dict[str, Contribution] = field(default_factory=dict)
    hand_made_groups: set[str] = field(default_factory=set)
    suspended_in_course: bool = False
    version: int = 0
    shown: EnrollmentState = ABSENT


class Model:
    """Facts and rows after the transactions so far; `changes` is everything emitted, in order."""

    def __init__(self) -> None:
        self.memberships: dict[tuple[str, str], MembershipChanged] = {}
        self.methods: dict[str, MethodChanged] = {}
        self.sources: dict[tuple[str, str, str], SourceChanged] = {}
        self.suspensions: dict[Pair, SuspensionChanged] = {}
        self.changes: list[Change] = []
        self._rows: defaultdict[Pair, _Row] = defaultdict(_Row)
        self._newest: dict[Entity, Event] = {}
        self._members: defaultdict[str, set[str]] = defaultdict(set)
        self._methods_of_segment: defaultdict[str, set[str]] = defaultdict(set)
        self._holders: defaultdict[str, set[str]] = defaultdict(set)
        self._states: dict[EnrollmentState, EnrollmentState] = {}

    @property
    def enrollments(self) -> dict[Pair, Enrollment]:
        """What the view course_enrollment shows: rows that aren't ABSENT."""
        return {
            pair: Enrollment(
                status=row.shown.status,
                roles=row.shown.roles,
                groups=row.shown.groups,
                suspended_in_course=row.suspended_in_course,
                sources=dict(row.contributions),
                version=row.version,
            )
            for pair, row in self._rows.items()
            if row.shown is not ABSENT
        }

    @property
    def versions(self) -> dict[Pair, int]:
        """The last version emitted for every pair that ever emitted one, ABSENT ones too."""
        return {pair: row.version for pair, row in self._rows.items() if row.version}

    @property
    def group_members(self) -> set[GroupMember]:
        """What the view course_group_member shows."""
        members = set()
        for (course_id, user_id), row in self._rows.items():
            for group_id in row.shown.groups:
                methods = methods_wanting(row.contributions, group_id)
                members.add(GroupMember(course_id, group_id, user_id, bool(methods), methods))
        return members

    def play(self, batches: Iterable[Batch]) -> list[BatchResult | HandAnswer]:
        """Apply batches and hand edits in order; what each of them came to."""
        return [self.edit(batch) if isinstance(batch, HandEdit) else self.apply_batch(batch) for batch in batches]

    def apply_batch(self, events: Iterable[Event]) -> BatchResult:
        """Apply events as one transaction, or as several where the worker would cut; invalid ones as if not there."""
        result = BatchResult()
        valid = []
        for event in events:
            detail = flaw(event)
            if detail is None:
                valid.append(event)
            else:
                result.dead_letters.append(DeadLetter(event, "invalid_event", detail))
        for transaction in transactions(valid):
            self._apply_transaction(transaction, result)
        return result

    def edit(self, edit: HandEdit) -> HandAnswer:
        act = self.hand_insert if edit.action == "insert" else self.hand_delete
        return act(edit.course_id, edit.group_id, edit.user_id)

    def hand_insert(self, course_id: str, group_id: str, user_id: str) -> HandAnswer:
        """INSERT on course_group_member: SW001 when not enrolled; nothing where the group is managed already."""
        row = self._rows.get((course_id, user_id))
        if row is None or row.shown is ABSENT:
            return "SW001"
        if not methods_wanting(row.contributions, group_id):
            row.hand_made_groups.add(group_id)
            self._settle((course_id, user_id), row, frozenset({BY_HAND}))
        return "ok"

    def hand_delete(self, course_id: str, group_id: str, user_id: str) -> HandAnswer:
        """DELETE on course_group_member: SW002 when managed, even if in by hand before; nothing where nobody is."""
        row = self._rows.get((course_id, user_id))
        if row is None or row.shown is ABSENT:
            return "ok"
        if methods_wanting(row.contributions, group_id):
            return "SW002"
        row.hand_made_groups.discard(group_id)
        self._settle((course_id, user_id), row, frozenset({BY_HAND}))
        return "ok"

    def _apply_transaction(self, events: list[Event], result: BatchResult) -> None:
        result.transactions += 1
        known = [self.methods.get(each.method_id) for each in events if isinstance(each, MethodChanged)]
        segments_before = {method.method_id: method.segment_id for method in known if method is not None}
        facts: dict[Entity, Event] = {}
        for event in events:
            if self._admit(event, result):
                facts[entity_of(event)] = event
        touched: defaultdict[Pair, set[Cause]] = defaultdict(set)
        for fact in facts.values():
            cause = (record_name(fact), fact.event_id)
            for pair in self._apply_fact(fact, segments_before):
                touched[pair].add(cause)
        first_change = len(self.changes)
        # Sorted, so that a failing example prints the same changes in the same order every time.
        for pair in sorted(touched):
            self._settle(pair, self._rows[pair], frozenset(touched[pair]))
        result.changes.extend(self.changes[first_change:])

    def _admit(self, event: Event, result: BatchResult) -> bool:
        """Make the event the newest fact of its entity, or count why it isn't (semantics §4)."""
        entity = entity_of(event)
        newest = self._newest.get(entity)
        if newest is not None and event.version < newest.version:
            result.stale += 1
            return False
        if newest is not None and event.version == newest.version:
            if same_content(newest, event):
                result.repeated += 1
            else:
                detail = f"version {event.version} was other content before"
                result.dead_letters.append(DeadLetter(event, "version_conflict", detail))
            return False
        if isinstance(newest, MethodChanged) and isinstance(event, MethodChanged):
            wrong = flaw_after(newest, event)
            if wrong is not None:
                result.dead_letters.append(DeadLetter(event, "invalid_event", wrong))
                return False
        result.applied += 1
        self._newest[entity] = event
        self._remember(event)
        return True

    def _remember(self, event: Event) -> None:
        match event:
            case MembershipChanged():
                self.memberships[event.segment_id, event.user_id] = event
                members = self._members[event.segment_id]
                (members.add if event.is_member else members.discard)(event.user_id)
            case MethodChanged():
                before = self.methods.get(event.method_id)
                if before is not None:
                    self._methods_of_segment[before.segment_id].discard(event.method_id)
                self.methods[event.method_id] = event
                self._methods_of_segment[event.segment_id].add(event.method_id)
            case SourceChanged():
                self.sources[event.course_id, event.user_id, event.source] = event
            case SuspensionChanged():
                self.suspensions[event.course_id, event.user_id] = event

    def _apply_fact(self, fact: Event, segments_before: dict[str, str]) -> Iterator[Pair]:
        """Bring the contributions a fact bears on up to date; yields every (course, user) it touches."""
        match fact:
            case MembershipChanged():
                for method_id in self._methods_of_segment[fact.segment_id]:
                    yield self._apply_rule(self.methods[method_id], fact.user_id)
            case MethodChanged():
                segment_before = segments_before.get(fact.method_id, fact.segment_id)
                people = self._members[fact.segment_id] | self._members[segment_before] | self._holders[fact.method_id]
                for user_id in people:
                    yield self._apply_rule(fact, user_id)
            case SourceChanged():
                self._contribute((fact.course_id, fact.user_id), fact.source, contribution_of_source(fact))
                yield fact.course_id, fact.user_id
            case SuspensionChanged():
                self._rows[fact.course_id, fact.user_id].suspended_in_course = fact.suspended
                yield fact.course_id, fact.user_id

    def _apply_rule(self, method: MethodChanged, user_id: str) -> Pair:
        pair = (method.course_id, user_id)
        now = self._rows[pair].contributions.get(method.method_id)
        is_member = user_id in self._members[method.segment_id]
        after = contribution_of_method(method, is_member, now)
        self._contribute(pair, method.method_id, after)
        (self._holders[method.method_id].discard if after is None else self._holders[method.method_id].add)(user_id)
        return pair

    def _contribute(self, pair: Pair, source: str, contribution: Contribution | None) -> None:
        if contribution is None:
            self._rows[pair].contributions.pop(source, None)
        else:
            self._rows[pair].contributions[source] = contribution

    def _settle(self, pair: Pair, row: _Row, causes: frozenset[Cause]) -> None:
        """End a transaction for one pair: hand-made groups end when ABSENT, and a visible difference is emitted."""
        after = visible_state(row.contributions, row.hand_made_groups, row.suspended_in_course)
        if after.status == "ABSENT":
            row.hand_made_groups.clear()
        before = row.shown
        if after == before:
            return
        # Few states differ among many people; sharing them keeps hundreds of thousands of changes small.
        row.shown = ABSENT if after == ABSENT else self._states.setdefault(after, after)
        row.version += 1
        kind = change_kind(before, row.shown)
        self.changes.append(Change(*pair, row.version, kind, before, row.shown, causes))
