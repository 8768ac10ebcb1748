"""A worker that dies at each place that matters, as by kill -9, and is started again: nothing has to be repaired (design §6).

The places are the failpoints of sync_worker/failpoints.py. Each test kills one worker after the other on the same site,
with new events in between, and compares the end with the model.
"""

from __future__ import annotations

import pytest

from tests.model.events import Event
from tests.model.model import Model
from tests.model.traffic import random_history
from tests.support.check import assert_changes_are_a_chain, assert_site_equals_model
from tests.support.facts import member, method, new_id
from tests.support.site import Site

KILLED = 137
DEADLINE_S = 120.0
# One worker after the other, and each may take that long.
pytestmark = pytest.mark.timeout(900)


def _kill_at(site: Site, place: str) -> None:
    """A worker that dies there, and did."""
    name, _, nth = place.partition("@")
    # In batches so small that there is an nth one, whatever of them is fetched at once.
    worker = site.start_worker(failpoints=f"{name}=exit@{nth or 1}", batch_max_records="20")
    assert worker.wait(DEADLINE_S) == KILLED, f"{place}: {worker.log()[-2000:]}"
    # The next one needn't wait for the dead one's lease, which is by the clock and tested elsewhere.
    with site.connect() as connection:
        connection.execute("update relay_lease set expires_at = clock_timestamp()")


def _ends_as(site: Site, history: list[Event]) -> None:
    site.start_worker()
    site.wait_settled(DEADLINE_S)
    model = Model()
    model.apply_batch(history)
    assert_site_equals_model(site, model)


def test_a_worker_killed_at_any_step_of_a_transaction_loses_and_repeats_nothing(site: Site) -> None:
    history = random_history(7, events=800, segments=4, users=40, methods_per_segment=2, courses=4)
    places = ("on_assign", "after_positions", "after_rows", "before_commit", "after_commit@3")
    part = len(history) // len(places)
    for n, place in enumerate(places):
        site.produce(history[n * part : (n + 1) * part if n < len(places) - 1 else None])
        _kill_at(site, place)
    _ends_as(site, history)


def test_a_worker_killed_while_it_leaves_loses_and_repeats_nothing(site: Site) -> None:
    history = random_history(8, events=600, segments=4, users=40, methods_per_segment=2, courses=4)
    for n, place in enumerate(("drain", "on_revoke")):
        site.produce(history[n * 300 : (n + 1) * 300])
        for _ in range(5):
            worker = site.start_worker(failpoints=f"{place}=exit")
            worker.wait_for_event("partition_started", DEADLINE_S)
            code = worker.terminate(DEADLINE_S)
            # One that the group took all partitions from just now, as it stood still, has none to give back: another one.
            if code != 0:
                break
        assert code == KILLED, worker.log()[-2000:]
    _ends_as(site, history)


def test_a_worker_killed_at_any_step_of_the_relay_publishes_every_change_once(site: Site) -> None:
    history = random_history(9, events=900, segments=4, users=40, methods_per_segment=2, courses=4)
    places = (
        "relay_fenced", "relay_due", "relay_window_opened", "relay_publishing", "relay_committed", "relay_marked",
    )  # fmt: skip
    part = len(history) // len(places)
    for n, place in enumerate(places):
        site.produce(history[n * part : (n + 1) * part])
        _kill_at(site, place)
    _ends_as(site, history)


def test_a_worker_killed_at_any_step_of_a_backfill_goes_on_where_it_was(site: Site) -> None:
    hidden = method(segment := new_id(), new_id(), visible=False)
    opened = method(segment, hidden.course_id, method_id=hidden.method_id, version=2)
    people: list[Event] = [member(segment, new_id(), 1) for _ in range(3000)]
    site.start_worker()
    site.produce([hidden, *people])
    site.wait_settled(DEADLINE_S)
    site.workers[-1].terminate()
    site.produce([opened])
    done = -1
    for place in (
        "backfill_people",
        "backfill_taken",
        "backfill_locked",
        "backfill_before_commit",
        "backfill_after_commit",
    ):
        _kill_at(site, place)
        (row,) = site.query("select done, total from backfill")
        assert row["total"] == len(people)
        assert row["done"] >= done
        done = row["done"]
    assert done == 1000  # the last one died after its commit
    site.start_worker()
    site.wait_settled(DEADLINE_S)
    assert assert_changes_are_a_chain(site) == len(people)
