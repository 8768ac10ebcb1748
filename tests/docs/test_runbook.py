"""Operations that only the runbook describes, done as it says."""

from __future__ import annotations

from tests.support.facts import member, method, new_id
from tests.support.site import Site


def test_the_output_gets_more_partitions_as_a_new_topic(site: Site) -> None:
    enabled = method(new_id(), new_id())
    people = [member(enabled.segment_id, new_id(), 1) for _ in range(5)]
    site.produce([enabled, *people])
    worker = site.start_worker()
    site.wait_settled()
    assert worker.terminate() == 0

    site.environment["SYNC_WORKER_CHANGES_TOPIC"] += ".wider"
    assert site.command("topics", "create", "--partitions", "6").returncode == 0
    site.start_worker()
    republished = site.command("republish")
    assert republished.returncode == 0, republished.stderr
    site.wait_settled()

    # A consumer of the new topic alone knows everybody, and what comes next follows.
    told = {change.event["user_id"]: change.event for change in site.changes()}
    assert {user: (event["version"], event["after"]["status"]) for user, event in told.items()} == {
        person.user_id: (2, "ACTIVE") for person in people
    }
    site.produce([member(enabled.segment_id, people[0].user_id, 2, is_member=False)])
    site.wait_settled()
    last = [change.event for change in site.changes() if change.event["user_id"] == people[0].user_id][-1]
    assert (last["version"], last["change"]) == (3, "UNENROLLED")
