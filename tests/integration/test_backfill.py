"""A method event over a large segment: applied in steps, seen in `status`, beside live events, and never begun anew (semantics §4)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from tests.model.events import Event, MethodChanged
from tests.support.facts import member, method, new_id
from tests.support.site import Site, WorkerProcess, wait_for

PEOPLE = 200_000
DEADLINE_S = 240.0

pytestmark = pytest.mark.timeout(900)


def _with_members(site: Site, people: int) -> tuple[WorkerProcess, MethodChanged]:
    """A worker, and a method that isn't visible yet over a segment with so many members."""
    hidden = method(new_id(), new_id(), visible=False)
    with site.connect() as connection:
        connection.execute(
            "insert into membership (segment_id, user_id, is_member, version) "
            "select %s, gen_random_uuid(), true, 1 from generate_series(1, %s)",
            (hidden.segment_id, people),
        )
        connection.execute("vacuum analyze membership")
    worker = site.start_worker()
    site.produce([hidden])
    site.wait_settled()
    return worker, hidden


def _backfill(site: Site) -> dict[str, Any]:
    """What `status` says of the only backfill; empty when there is none."""
    backfills: list[dict[str, Any]] = site.status()["backfills"]
    return backfills[0] if backfills else {}


@contextmanager
def _the_last_held(site: Site, segment: str) -> Iterator[None]:
    """Somebody holds the membership that a backfill comes to last: it is under way for as long as the test needs, however quick it is."""
    with site.connect() as other, other.transaction():
        other.execute(
            "select from membership where segment_id = %s order by user_id desc limit 1 for update", (segment,)
        )
        yield


def _changed(before: MethodChanged, version: int, **fields: Any) -> MethodChanged:
    return replace(before, event_id=new_id(), version=version, **fields)


def test_a_segment_of_two_hundred_thousand_is_activated_in_steps_beside_live_events_and_goes_on_after_a_kill(
    site: Site,
) -> None:
    worker, hidden = _with_members(site, PEOPLE)
    live = method(new_id(), new_id())
    site.produce([live])
    site.wait_settled()
    opened = _changed(hidden, 2, visible=True)
    with _the_last_held(site, hidden.segment_id):
        site.produce([opened])
        shown = wait_for(lambda: _backfill(site), what="the backfill")
        assert (shown["method_id"], shown["segment_id"], shown["version"]) == (opened.method_id, opened.segment_id, 2)

        joined: list[str] = []
        progress = [0]
        while len(joined) < 4 or not progress[-1]:
            site.produce([member(live.segment_id, user := new_id(), 1)])
            wait_for(lambda: (live.course_id, user) in _rows_of(site, live.course_id), what="the live event")
            joined.append(user)
            at = site.query("select done, total from backfill")
            assert at, "the backfill ended before the live events that it must not hold up"
            progress.append(at[0]["done"])
        assert progress == sorted(progress)
        # On a busy machine counting may take longer than it may.
        assert at[0]["total"] == PEOPLE or worker.events("backfill_not_counted")

        worker.kill()
        (row,) = site.query("select done from backfill")
        assert progress[-1] <= row["done"] < PEOPLE
        successor = site.start_worker()
        first = wait_for(lambda: _backfill(site), what="the backfill")
        assert first["done"] >= row["done"]
    successor.wait_for_event("backfill_finished", DEADLINE_S)
    site.wait_settled(DEADLINE_S)
    counts = site.query(
        "select status, version, count(*) as n from enrollment where course_id = %s group by 1, 2", opened.course_id
    )
    assert counts == [{"status": "ACTIVE", "version": 1, "n": PEOPLE}]
    keys = [record.key for record in site.records("changes")]
    assert len(keys) == len(set(keys)) == PEOPLE + len(joined)


def _rows_of(site: Site, course: str) -> set[tuple[str, str]]:
    return {
        (course, row["user_id"])
        for row in site.query("select user_id::text from course_enrollment where course_id = %s", course)
    }


def test_a_second_change_of_the_method_takes_over_from_a_running_backfill(site: Site) -> None:
    _, hidden = _with_members(site, 20_000)
    opened = _changed(hidden, 2, visible=True)
    second = _changed(opened, 3, role="tutor", group_id=new_id())
    late: list[Event] = [member(hidden.segment_id, new_id(), 1) for _ in range(3)]
    with _the_last_held(site, hidden.segment_id):
        site.produce([opened])
        wait_for(lambda: site.query("select from backfill where done > 0"), what="the first steps")
        site.produce([second, *late])
        wait_for(lambda: site.query("select from backfill where version = 3"), what="the second change")
    site.wait_settled(DEADLINE_S)
    assert site.query("select roles, groups::text[], count(*) as n from course_enrollment group by 1, 2") == [
        {"roles": ["tutor"], "groups": [second.group_id], "n": 20_000 + len(late)}
    ]
    events = site.query("select sum(version)::int as n from enrollment")[0]["n"]
    assert len(site.records("changes")) == events
    assert events < 2 * 20_000, "the second change waited for the end of the first"
