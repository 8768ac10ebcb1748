"""Backfill steps beside batches, beside one another, and beside a second change of their method (design §3, semantics §4).

Each test forces the moment in which a step would overlook somebody; the mutants show that the membership locks are what
makes it wait.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from sync_worker.database.sessions import DataRejected
from tests.model.events import Event
from tests.support.check import assert_rows_equal_model
from tests.support.facts import changed, member, method, new_id
from tests.support.sessions import (
    WAIT_S,
    Writer,
    assert_ends_as,
    chain_in_outbox,
    change_method_in_steps,
    model_of,
    wait_until_blocked,
)
from tests.support.site import Site

MakeWriter = Callable[..., Writer]


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    """Only a database: the sessions are the test's own."""
    return make_site(topics=False)


# ── a step beside a batch ──────────────────────────────────────────────────────────────────────────────────

NO_LOCK = {"memberships_lock": "select cardinality(%(users)s::uuid[])", "backfill_lock": "select 1"}
NO_PLACES = {"backfill_lock": "select 1 / 0"}


def _added_elsewhere(site: Site, writer: MakeWriter, step_of: Writer) -> list[Sequence[Event]]:
    """A method moves to a segment which one who holds its contribution joins during the step."""
    first = method(new_id(), new_id())
    moved = changed(first, 2, segment_id=new_id(), role="tutor")
    holder, joins = member(first.segment_id, user := new_id(), 1), member(moved.segment_id, user, 1)
    one = writer()
    one.batch(first)
    one.batch(holder)
    one.start(lambda session: change_method_in_steps(session, moved)).result(WAIT_S)
    one.begin(joins)
    step = step_of.start_step()
    wait_until_blocked(site, step_of)
    one.commit()
    step.result(WAIT_S)
    step_of.finish_backfills()
    return [[first], [holder], [moved], [joins]]


def _removed_elsewhere(site: Site, writer: MakeWriter, step_of: Writer) -> list[Sequence[Event]]:
    """A member whom the step is to give a new role leaves during it."""
    first = method(new_id(), new_id())
    renamed = changed(first, 2, role="tutor")
    joins, leaves = member(first.segment_id, user := new_id(), 1), member(first.segment_id, user, 2, is_member=False)
    one = writer()
    one.batch(first)
    one.batch(joins)
    one.start(lambda session: change_method_in_steps(session, renamed)).result(WAIT_S)
    one.begin(leaves)
    step = step_of.start_step()
    wait_until_blocked(site, step_of)
    one.commit()
    step.result(WAIT_S)
    step_of.finish_backfills()
    return [[first], [joins], [renamed], [leaves]]


BESIDE = pytest.mark.parametrize("beside", [_added_elsewhere, _removed_elsewhere], ids=["added", "removed"])


@BESIDE
def test_a_backfill_step_waits_for_a_member_who_is_being_changed_elsewhere(
    site: Site, writer: MakeWriter, beside: Callable[..., list[Sequence[Event]]]
) -> None:
    assert_ends_as(site, *beside(site, writer, writer()))


@BESIDE
def test_without_the_membership_locks_a_backfill_step_would_overlook_a_member_who_is_being_changed_elsewhere(
    site: Site, writer: MakeWriter, beside: Callable[..., list[Sequence[Event]]]
) -> None:
    batches = beside(site, writer, writer(instead=NO_LOCK))
    with pytest.raises(AssertionError, match="1 rows differ"):
        assert_ends_as(site, *batches)


def test_a_step_makes_places_to_lock_only_where_somebody_has_no_membership(site: Site, writer: MakeWriter) -> None:
    assert_ends_as(site, *_removed_elsewhere(site, writer, writer(instead=NO_PLACES)))
    with pytest.raises(DataRejected, match="division by zero"):
        _added_elsewhere(site, writer, writer(instead=NO_PLACES))


def test_a_batch_waits_for_the_backfill_step_that_holds_its_people(site: Site, writer: MakeWriter) -> None:
    first = method(new_id(), new_id())
    moved = changed(first, 2, segment_id=new_id())
    holder, joins = member(first.segment_id, user := new_id(), 1), member(moved.segment_id, user, 1)
    one, other = writer(), writer()
    one.batch(first)
    one.batch(holder)
    one.start(lambda session: change_method_in_steps(session, moved)).result(WAIT_S)
    step = one.start_step(stop_before="converge")
    one.wait_until_stopped()
    joining = other.start_batch(joins)
    wait_until_blocked(site, other)
    one.go_on()
    step.result(WAIT_S)
    assert joining.result(WAIT_S).changes == 1
    assert_ends_as(site, [first], [holder], [moved], [joins])


def test_two_workers_take_the_steps_of_one_backfill_in_turn_and_no_one_twice(site: Site, writer: MakeWriter) -> None:
    hidden = method(new_id(), new_id(), visible=False)
    people = [member(hidden.segment_id, new_id(), 1) for _ in range(30)]
    opened = changed(hidden, 2, visible=True)
    one, other = writer(), writer()
    one.batch(hidden)
    one.batch(*people)
    one.start(lambda session: change_method_in_steps(session, opened)).result(WAIT_S)
    held = one.start_step(10, stop_before="converge")
    one.wait_until_stopped()
    skipped = other.start_step(10).result(WAIT_S)
    assert skipped is not None
    assert (skipped.people, skipped.finished) == (0, False)
    one.go_on()
    first = held.result(WAIT_S)
    assert first is not None
    assert first.people == 10
    running = one.start_backfills(10), other.start_backfills(10)
    assert sum(each.result(WAIT_S) for each in running) == 20
    assert_ends_as(site, [hidden], people, [opened])
    assert all(len(chain) == 1 for chain in chain_in_outbox(site).values())


# ── a second change while a backfill runs ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("place", ["lock_shared", "converge"], ids=["before its locks", "with its locks"])
@pytest.mark.parametrize("fields", [{"role": "tutor"}, {"deleted": True}, {"visible": False}], ids=str)
def test_a_second_change_of_the_method_takes_over_from_a_step_under_way(
    site: Site, writer: MakeWriter, place: str, fields: dict[str, object]
) -> None:
    hidden = method(new_id(), new_id(), visible=False)
    people = [member(hidden.segment_id, new_id(), 1) for _ in range(30)]
    opened = changed(hidden, 2, visible=True)
    second = changed(opened, 3, **fields)
    one, other = writer(), writer()
    one.batch(hidden)
    one.batch(*people)
    one.start(lambda session: change_method_in_steps(session, opened)).result(WAIT_S)
    one.start_step(10).result(WAIT_S)
    step = one.start_step(10, stop_before=place)
    one.wait_until_stopped()
    takes_over = other.start(lambda session: change_method_in_steps(session, second))
    if place == "converge":
        wait_until_blocked(site, other)
    else:
        takes_over.result(WAIT_S)
    one.go_on()
    taken = step.result(WAIT_S)
    assert taken is not None
    assert taken.people == (10 if place == "converge" else 0)
    takes_over.result(WAIT_S)
    ((version, done),) = [(row["version"], row["done"]) for row in site.query("select version, done from backfill")]
    assert (version, done) == (3, 0)
    one.finish_backfills(10)
    assert site.query("select from backfill") == []
    shown = site.in_course(hidden.course_id)
    if "visible" in fields:  # only those whom the first change had reached are there to be suspended
        assert {row["status"] for row in shown.values()} == {"SUSPENDED"}
        assert len(shown) == (20 if place == "converge" else 10)
    else:
        assert_rows_equal_model(site, model_of([hidden], people, [opened], [second]))
    chain_in_outbox(site)


def test_a_change_of_the_name_alone_lets_a_backfill_go_on_where_it_is(site: Site, writer: MakeWriter) -> None:
    hidden = method(new_id(), new_id(), visible=False)
    people = [member(hidden.segment_id, new_id(), 1) for _ in range(30)]
    opened = changed(hidden, 2, visible=True)
    renamed = changed(opened, 3, name="Another name")
    one, other = writer(), writer()
    one.batch(hidden)
    one.batch(*people)
    one.start(lambda session: change_method_in_steps(session, opened)).result(WAIT_S)
    one.start_step(10).result(WAIT_S)
    assert other.batch(renamed).changes == 0
    assert [(row["version"], row["done"]) for row in site.query("select version, done from backfill")] == [(3, 10)]
    assert one.finish_backfills(10) == 20
    assert_ends_as(site, [hidden], people, [opened], [renamed])


def test_a_deleted_methods_contributions_end_and_never_come_back(site: Site, writer: MakeWriter) -> None:
    enabled = method(new_id(), new_id())
    people = [member(enabled.segment_id, new_id(), 1) for _ in range(5)]
    deleted, revived = changed(enabled, 2, deleted=True), changed(enabled, 3)
    late = member(enabled.segment_id, new_id(), 1)
    one, other = writer(), writer()
    one.batch(enabled)
    one.begin(*people)
    ending = other.start(lambda session: change_method_in_steps(session, deleted))
    wait_until_blocked(site, other)
    one.commit()
    ending.result(WAIT_S)
    one.batch(late)
    ((_, rejection),) = one.batch(revived).rejected
    assert rejection.reason == "invalid_event"
    one.finish_backfills()
    assert_ends_as(site, [enabled], people, [deleted], [late], [revived])
    assert site.in_course(enabled.course_id) == {}
