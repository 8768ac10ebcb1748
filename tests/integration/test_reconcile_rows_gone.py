"""`reconcile` where whole enrollment rows are gone: they come back as they were last published, and their versions go on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from uuid import UUID

import pytest

from sync_worker.enrollment.reconcile import Difference, Key, Kind, Scope
from sync_worker.enrollment.repair import Said, restore
from sync_worker.operations.reconciling import Reconciliation
from sync_worker.operations.tally import Finding
from tests.model.events import HandEdit
from tests.support.check import assert_changes_are_a_chain, assert_rows_equal_model
from tests.support.engine import Engine
from tests.support.facts import member, method, new_id, source, suspension
from tests.support.sessions import chain_in_outbox, model_of
from tests.support.site import Site, wait_for

pytestmark = pytest.mark.usefixtures("time_to_stand_still")


@pytest.fixture
def engine(site: Site) -> Iterator[Engine]:
    running = Engine(site.database_url)
    yield running
    running.close()


def reconcile(site: Site) -> list[Finding]:
    findings: list[Finding] = []
    with closing(Reconciliation(site.settings, Scope())) as run:
        run.run(findings.append)
    return findings


def test_a_row_that_is_gone_comes_back_with_what_no_fact_knows_and_without_an_event(site: Site, engine: Engine) -> None:
    enabled, left = (
        method(new_id(), course := new_id(), group_id=new_id()),
        method(new_id(), course, on_removal="SUSPEND"),
    )
    engine.apply([enabled, left])
    engine.apply([member(enabled.segment_id, user := new_id(), 1), member(left.segment_id, user, 1)])
    engine.apply([member(left.segment_id, user, 2, is_member=False), suspension(course, user, 1)])
    engine.edit(HandEdit("insert", course, new_id(), user))
    before, changes = engine.enrollments(), len(engine.changes())
    engine.lms.execute("delete from enrollment")
    (finding,) = reconcile(site)
    assert (finding.difference.kind, finding.repaired) == (Kind.ROW_GONE, True)
    assert engine.enrollments() == before  # the version, too
    assert len(engine.changes()) == changes
    chain_in_outbox(site)


def test_facts_that_changed_while_the_row_was_gone_are_an_event_after_the_last_one(site: Site, engine: Engine) -> None:
    student, tutor = method(new_id(), course := new_id()), method(new_id(), course, role="tutor")
    engine.apply([student, tutor])
    engine.apply([member(student.segment_id, user := new_id(), 1), member(tutor.segment_id, user, 1)])
    engine.lms.execute("delete from enrollment")
    engine.apply([member(student.segment_id, user, 2, is_member=False)])
    (finding,) = reconcile(site)
    assert finding.repaired
    ((_, row),) = engine.enrollments().items()
    assert (row["version"], row["roles"]) == (2, ["tutor"])
    (chain,) = chain_in_outbox(site).values()
    assert [change["cause_type"] for change in chain] == ["SegmentMemberAdded", "RECONCILE"]


def test_a_row_of_which_nothing_was_ever_published_begins_at_one(site: Site, engine: Engine) -> None:
    enabled = method(new_id(), new_id())
    engine.apply([enabled])
    engine.apply([member(enabled.segment_id, new_id(), 1)])
    engine.lms.execute("delete from enrollment")
    engine.lms.execute("delete from outbox")
    (finding,) = reconcile(site)
    assert finding.repaired
    assert [row["version"] for row in engine.enrollments().values()] == [1]


def test_a_row_that_was_made_anew_below_the_published_version_is_reported(site: Site, engine: Engine) -> None:
    """Somebody's event came between the moment when the row was missed and the one when its last version was known."""
    engine.apply([source(course := new_id(), user := new_id(), 1)])
    key = Key(UUID(course).bytes, UUID(user).bytes, "manual")
    said = Said(7, {"manual": {"kind": "OTHER", "status": "ACTIVE", "role": "teacher", "member": True}}, (), False)
    with engine.session.transaction():
        done = restore(engine.session, [Difference(Kind.ROW_GONE, key)], {key.person: said})
    assert [(each.kind, each.key.source) for each in done.found] == [(Kind.VERSION_WENT_BACK, "")]
    assert not done.repaired
    assert [row["version"] for row in engine.enrollments().values()] == [1]


@pytest.mark.parametrize("commit", [1, 2])
def test_rows_that_are_gone_are_not_forgotten_when_a_run_is_killed(site: Site, engine: Engine, commit: int) -> None:
    """Killed with the step that missed them, and with the one that puts them back."""
    enabled = method(new_id(), new_id())
    engine.apply([enabled])
    engine.apply([member(enabled.segment_id, new_id(), 1) for _ in range(20)])
    before = engine.enrollments()
    engine.lms.execute("delete from enrollment")
    site.environment["SYNC_WORKER_TEST_FAILPOINTS"] = f"reconcile_before_commit=exit@{commit}"
    assert site.command("reconcile").returncode == 137
    del site.environment["SYNC_WORKER_TEST_FAILPOINTS"]
    done = site.command("reconcile", "--json")
    assert done.returncode == 0, done.stderr
    *_, summary = map(json.loads, done.stdout.splitlines())
    assert (summary["resumed"], summary["repaired"]) == (True, {"row_gone": 20})
    assert engine.enrollments() == before


def test_rows_whose_events_are_long_published_are_found_again_on_the_topic(site: Site) -> None:
    enabled = method(new_id(), new_id(), group_id=new_id())
    people = [new_id() for _ in range(30)]
    joins = [member(enabled.segment_id, user, 1) for user in people]
    leaves = [member(enabled.segment_id, user, 2, is_member=False) for user in people[:10]]
    again = [member(enabled.segment_id, user, 3) for user in people[:10]]
    worker = site.start_worker()
    for batch in ([enabled], joins, leaves, again):
        site.produce(batch)
        site.wait_settled()
    wait_for(lambda: site.query("select count(*) as n from outbox")[0]["n"] == 0, what="the outbox is cleaned up")
    before = site.enrollments()
    assert {row["version"] for row in before.values()} == {1, 3}
    site.query("delete from enrollment returning true")

    dry = site.command("reconcile", "--dry-run", "--json")
    assert dry.returncode == 3
    done = site.command("reconcile", "--json")
    assert done.returncode == 0, done.stderr
    *_, summary = map(json.loads, done.stdout.splitlines())
    assert (summary["found"], summary["repaired"], summary["events"]) == ({"row_gone": 30}, {"row_gone": 30}, 0)
    assert site.enrollments() == before

    last = [member(enabled.segment_id, people[0], 4, is_member=False)]
    model = model_of([enabled], joins, leaves, again)
    model.apply_batch(last)
    site.produce(last)
    site.wait_settled()
    assert worker.terminate() == 0
    assert_rows_equal_model(site, model)
    assert_changes_are_a_chain(site)
