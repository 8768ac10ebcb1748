"""A change of a method beside batches and beside another change: the one advisory lock (design §3).

A method changes under the exclusive lock, so every batch either sees the new method or is seen by its backfill. Each test
forces the moment in which that would not be so, and the mutants show that the lock is what makes it so.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.facts import changed, member, method, new_id
from tests.support.sessions import WAIT_S, Writer, assert_ends_as, wait_until_blocked
from tests.support.site import Site

MakeWriter = Callable[..., Writer]


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    """Only a database: the sessions are the test's own."""
    return make_site(topics=False)


# ── a method event beside batches and another method event ──────────────────────────────────────────────────────────


def test_two_re_pointings_of_one_method_on_two_workers_end_at_the_newer_segment(site: Site, writer: MakeWriter) -> None:
    first = method(new_id(), new_id())
    to_second, to_third = changed(first, 2, segment_id=new_id()), changed(first, 3, segment_id=new_id())
    segments = (first.segment_id, to_second.segment_id, to_third.segment_id)
    present = [member(segment, new_id(), 1) for segment in segments]
    joining = [member(segment, new_id(), 1) for segment in segments]
    one, other, beside = writer(), writer(), writer()
    one.batch(first)
    one.batch(*present)
    one.begin(to_second)
    re_pointing = other.start_batch(to_third)
    wait_until_blocked(site, other)
    batch = beside.start_batch(*joining)
    wait_until_blocked(site, beside)
    one.commit()
    re_pointing.result(WAIT_S)
    batch.result(WAIT_S)
    one.finish_backfills()
    assert_ends_as(site, [first], present, [to_second], [to_third], joining)
    assert site.in_course(first.course_id).keys() == {present[2].user_id, joining[2].user_id}


def test_the_older_of_two_re_pointings_that_waited_for_the_newer_one_changes_nothing(
    site: Site, writer: MakeWriter
) -> None:
    first = method(new_id(), new_id())
    to_second, to_third = changed(first, 2, segment_id=new_id()), changed(first, 3, segment_id=new_id())
    present = [member(each.segment_id, new_id(), 1) for each in (first, to_second, to_third)]
    one, other = writer(), writer()
    one.batch(first)
    one.batch(*present)
    one.begin(to_third)
    late = other.start_batch(to_second)
    wait_until_blocked(site, other)
    one.commit()
    assert late.result(WAIT_S).results["method", "stale"] == 1
    assert_ends_as(site, [first], present, [to_third], [to_second])


def test_a_method_change_waits_for_a_batch_in_flight_and_sees_its_people(site: Site, writer: MakeWriter) -> None:
    hidden = method(new_id(), new_id(), visible=False)
    joining, opened = member(hidden.segment_id, new_id(), 1), changed(hidden, 2, visible=True)
    one, other = writer(), writer()
    one.batch(hidden)
    one.begin(joining)
    opening = other.start_batch(opened)
    wait_until_blocked(site, other)
    one.commit()
    assert opening.result(WAIT_S).changes == 1
    assert_ends_as(site, [hidden], [joining], [opened])


def test_with_the_shared_lock_a_method_change_would_miss_the_people_of_a_batch_in_flight(
    site: Site, writer: MakeWriter
) -> None:
    hidden = method(new_id(), new_id(), visible=False)
    joining, opened = member(hidden.segment_id, new_id(), 1), changed(hidden, 2, visible=True)
    one, mutant = writer(), writer(instead={"lock_exclusive": "select pg_advisory_xact_lock_shared(7001)"})
    one.batch(hidden)
    one.begin(joining)
    mutant.batch(opened)
    one.commit()
    with pytest.raises(AssertionError, match="1 rows differ"):
        assert_ends_as(site, [hidden], [joining], [opened])


def test_a_batch_that_comes_while_a_method_change_waits_sees_the_new_method(site: Site, writer: MakeWriter) -> None:
    hidden = method(new_id(), new_id(), visible=False)
    joining, later = member(hidden.segment_id, new_id(), 1), member(hidden.segment_id, new_id(), 1)
    opened = changed(hidden, 2, visible=True)
    one, other, third = writer(), writer(), writer()
    one.batch(hidden)
    one.begin(joining)
    opening = other.start_batch(opened)
    wait_until_blocked(site, other)
    batch = third.start_batch(later)
    wait_until_blocked(site, third)
    one.commit()
    opening.result(WAIT_S)
    assert batch.result(WAIT_S).changes == 1
    assert_ends_as(site, [hidden], [joining], [opened], [later])
