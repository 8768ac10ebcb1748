"""A broken upstream rule empties a segment: what two workers remove, hold and let go, as operators see it (semantics §5).

SYNC_WORKER_ACCEPTANCE_MEMBERS=100000 runs it at the size of the acceptance.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import Any

import pytest

from tests.support.check import assert_changes_are_a_chain
from tests.support.facts import AT, member, method, new_id
from tests.support.site import Site, wait_for

MEMBERS = int(os.environ.get("SYNC_WORKER_ACCEPTANCE_MEMBERS", "20000"))
DEADLINE_S = 300.0

pytestmark = pytest.mark.timeout(1500)


def _holds(site: Site) -> list[dict[str, Any]]:
    listed = site.command("holds", "list", "--json")
    assert listed.returncode == 0, listed.stderr
    holds: list[dict[str, Any]] = json.loads(listed.stdout)["holds"]
    return holds


def _enrolled(site: Site, course: str) -> int:
    (row,) = site.query("select count(*) as n from course_enrollment where course_id = %s", course)
    return int(row["n"])


def test_a_segment_emptied_by_mistake_keeps_its_members_until_somebody_decides(site: Site) -> None:
    segment, course = new_id(), new_id()
    users = [new_id() for _ in range(MEMBERS)]
    workers = [site.start_worker(), site.start_worker()]
    site.produce([method(segment, course, group_id=new_id()), *(member(segment, user, 1) for user in users)])
    site.wait_settled(DEADLINE_S)
    assert _enrolled(site, course) == MEMBERS

    # The rule breaks: everybody leaves at once. One worker dies in the middle of it.
    site.produce([replace(member(segment, user, 2, is_member=False), occurred_at=AT) for user in users])
    wait_for(lambda: site.query("select 1 from removal_count"), DEADLINE_S, "the first removals")
    workers[0].kill()
    applying = (
        "select from pg_stat_activity where datname = current_database() and application_name = 'sync-worker apply'"
    )
    wait_for(lambda: len(site.query(applying)) <= 1, what="the end of its session")
    # Was it the one to say so, it may have died with the word on its lips.
    perhaps_unsaid = bool(site.query("select from removal_hold"))
    site.wait_settled(DEADLINE_S)
    (hold,) = _holds(site)
    assert hold["segment_id"] == segment
    assert hold["members"] == MEMBERS
    assert hold["removed"] <= MEMBERS // 2
    assert hold["held"] == MEMBERS - hold["removed"] == _enrolled(site, course)

    def said() -> list[str]:
        return [line["segment_id"] for worker in workers for line in worker.events("segment_held")]

    wait_for(lambda: said() or perhaps_unsaid, what="the word of it")
    assert said() in ([[segment], []] if perhaps_unsaid else [[segment]])

    # Mended: some are members again. Those who were held never lost anything, and nothing is published for them.
    held = [
        row["id"] for row in site.query("select user_id::text as id from membership where hold is not null limit 500")
    ]
    published = len(site.records("changes"))
    site.produce([member(segment, user, 3) for user in held])
    site.wait_settled(DEADLINE_S)
    assert len(site.records("changes")) == published
    (hold,) = _holds(site)
    assert hold["held"] == _enrolled(site, course) - len(held)

    # The others had left for good.
    unasked = site.command("holds", "release", segment)
    assert unasked.returncode == 2
    assert "--yes" in unasked.stderr
    released = site.command("holds", "release", segment, "--yes")
    assert released.returncode == 0, released.stderr
    assert f"{hold['held']} removals" in released.stdout
    status = site.wait_settled(DEADLINE_S)
    assert status["holds"] == []
    assert _holds(site) == []
    assert _enrolled(site, course) == len(held)
    assert_changes_are_a_chain(site)

    # The release has emptied the window: the few who are left may leave without another hold.
    site.produce([member(segment, user, 4, is_member=False) for user in held])
    site.wait_settled(DEADLINE_S)
    assert _enrolled(site, course) == 0
    assert _holds(site) == []
    again = site.command("holds", "release", segment, "--yes")
    assert again.returncode == 1
    assert "is not held" in again.stderr
