"""`republish`: every row once more, as an event of its own that says that nothing changed (docs/adr/0007)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from uuid import UUID

import pytest

from sync_worker import failpoints
from sync_worker.database import arrays
from sync_worker.database.sessions import apply_session
from sync_worker.errors import RetryableError
from sync_worker.operations.republishing import Republication
from sync_worker.outbox import republish
from tests.model.model import Model
from tests.model.traffic import random_history
from tests.support.check import assert_rows_equal_model
from tests.support.facts import member, method, new_id
from tests.support.relay import publish
from tests.support.sessions import Writer
from tests.support.site import Site, wait_for
from tests.support.went_back import assert_last_events_are_the_rows, assert_versions_never_repeat_with_other_content

SEGMENT, COURSE, OTHER_COURSE = new_id(), new_id(), new_id()
pytestmark = pytest.mark.usefixtures("time_to_stand_still")


@pytest.fixture
def writer(site: Site) -> Iterator[Writer]:
    """A session on a site where everybody of SEGMENT is in two courses."""
    with Writer(site.database_url) as opened:
        opened.batch(method(SEGMENT, COURSE, group_id=new_id()))
        opened.batch(method(SEGMENT, OTHER_COURSE))
        yield opened


def assert_all_is_told(site: Site) -> Counter[bytes]:
    """Every key's events, without a gap, up to what its row is; how many each has."""
    records = site.records("changes")
    assert_versions_never_repeat_with_other_content(records)
    return assert_last_events_are_the_rows(site, records)


def test_every_row_is_published_once_more_also_who_is_not_enrolled_any_more(site: Site, writer: Writer) -> None:
    staying, leaving = new_id(), new_id()
    writer.batch(member(SEGMENT, staying, 1), member(SEGMENT, leaving, 1))
    writer.batch(member(SEGMENT, leaving, 2, is_member=False))
    columns = "course_id, user_id, sources, hand, suspended, updated_at, cause_type, cause_event_id"
    before = site.query(f"select {columns} from enrollment order by 1, 2")

    dry = site.command("republish", "--dry-run")
    assert dry.returncode == 3, dry.stderr
    assert "4 enrollments would be published once more" in dry.stdout
    one_course = site.command("republish", "--course", COURSE, "--json")
    assert one_course.returncode == 0, one_course.stderr
    assert json.loads(one_course.stdout) == {"dry_run": False, "enrollments": 2}
    publish(site)
    assert sorted(assert_all_is_told(site).values()) == [1, 2, 2, 3]

    every = site.command("republish")
    assert every.returncode == 0, every.stderr
    publish(site)
    assert sorted(assert_all_is_told(site).values()) == [2, 3, 3, 4]
    last = {change.record.key: change.event for change in site.changes()}
    assert all(event["before"] == event["after"] for event in last.values())
    assert {event["cause"]["type"] for event in last.values()} == {"REPUBLISH"}
    assert Counter(event["change"] for event in last.values()) == {"UPDATED": 2, "UNENROLLED": 2}
    assert site.query(f"select {columns} from enrollment order by 1, 2") == before
    records = site.query("select operation, detail from intervention order by id")
    assert [each["detail"] for each in records] == [
        {"course_id": COURSE, "rows": 2},
        {"course_id": None, "rows": 4},
    ]


def test_a_course_that_nobody_was_ever_in_has_nothing_to_publish(site: Site, writer: Writer) -> None:
    writer.batch(method(SEGMENT, empty := new_id(), kind="SEGMENT_GROUP", role=None, group_id=new_id()))
    writer.batch(member(SEGMENT, new_id(), 1))
    assert site.query("select version from enrollment where course_id = %s", empty) == [{"version": 0}]
    dry = site.command("republish", "--course", empty, "--dry-run")
    assert (dry.returncode, dry.stdout.startswith("0 enrollments")) == (0, True)
    assert site.command("republish", "--course", "no-uuid").returncode == 2


def test_beside_live_traffic_no_event_is_lost_or_said_twice(site: Site) -> None:
    history = random_history(5, events=1500, segments=4, users=60, methods_per_segment=2, courses=4)
    site.start_worker(batch_max_records="50")
    site.produce(history[:700])
    site.wait_settled()
    site.produce(history[700:])
    done = site.command("republish")
    assert done.returncode == 0, done.stderr
    site.wait_settled()
    model = Model()
    model.apply_batch(history)
    assert_rows_equal_model(site, model)
    assert_all_is_told(site)


def test_steps_cover_each_row_once_and_leave_the_neighbours_alone(site: Site, writer: Writer) -> None:
    writer.batch(*(member(SEGMENT, new_id(), 1) for _ in range(25)))
    with closing(apply_session(site.database_url, "test")) as session:
        arrays.register(session)
        for courses, rows in ((republish.ALL, 50), (republish.Courses(UUID(COURSE), UUID(COURSE)), 25)):
            assert republish.count(session, courses) == rows
            after, sizes = courses.beginning, []
            while people := republish.step(session, courses, after, people_per_step=10):
                sizes.append(len(people))
                after = people[-1]
            assert sizes == [10] * (rows // 10) + [5] * (rows % 10 > 0)
    versions = site.query("select course_id::text, min(version), max(version) from enrollment group by 1")
    assert {row["course_id"]: (row["min"], row["max"]) for row in versions} == {COURSE: (3, 3), OTHER_COURSE: (2, 2)}


def test_it_waits_for_the_relay_and_says_so_where_there_is_none(site: Site, writer: Writer) -> None:
    writer.batch(*(member(SEGMENT, new_id(), 1) for _ in range(20)))
    with closing(Republication(site.settings, None, max_waiting=30)) as republication:
        steps = republication.run(patience_s=0.0)
        assert next(steps) == 40
        with pytest.raises(RetryableError, match=r"40 rows were written, 80 wait .* no worker publishes them"):
            next(steps)


@pytest.mark.parametrize("place", ["republish_before_commit", "republish_after_commit"])
def test_one_that_was_interrupted_can_be_run_again(site: Site, writer: Writer, place: str) -> None:
    writer.batch(*(member(SEGMENT, new_id(), 1) for _ in range(10)))
    failpoints.arm(f"{place}=fail@1")
    try:
        with closing(Republication(site.settings, None)) as republication, pytest.raises(RetryableError):
            list(republication.run())
    finally:
        failpoints.arm("")
    with closing(Republication(site.settings, None)) as republication:
        assert list(republication.run()) == [20]
    publish(site)
    expected = 2 if place == "republish_before_commit" else 3
    assert set(assert_all_is_told(site).values()) == {expected}


def test_a_row_that_somebody_holds_is_waited_for(site: Site, writer: Writer) -> None:
    writer.batch(member(SEGMENT, user := new_id(), 1))
    with ThreadPoolExecutor(1) as pool, Writer(site.database_url) as slow:
        slow.begin(member(SEGMENT, user, 2, is_member=False))
        with closing(Republication(site.settings, None)) as republication:
            running = pool.submit(list, republication.run())
            waits = "select from pg_stat_activity where application_name = 'sync-worker republish' and wait_event_type = 'Lock'"
            wait_for(lambda: site.query(waits), what="waiting for the row")
            slow.commit()
            assert running.result(60) == [2]
    publish(site)
    assert set(assert_all_is_told(site).values()) == {3}
