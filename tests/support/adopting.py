"""What the tests of `relay show` and `relay adopt` share: people who join, an LMS that edits, and how a site must end.

Everything happens by the worker's own sessions, without worker processes; what came of it is asked of topics and views.
"""

from __future__ import annotations

import json
from contextlib import closing
from typing import Any

from sync_worker.operations.relaying import Adopting
from sync_worker.outbox.adopt import Differences
from tests.support.facts import member, method, new_id
from tests.support.kafka import KafkaRecord
from tests.support.relay import RunningRelay, publish
from tests.support.sessions import Writer
from tests.support.site import Site, wait_for
from tests.support.went_back import assert_last_events_are_the_rows, assert_versions_never_repeat_with_other_content

SEGMENT, COURSE, GROUP = new_id(), new_id(), new_id()
METHOD = method(SEGMENT, COURSE, group_id=GROUP)
NOTHING = Differences(0, 0, 0, 0, 0, 0)


def apply(site: Site, *events: Any) -> None:
    """One batch, applied and not published."""
    with Writer(site.database_url) as writer:
        writer.batch(*events)


def join(site: Site, number: int) -> list[str]:
    """So many people join, in one batch."""
    people = [new_id() for _ in range(number)]
    apply(site, *(member(SEGMENT, user, 1) for user in people))
    return people


def edit(site: Site, user: str, group: str, *, leave: bool = False) -> None:
    """The LMS changes a hand-made membership."""
    statement = (
        "delete from course_group_member where course_id = %s and group_id = %s and user_id = %s"
        if leave
        else "insert into course_group_member (course_id, group_id, user_id) values (%s, %s, %s)"
    )
    with site.connect() as lms:
        lms.execute(statement, (COURSE, group, user))


def adopt(site: Site) -> Differences:
    """In the test's process, what it did; it does what it said."""
    with closing(Adopting(site.settings)) as adopting:
        plan = adopting.plan(lambda _done, _total: None)
        assert adopting.adopt(lambda _done, _total: None) == plan
    return plan


def publish_and_clean(site: Site) -> None:
    """Publish everything, and wait until the outbox holds none of it any more."""
    with RunningRelay(site) as relay:
        relay.wait_until_published()
        wait_for(lambda: not site.query("select from outbox"), what="the clean-up")


def show(site: Site) -> dict[str, Any]:
    shown = site.command("relay", "show", "--json")
    assert shown.returncode == 0, shown.stderr
    document: dict[str, Any] = json.loads(shown.stdout)
    return document


def ends_well(site: Site, *, from_any_version: bool = False, before: list[KafkaRecord] | None = None) -> None:
    """What waits is published, and the topic tells what the rows are and told each version once.

    before: what consumers had read of a topic that is no more.
    """
    publish(site)
    records = site.records("changes")
    assert_last_events_are_the_rows(site, records, from_any_version=from_any_version)
    assert_versions_never_repeat_with_other_content((before or []) + records)


def events_of(site: Site, user: str) -> list[dict[str, Any]]:
    return [change.event for change in site.changes() if change.event["user_id"] == user]


def versions(site: Site, user: str) -> list[int]:
    return [event["version"] for event in events_of(site, user)]
