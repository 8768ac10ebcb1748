"""What several workers do to the same people at the same time, forced one interleaving at a time (design §3).

Each test is a way in which rows would go wrong if a lock, or the order of the statements, were left out; where it is cheap,
the test shows that it notices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest

from sync_worker.database.arrays import bools, int8s, timestamps, uuids
from sync_worker.enrollment.apply import SQL
from sync_worker.enrollment.converge import NOTHING
from sync_worker.events import Membership
from tests.model.events import Event, MembershipChanged
from tests.support.facts import fact_of, member, method, new_id, source, suspension
from tests.support.sessions import WAIT_S, Writer, assert_ends_as, chain_in_outbox, wait_until_blocked
from tests.support.site import Site

MakeWriter = Callable[..., Writer]


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    """Only a database: the sessions are the test's own."""
    return make_site(topics=False)


# ── a batch beside a batch ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_removal_that_waits_for_an_addition_takes_back_what_it_gave(site: Site, writer: MakeWriter) -> None:
    enabled = method(segment := new_id(), new_id())
    added, removed = member(segment, user := new_id(), 1), member(segment, user, 2, is_member=False)
    one, other = writer(), writer()
    one.batch(enabled)
    one.begin(added)
    removal = other.start_batch(removed)
    wait_until_blocked(site, other)
    one.commit()
    assert removal.result(WAIT_S).changes == 1
    assert_ends_as(site, [enabled], [added], [removed])


def test_facts_and_rows_as_one_statement_would_miss_the_addition_that_a_removal_waited_for(
    site: Site, writer: MakeWriter
) -> None:
    enabled = method(segment := new_id(), new_id())
    added, removed = member(segment, user := new_id(), 1), member(segment, user, 2, is_member=False)
    one, other = writer(), writer()
    one.batch(enabled)
    one.begin(added)
    removal = other.start(lambda session: session.execute(*facts_and_rows_as_one_statement(removed)))
    wait_until_blocked(site, other)
    one.commit()
    removal.result(WAIT_S)
    with pytest.raises(AssertionError, match="1 rows differ"):
        assert_ends_as(site, [enabled], [added], [removed])


def facts_and_rows_as_one_statement(event: MembershipChanged) -> tuple[Any, dict[str, Any]]:
    """The worker's two statements made into one: the rows read the facts from the first part."""
    fact = SQL["memberships"].split("returning")[0].replace("with changed as (", "with fact as (")
    given = SQL["converge"].split("from unnest(%(m_segments)s")[1].split("join method m")[0]
    rows = SQL["converge"].replace(
        "from unnest(%(m_segments)s" + given, "from fact f(segment_id, user_id, is_member, ordinal, event_id) "
    )
    rows = rows.replace("f.traceparent\n  from fact", "null::text as traceparent\n  from fact").replace(
        "with touched as (", "), touched as (", 1
    )
    segment, user, is_member, version, event_id, occurred_at, _ = cast("Membership", fact_of(event))
    parameters = {
        "segments": uuids([segment]), "users": uuids([user]), "members": bools([is_member]), "versions": int8s([version]),
        "events": uuids([event_id]), "times": timestamps([occurred_at]),
    }  # fmt: skip
    return fact + "returning s.segment_id, s.user_id, s.is_member, 0, s.event_id" + rows, NOTHING | parameters  # type: ignore[operator]


def test_an_addition_that_waits_for_a_removal_gives_back_what_it_took(site: Site, writer: MakeWriter) -> None:
    enabled = method(segment := new_id(), new_id(), group_id=new_id())
    first, removed = member(segment, user := new_id(), 1), member(segment, user, 2, is_member=False)
    added = member(segment, user, 3)
    one, other = writer(), writer()
    one.batch(enabled)
    one.batch(first)
    one.begin(removed)
    addition = other.start_batch(added)
    wait_until_blocked(site, other)
    one.commit()
    assert addition.result(WAIT_S).changes == 1
    assert_ends_as(site, [enabled], [first], [removed], [added])


def test_two_segments_that_give_one_person_one_course_side_by_side_both_count(site: Site, writer: MakeWriter) -> None:
    student = method(new_id(), course := new_id())
    tutor = method(new_id(), course, role="tutor", group_id=new_id())
    as_student, as_tutor = member(student.segment_id, user := new_id(), 1), member(tutor.segment_id, user, 1)
    one, other = writer(), writer()
    one.batch(student, tutor)
    one.begin(as_student)
    second = other.start_batch(as_tutor)
    wait_until_blocked(site, other)
    one.commit()
    assert second.result(WAIT_S).changes == 1
    assert_ends_as(site, [student, tutor], [as_student], [as_tutor])


@pytest.mark.parametrize("suspension_first", [False, True], ids=["the enrollment first", "the suspension first"])
def test_a_suspension_beside_a_first_enrollment_does_not_slip_past_it(
    site: Site, writer: MakeWriter, suspension_first: bool
) -> None:
    enabled = method(segment := new_id(), course := new_id())
    events: list[Event] = [member(segment, user := new_id(), 1), suspension(course, user, 1)]
    if suspension_first:
        events.reverse()
    one, other = writer(), writer()
    one.batch(enabled)
    one.begin(events[0])
    second = other.start_batch(events[1])
    wait_until_blocked(site, other)
    one.commit()
    second.result(WAIT_S)
    assert_ends_as(site, [enabled], [events[0]], [events[1]])


def _contradictions() -> dict[str, tuple[Event, Event]]:
    segment, course, user = new_id(), new_id(), new_id()
    return {
        "membership": (member(segment, user, 5), member(segment, user, 5, is_member=False)),
        "source": (source(course, user, 5), source(course, user, 5, status="SUSPENDED")),
        "suspension": (suspension(course, user, 5), suspension(course, user, 5, suspended=False)),
    }


@pytest.mark.parametrize("kind", ["membership", "source", "suspension"])
def test_of_two_workers_with_one_version_and_other_content_one_wins_and_the_other_has_a_dead_letter(
    site: Site, writer: MakeWriter, kind: str
) -> None:
    first, second = _contradictions()[kind]
    one, other = writer(), writer()
    won = one.begin(first)
    race = other.start_batch(second)
    wait_until_blocked(site, other)
    one.commit()
    lost = race.result(WAIT_S)
    assert (won.rejected, lost.changes) == ([], 0)
    ((_, rejection),) = lost.rejected
    assert rejection.reason == "version_conflict"
    assert "version 5" in rejection.detail
    assert_ends_as(site, [first])


@pytest.mark.parametrize("kind", ["membership", "source", "suspension"])
def test_of_two_workers_with_the_same_event_one_applies_it_and_neither_rejects_it(
    site: Site, writer: MakeWriter, kind: str
) -> None:
    event, _ = _contradictions()[kind]
    one, other = writer(), writer()
    one.begin(event)
    race = other.start_batch(event)
    wait_until_blocked(site, other)
    one.commit()
    repeated = race.result(WAIT_S)
    assert (repeated.rejected, repeated.changes) == ([], 0)
    assert_ends_as(site, [event])


def test_of_two_workers_with_one_version_of_a_method_one_wins_and_the_other_has_a_dead_letter(
    site: Site, writer: MakeWriter
) -> None:
    first = method(new_id(), new_id())
    second = replace(first, event_id=new_id(), role="tutor")
    one, other = writer(), writer()
    one.begin(first)
    race = other.start_batch(second)
    wait_until_blocked(site, other)
    one.commit()
    ((_, rejection),) = race.result(WAIT_S).rejected
    assert rejection.reason == "version_conflict"
    assert_ends_as(site, [first])


# ── within a batch ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_duplicates_of_one_person_in_a_batch_are_folded_to_the_newest_and_make_one_change(
    site: Site, writer: MakeWriter
) -> None:
    two_ways = [
        method(segment := new_id(), course := new_id()),
        method(segment, course, role="tutor", group_id=new_id()),
    ]
    user = new_id()
    batch: list[Event] = [
        member(segment, user, 1), member(segment, user, 2, is_member=False), source(course, user, 1),
        suspension(course, user, 1), source(course, user, 2, role="assistant"), member(segment, user, 3),
        suspension(course, user, 2, suspended=False), member(segment, user, 3),
    ]  # fmt: skip
    one = writer()
    one.batch(*two_ways)
    assert one.batch(*batch).changes == 1
    assert_ends_as(site, two_ways, batch)
    ((only,),) = chain_in_outbox(site).values()
    assert (only["cause_type"], only["cause_event_id"]) == ("CourseSuspensionChanged", batch[6].event_id)


def test_workers_with_the_same_people_in_opposite_orders_wait_for_one_another_and_never_deadlock(
    site: Site, writer: MakeWriter
) -> None:
    methods = [method(segment, course) for segment in (new_id(), new_id()) for course in (new_id(), new_id())]
    segments = [methods[0].segment_id, methods[2].segment_id]
    users = [new_id() for _ in range(40)]
    one, other = writer(), writer()
    one.batch(*methods)
    history: list[list[Event]] = []
    for round_ in range(1, 16):
        batches: list[list[Event]] = [[], []]
        for late, batch in enumerate(batches):
            version = 2 * round_ + late
            batch += [member(each, user, version, is_member=version % 3 > 0) for each in segments for user in users]
            batch += [
                source(each.course_id, user, version, role=f"role {version}") for user in users for each in methods[:2]
            ]
        batches[1].reverse()
        running = one.start_batch(*batches[0]), other.start_batch(*batches[1])
        for each in running:
            each.result(WAIT_S)
        history += batches
    assert_ends_as(site, methods, *history)
