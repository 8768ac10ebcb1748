"""Folding and cutting of batches (design §3): what one transaction takes, and where it must end."""

from __future__ import annotations

from typing import Any

from sync_worker.enrollment.folding import MAX_METHODS, fold, memberships_of
from sync_worker.errors import RejectionReason
from sync_worker.events import (
    CourseId,
    EventId,
    Membership,
    Method,
    MethodId,
    Partition,
    Record,
    Rejection,
    SegmentId,
    Source,
    Suspension,
    UserId,
)

PARTITION = Partition("topic", 0)


def id_(number: int) -> Any:
    return number.to_bytes(16, "big")


def records(*contents: Any) -> list[Record]:
    return [Record(PARTITION, offset, content) for offset, content in enumerate(contents, start=1)]


def member(user: int, version: int, is_member: bool = True, segment: int = 1) -> Membership:
    return Membership(SegmentId(id_(segment)), UserId(id_(user)), is_member, version, EventId(id_(9)), 0, None)


def method(number: int, version: int = 1) -> Method:
    return Method(
        MethodId(id_(number)), version, CourseId(id_(1)), SegmentId(id_(1)), None, "SEGMENT_SYNC", "m", True, True, "student",
        None, "UNENROLL", False, EventId(id_(9)), 0, None,
    )  # fmt: skip


def test_the_newest_version_of_an_entity_stands_and_the_one_it_put_aside_is_remembered() -> None:
    facts = fold(records(member(1, 1), member(1, 3, False), member(1, 2)), {})
    assert list(facts.memberships.values()) == [1]
    assert facts.displaced == {"membership": [0]}
    assert facts.results["membership", "stale"] == 1
    assert facts.consumed == 3


def test_a_batch_is_cut_before_another_content_under_the_same_version() -> None:
    facts = fold(records(member(1, 1), member(2, 1), member(1, 1, False), member(3, 1)), {})
    assert facts.consumed == 2


def test_a_repetition_is_remembered_with_what_it_repeats() -> None:
    facts = fold(records(member(1, 1), member(1, 1)), {})
    assert facts.repeated == [("membership", 1, 0)]
    assert facts.consumed == 2


def test_a_batch_is_cut_where_its_pairs_are_too_many_but_never_before_the_first() -> None:
    facts = fold(records(*(member(user, 1) for user in range(10))), {id_(1): 7}, max_pairs=20)
    assert facts.consumed == 2
    facts = fold(records(member(1, 1), member(2, 1)), {id_(1): 1000}, max_pairs=20)
    assert facts.consumed == 1


def test_a_batch_is_cut_before_a_second_event_of_one_method_and_where_methods_and_people_meet() -> None:
    assert fold(records(method(1), method(2), method(1, 2)), {}).consumed == 2
    assert fold(records(method(1), member(1, 1)), {}).consumed == 1
    assert fold(records(member(1, 1), method(1)), {}).consumed == 1


def test_a_batch_takes_no_more_methods_than_the_exclusive_lock_should_be_held_for() -> None:
    assert fold(records(*(method(number) for number in range(MAX_METHODS + 10))), {}).consumed == MAX_METHODS


def test_sources_and_suspensions_fold_by_their_own_entities() -> None:
    course, user, event = CourseId(id_(1)), UserId(id_(2)), EventId(id_(9))
    facts = fold(
        records(
            Source(course, user, "manual", "ACTIVE", "student", 1, event, 0, None),
            Source(course, user, "self", "ACTIVE", "student", 1, event, 0, None),
            Source(course, user, "manual", "ABSENT", None, 2, event, 0, None),
            Suspension(course, user, True, 1, event, 0, None),
            Suspension(course, user, True, 1, event, 0, None),
            Source(course, user, "self", "ACTIVE", "tutor", 1, event, 0, None),
        ),
        {},
    )
    assert facts.sources == {(course + user, "manual"): 2, (course + user, "self"): 1}
    assert facts.suspensions == {course + user: 3}
    assert facts.displaced == {"source": [0]}
    assert facts.repeated == [("suspension", 4, 3)]
    assert facts.consumed == 5, "another content of self's version 1 is for the next transaction"


def test_rejected_records_and_those_that_only_move_the_position_are_carried_along() -> None:
    rejection = Rejection(RejectionReason.UNDECODABLE, "garbage")
    batch = records(None, rejection, member(1, 1))
    facts = fold(batch, {})
    assert facts.rejected == [(batch[1], rejection)]
    assert facts.consumed == 3
    assert memberships_of(batch) == [batch[2].content]
