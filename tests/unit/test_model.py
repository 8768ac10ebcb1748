"""Checks the reference model against the words of semantics.md: its examples, table, points and promises.

The worker is compared with this model elsewhere; a test here must never need the worker.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.model.events import (
    Event,
    HandEdit,
    MembershipChanged,
    MethodChanged,
    SourceChanged,
    SourceStatus,
    SuspensionChanged,
    key_of,
    to_record,
    topic_of,
)
from tests.model.histories import (
    COURSES,
    GROUPS,
    METHODS,
    SEGMENTS,
    USERS,
    batched_histories,
    batchings,
    histories,
    interleavings,
    settled_histories,
)
from tests.model.model import BatchResult, Change, GroupMember, Model
from tests.model.rule import ABSENT, Contribution, contribution_of_method
from tests.model.traffic import Disorder, in_batches, random_history
from tests.model.transactions import transactions

C, G, G2 = COURSES[0], GROUPS[0], GROUPS[1]
S, S2 = SEGMENTS[:2]
U, W = USERS[:2]
M1 = replace(METHODS[0], course_id=C, segment_id=S, role="student", group_id=G)
M2 = replace(METHODS[1], course_id=C, segment_id=S2, role="tutor", group_id=G, on_removal="UNENROLL")
TO_GROUP = replace(METHODS[3], course_id=C, segment_id=S, group_id=G2)
METHOD_FIELDS = (
    "method_id version course_id segment_id segment_name kind name active visible role group_id on_removal deleted"
)
Seen = tuple[str, int, str, list[str], list[str]]


class Story:
    """A model and a publisher whose every event is newer than the last, unless a version is given."""

    def __init__(self, *methods: MethodChanged) -> None:
        self.model = Model()
        self.last_version = 0
        self.method_states: dict[str, MethodChanged] = {}
        for method in methods:
            self.tell(self.method(method))

    def _stamp(self, version: int | None) -> dict[str, Any]:
        self.last_version = max(self.last_version + 1, version or 0)
        return {
            "event_id": str(UUID(int=self.last_version)),
            "occurred_at": self.last_version,
            "version": version or self.last_version,
        }

    def method(self, method: MethodChanged, version: int | None = None, **changes: Any) -> MethodChanged:
        state = self.method_states.get(method.method_id, method)
        stamped: dict[str, Any] = {**self._stamp(version), **changes}
        self.method_states[method.method_id] = replace(state, **stamped)
        return self.method_states[method.method_id]

    def joins(self, user: str = U, segment: str = S, version: int | None = None) -> MembershipChanged:
        return MembershipChanged(segment_id=segment, user_id=user, is_member=True, **self._stamp(version))

    def leaves(self, user: str = U, segment: str = S, version: int | None = None) -> MembershipChanged:
        return replace(self.joins(user, segment, version), is_member=False)

    def enrolls_by_hand(self, status: SourceStatus = "ACTIVE", role: str | None = "teacher") -> SourceChanged:
        return SourceChanged(course_id=C, user_id=U, source="manual", status=status, role=role, **self._stamp(None))

    def suspends(self, suspended: bool = True) -> SuspensionChanged:
        return SuspensionChanged(course_id=C, user_id=U, suspended=suspended, **self._stamp(None))

    def tell(self, *events: Event) -> list[Seen]:
        """One batch; what it publishes: change, version, status, roles, groups."""
        return [_seen(change) for change in self.result(*events).changes]

    def result(self, *events: Event) -> BatchResult:
        return self.model.apply_batch(events)


def _seen(change: Change) -> Seen:
    return change.change, change.version, change.after.status, list(change.after.roles), list(change.after.groups)


def _reasons(result: BatchResult) -> list[str]:
    return [letter.reason for letter in result.dead_letters]


def _end(model: Model) -> object:
    """What must not depend on the way there: everything but versions, which count the steps."""
    return {pair: replace(row, version=0) for pair, row in model.enrollments.items()}, model.group_members


# semantics §7, example by example


def test_who_joins_the_segment_of_an_enabled_method_is_enrolled() -> None:
    story = Story(M1)
    assert story.tell(story.joins()) == [("ENROLLED", 1, "ACTIVE", ["student"], [G])]


def test_who_leaves_is_unenrolled_and_who_joins_again_is_enrolled_with_the_next_version() -> None:
    story = Story(M1)
    story.tell(story.joins())
    assert story.tell(story.leaves()) == [("UNENROLLED", 2, "ABSENT", [], [])]
    assert story.model.versions == {(C, U): 2}
    assert story.tell(story.joins()) == [("ENROLLED", 3, "ACTIVE", ["student"], [G])]


def test_who_leaves_one_of_two_segments_keeps_what_the_other_gives() -> None:
    story = Story(M1, M2)
    story.tell(story.joins(), story.joins(segment=S2))
    assert story.tell(story.leaves()) == [("UPDATED", 2, "ACTIVE", ["tutor"], [G])]


def test_a_closed_eye_suspends_members_and_an_open_one_brings_everybody_in() -> None:
    story = Story(M1)
    story.tell(story.joins(U))
    assert story.tell(story.method(M1, visible=False)) == [("SUSPENDED", 2, "SUSPENDED", [], [G])]
    assert story.tell(story.joins(W)) == []
    opened = story.result(story.method(M1, visible=True)).changes
    assert {change.user_id: change.change for change in opened} == {U: "REACTIVATED", W: "ENROLLED"}


def test_a_closed_eye_does_not_suspend_who_has_another_active_source() -> None:
    story = Story(M1, M2)
    story.tell(story.joins(), story.joins(segment=S2))
    assert story.tell(story.method(M1, visible=False)) == [("UPDATED", 2, "ACTIVE", ["tutor"], [G])]


def test_leaving_a_segment_leaves_the_role_given_by_hand_and_drops_the_group() -> None:
    story = Story(M1)
    by_hand, joined = story.enrolls_by_hand(), story.joins()
    assert story.tell(by_hand, joined) == [("ENROLLED", 1, "ACTIVE", ["student", "teacher"], [G])]
    assert story.tell(story.leaves()) == [("UPDATED", 2, "ACTIVE", ["teacher"], [])]


def test_an_addition_older_than_the_removal_does_nothing_and_one_of_the_same_version_is_a_conflict() -> None:
    story = Story(M1)
    story.tell(story.leaves(version=6))
    older = story.result(story.joins(version=5))
    assert (older.changes, older.stale) == ([], 1)
    same = story.result(story.joins(version=6))
    assert (same.changes, _reasons(same)) == ([], ["version_conflict"])


def test_a_suspension_waits_for_somebody_not_enrolled_yet() -> None:
    story = Story(M1)
    assert story.tell(story.suspends()) == []
    assert story.tell(story.joins()) == [("ENROLLED", 1, "SUSPENDED", [], [G])]
    assert story.tell(story.suspends(False)) == [("REACTIVATED", 2, "ACTIVE", ["student"], [G])]


# semantics §2, row by row

ACTIVE = Contribution("SEGMENT_SYNC", "ACTIVE", "student", G, True)
PAUSED = Contribution("SEGMENT_SYNC", "SUSPENDED", "student", G, True)
KEPT = Contribution("SEGMENT_SYNC", "SUSPENDED", "guest", None, False)
HAD = Contribution("SEGMENT_SYNC", "ACTIVE", "guest", G2, True)
BARE = Contribution("SEGMENT_SYNC", "SUSPENDED", None, None, False)
IN_GROUP = Contribution("SEGMENT_GROUP", "ACTIVE", None, G2, True)


@pytest.mark.parametrize(
    ("method", "is_member", "now", "after"),
    [
        (replace(M1, deleted=True), True, HAD, None),
        (replace(M1, deleted=True, on_removal="SUSPEND"), False, HAD, None),
        (M1, True, None, ACTIVE),
        (M1, True, HAD, ACTIVE),
        (M1, True, KEPT, ACTIVE),
        (TO_GROUP, True, None, IN_GROUP),
        (replace(M1, active=False), True, None, None),
        (replace(M1, visible=False), True, None, None),
        (replace(M1, active=False), True, HAD, PAUSED),
        (replace(M1, visible=False), True, BARE, PAUSED),
        (replace(TO_GROUP, visible=False), True, IN_GROUP, replace(IN_GROUP, status="SUSPENDED")),
        (replace(M1, on_removal="SUSPEND"), False, None, None),
        (M1, False, HAD, None),
        (M1, False, KEPT, None),
        (replace(TO_GROUP, on_removal="SUSPEND"), False, IN_GROUP, None),
        (replace(M1, on_removal="SUSPEND"), False, HAD, KEPT),
        (replace(M1, on_removal="SUSPEND", active=False), False, HAD, KEPT),
        (replace(M1, on_removal="SUSPEND"), False, BARE, BARE),
        (replace(M1, on_removal="SUSPEND_WITHOUT_ROLES"), False, HAD, BARE),
        (replace(M1, on_removal="SUSPEND_WITHOUT_ROLES"), False, KEPT, BARE),
    ],
)
def test_the_rule_gives_what_its_table_says_and_the_same_again(
    method: MethodChanged, is_member: bool, now: Contribution | None, after: Contribution | None
) -> None:
    assert contribution_of_method(method, is_member, now) == after
    assert contribution_of_method(method, is_member, after) == after


def test_a_method_made_after_its_members_enrolls_them() -> None:
    story = Story()
    story.tell(story.joins(), story.joins(W))
    assert [change[0] for change in story.tell(story.method(M1))] == ["ENROLLED", "ENROLLED"]


def test_a_changed_role_or_group_reaches_every_member() -> None:
    story = Story(M1)
    story.tell(story.joins())
    assert story.tell(story.method(M1, role="tutor", group_id=G2)) == [("UPDATED", 2, "ACTIVE", ["tutor"], [G2])]
    assert story.tell(story.method(M1, name="Renamed")) == []


def test_a_re_pointed_method_lets_go_of_one_segment_and_takes_the_other() -> None:
    story = Story(M1)
    story.tell(story.joins(U, S), story.joins(W, S2))
    story.tell(story.method(M1, segment_id=S2))
    assert [pair[1] for pair in story.model.enrollments] == [W]


def test_a_removal_counts_while_the_method_is_not_enabled() -> None:
    story = Story(M1)
    story.tell(story.joins())
    story.tell(story.method(M1, active=False))
    assert story.tell(story.leaves()) == [("UNENROLLED", 3, "ABSENT", [], [])]


def test_a_changed_on_removal_applies_to_those_suspended_before() -> None:
    story = Story(replace(M1, on_removal="SUSPEND"))
    story.tell(story.joins())
    assert story.tell(story.leaves()) == [("SUSPENDED", 2, "SUSPENDED", [], [])]
    assert story.tell(story.method(M1, on_removal="UNENROLL")) == [("UNENROLLED", 3, "ABSENT", [], [])]


def test_a_deleted_method_takes_nobodys_other_source() -> None:
    story = Story(M1)
    story.tell(story.joins(), story.enrolls_by_hand())
    assert story.tell(story.method(M1, deleted=True)) == [("UPDATED", 2, "ACTIVE", ["teacher"], [])]
    assert story.tell(story.enrolls_by_hand("ABSENT")) == [("UNENROLLED", 3, "ABSENT", [], [])]


# semantics §3, point by point


def test_a_method_to_group_enrolls_nobody_and_counts_once_something_does() -> None:
    story = Story(TO_GROUP)
    assert story.tell(story.joins()) == []
    assert (story.model.enrollments, story.model.group_members) == ({}, set())
    assert story.tell(story.enrolls_by_hand()) == [("ENROLLED", 1, "ACTIVE", ["teacher"], [G2])]
    assert story.model.group_members == {GroupMember(C, G2, U, True, (TO_GROUP.method_id,))}
    assert story.tell(story.enrolls_by_hand("ABSENT")) == [("UNENROLLED", 2, "ABSENT", [], [])]


def test_a_suspended_source_enrolls_as_suspended_and_gives_no_role() -> None:
    story = Story(M1)
    assert story.tell(story.enrolls_by_hand("SUSPENDED")) == [("ENROLLED", 1, "SUSPENDED", [], [])]
    assert story.tell(story.joins()) == [("REACTIVATED", 2, "ACTIVE", ["student"], [G])]


def test_a_managed_member_stays_until_the_last_method_lets_go() -> None:
    story = Story(M1, M2)
    story.tell(story.joins(), story.joins(segment=S2), story.enrolls_by_hand())
    assert story.model.hand_delete(C, G, U) == "SW002"
    assert {member.methods for member in story.model.group_members} == {tuple(sorted((M1.method_id, M2.method_id)))}
    story.tell(story.leaves())
    assert story.model.hand_delete(C, G, U) == "SW002"
    assert story.tell(story.leaves(segment=S2)) == [("UPDATED", 3, "ACTIVE", ["teacher"], [])]


def test_inserting_a_managed_member_by_hand_is_not_remembered() -> None:
    story = Story(M1)
    story.tell(story.joins(), story.enrolls_by_hand())
    changes = len(story.model.changes)
    assert story.model.hand_insert(C, G, U) == "ok"
    assert len(story.model.changes) == changes
    assert story.tell(story.leaves()) == [("UPDATED", 2, "ACTIVE", ["teacher"], [])]


def test_who_was_in_a_group_by_hand_stays_when_the_method_goes() -> None:
    story = Story(M1)
    story.tell(story.enrolls_by_hand())
    assert story.model.hand_insert(C, G, U) == "ok"
    story.tell(story.joins())
    assert story.model.hand_delete(C, G, U) == "SW002"
    assert story.tell(story.leaves()) == [("UPDATED", 4, "ACTIVE", ["teacher"], [G])]
    assert story.model.group_members == {GroupMember(C, G, U, False, ())}


def test_hand_made_groups_need_an_enrollment_and_end_with_it() -> None:
    story = Story(M1)
    assert story.model.hand_insert(C, G2, U) == "SW001"
    assert story.model.hand_delete(C, G2, U) == "ok"
    story.tell(story.joins())
    assert story.model.hand_insert(C, G2, U) == story.model.hand_insert(C, G2, U) == "ok"
    assert _seen(story.model.changes[-1]) == ("UPDATED", 2, "ACTIVE", ["student"], sorted((G, G2)))
    assert story.model.changes[-1].causes == {("SQL", None)}
    story.tell(story.leaves())
    assert story.tell(story.joins()) == [("ENROLLED", 4, "ACTIVE", ["student"], [G])]


def test_hand_made_groups_stay_when_one_batch_leaves_one_segment_for_another() -> None:
    story = Story(M1, M2)
    story.tell(story.joins())
    story.model.hand_insert(C, G2, U)
    story.tell(story.leaves(), story.joins(segment=S2))
    assert story.model.hand_delete(C, G2, U) == "ok"
    assert _seen(story.model.changes[-1]) == ("UPDATED", 4, "ACTIVE", ["tutor"], [G])


def test_a_suspension_sticks_whatever_segments_do() -> None:
    story = Story(M1)
    story.tell(story.joins())
    assert story.tell(story.suspends()) == [("SUSPENDED", 2, "SUSPENDED", [], [G])]
    story.tell(story.leaves())
    assert story.model.changes[-1].after == ABSENT
    assert story.tell(story.joins()) == [("ENROLLED", 4, "SUSPENDED", [], [G])]


def test_a_change_of_sources_alone_is_an_update() -> None:
    story = Story(M1)
    story.tell(story.joins())
    assert story.tell(story.enrolls_by_hand(role="student")) == [("UPDATED", 2, "ACTIVE", ["student"], [G])]


# semantics §4 and contract §2


def test_who_joins_and_leaves_within_one_batch_was_never_seen() -> None:
    story = Story(M1)
    assert story.tell(story.joins(), story.leaves()) == []
    assert story.model.versions == {}


def test_the_causes_of_a_change_are_the_facts_that_touch_the_pair() -> None:
    story = Story(M1)
    events: list[Event] = [story.joins(), story.leaves(), story.joins(), story.enrolls_by_hand(), story.joins(W)]
    changes = {change.user_id: change.causes for change in story.result(*events).changes}
    assert changes[U] == {("SegmentMemberAdded", events[2].event_id), ("EnrollmentSourceChanged", events[3].event_id)}
    assert changes[W] == {("SegmentMemberAdded", events[4].event_id)}


def test_the_first_of_two_contents_of_a_version_stands_within_a_batch_too() -> None:
    story = Story(M1)
    result = story.result(story.joins(version=9), story.leaves(version=9))
    assert [_seen(change)[0] for change in result.changes] == ["ENROLLED"]
    assert (_reasons(result), result.transactions) == (["version_conflict"], 2)


def test_the_same_content_under_another_event_id_is_a_repetition() -> None:
    story = Story(M1)
    result = story.result(story.joins(version=9), story.joins(version=9))
    assert (result.applied, result.repeated, result.transactions, _reasons(result)) == (1, 1, 1, [])


def test_methods_have_transactions_of_their_own_and_one_event_of_a_method_in_each() -> None:
    story = Story()
    one, two, again, join = story.method(M1), story.method(M2), story.method(M1, name="Renamed"), story.joins()
    assert list(transactions([one, two, again, join, join, two])) == [[one, two], [again], [join, join], [two]]


def test_methods_of_one_transaction_give_one_change() -> None:
    story = Story()
    story.tell(story.joins(), story.joins(segment=S2))
    assert story.tell(story.method(M1), story.method(M2)) == [("ENROLLED", 1, "ACTIVE", ["student", "tutor"], [G])]


@pytest.mark.parametrize(
    "changes",
    [
        {"role": None},
        {"kind": "SEGMENT_GROUP", "role": None, "group_id": None},
        {"kind": "SEGMENT_GROUP", "role": "student"},
        {"course_id": COURSES[1]},
        {"kind": "SEGMENT_GROUP", "role": None},
        {"name": "n" * 256},
        {"segment_name": "a\0b"},
        {"segment_id": S.upper()},
    ],
)
def test_an_invalid_method_event_is_a_dead_letter_and_changes_nothing(changes: dict[str, Any]) -> None:
    story = Story(M1)
    story.tell(story.joins())
    result = story.result(story.method(M1, **changes))
    assert (_reasons(result), result.changes) == (["invalid_event"], [])
    assert story.model.methods[M1.method_id].version == 1


@pytest.mark.parametrize(
    "spoil",
    [
        lambda story: replace(story.joins(), version=0),
        lambda story: replace(story.joins(), user_id="somebody"),
        lambda story: replace(story.enrolls_by_hand(), source=M1.method_id),
        lambda story: replace(story.enrolls_by_hand(), role="r" * 256),
    ],
)
def test_an_invalid_event_is_a_dead_letter_and_those_around_it_are_applied(spoil: Callable[[Story], Event]) -> None:
    story = Story(M1)
    result = story.result(story.joins(U), spoil(story), story.joins(W))
    assert (_reasons(result), len(result.changes), result.transactions) == (["invalid_event"], 2, 1)


def test_deletion_is_final_but_an_older_version_is_only_stale() -> None:
    story = Story(M1)
    story.tell(story.method(M1, version=5, deleted=True))
    assert _reasons(story.result(story.method(M1, version=6, deleted=False))) == ["invalid_event"]
    assert story.result(replace(M1, event_id=str(UUID(int=99)), version=4)).stale == 1
    assert story.result(story.method(M1, version=7, deleted=True)).applied == 1


@pytest.mark.parametrize(
    ("event", "record", "fields"),
    [
        (Story().joins(), "SegmentMemberAdded", "segment_id user_id version"),
        (Story().leaves(), "SegmentMemberRemoved", "segment_id user_id version"),
        (Story().enrolls_by_hand(), "EnrollmentSourceChanged", "course_id user_id source version status role"),
        (Story().suspends(), "CourseSuspensionChanged", "course_id user_id version suspended"),
        (
            M1,
            "EnrollmentMethodChanged",
            METHOD_FIELDS,
        ),
    ],
)
def test_records_have_the_contracts_fields_in_its_order(event: Event, record: str, fields: str) -> None:
    name, content = to_record(event)
    assert (name, " ".join(content)) == (record, f"event_id occurred_at {fields}")


def test_records_go_to_the_contracts_topics_under_its_keys() -> None:
    story = Story()
    events = (story.joins(), M1, story.enrolls_by_hand(), story.suspends())
    assert [(topic_of(event), key_of(event)) for event in events] == [
        ("segments.membership", U),
        ("enrollment.methods", M1.method_id),
        ("enrollment.sources", f"{C}:{U}"),
        ("enrollment.sources", f"{C}:{U}"),
    ]


# What is promised for any history


@given(batched_histories())
def test_changes_of_a_pair_form_a_chain_without_gaps(batches: list[list[Event] | HandEdit]) -> None:
    model = Model()
    model.play(batches)
    last: dict[tuple[str, str], Change] = {}
    for change in model.changes:
        before = last.get((change.course_id, change.user_id))
        assert change.version == (before.version + 1 if before else 1)
        assert change.before == (before.after if before else ABSENT)
        assert change.before != change.after
        assert change.causes
        last[change.course_id, change.user_id] = change
    assert model.versions == {pair: change.version for pair, change in last.items()}
    shown = {pair for pair, change in last.items() if change.after != ABSENT}
    assert shown == set(model.enrollments)


@given(histories(), st.data())
def test_events_applied_twice_change_nothing(steps: list[Event | HandEdit], data: st.DataObject) -> None:
    model = Model()
    model.play(data.draw(batchings(steps)))
    before = _end(model), list(model.changes)
    again = model.apply_batch([step for step in steps if not isinstance(step, HandEdit)])
    assert (_end(model), model.changes) == before
    assert again.applied == 0


@given(histories(), st.data())
def test_who_is_active_follows_from_the_newest_facts(steps: list[Event | HandEdit], data: st.DataObject) -> None:
    model = Model()
    model.play(data.draw(batchings(steps)))
    for (_, user), enrollment in model.enrollments.items():
        for source, contribution in enrollment.sources.items():
            method = model.methods.get(source)
            if method is not None and contribution.status == "ACTIVE":
                assert method.enabled
                assert model.memberships[method.segment_id, user].is_member
    for method in model.methods.values():
        for (segment, user), membership in model.memberships.items():
            enrolls = method.kind == "SEGMENT_SYNC" and method.enabled and not method.deleted
            if enrolls and segment == method.segment_id and membership.is_member:
                assert model.enrollments[method.course_id, user].sources[method.method_id].status == "ACTIVE"


@given(settled_histories(), st.data())
def test_settled_histories_end_the_same_in_any_order_and_any_batching(events: list[Event], data: st.DataObject) -> None:
    straight, mixed = Model(), Model()
    straight.play([[event] for event in events])
    results = mixed.play(data.draw(interleavings(events)))
    assert _end(mixed) == _end(straight)
    assert not [result for result in results if isinstance(result, BatchResult) and result.dead_letters]


def test_traffic_from_one_seed_is_the_same_and_ends_the_same_shuffled_into_other_batches() -> None:
    events = random_history(7, events=4_000, segments=5, users=60, methods_per_segment=3, courses=6)
    assert events == random_history(7, events=4_000, segments=5, users=60, methods_per_segment=3, courses=6)
    straight, mixed = Model(), Model()
    results = straight.play(in_batches(events, 500))
    mixed.play(in_batches(sorted(events, key=lambda event: event.event_id), 37))
    assert len(events) == 4_000
    assert _end(mixed) == _end(straight)
    assert all(isinstance(result, BatchResult) and not result.dead_letters for result in results)


def test_disordered_traffic_has_stale_repeated_and_conflicting_events() -> None:
    disorder = Disorder(stale=0.1, repeated=0.1, conflicting=0.1)
    events = random_history(3, events=2_000, segments=3, users=30, methods_per_segment=2, courses=3, disorder=disorder)
    result = Model().apply_batch(events)
    assert min(result.stale, result.repeated, len(result.dead_letters)) > 20
