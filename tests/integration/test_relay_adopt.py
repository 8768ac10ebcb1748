"""`relay adopt`: a database that went back, or a Kafka that did, follows what consumers know again (docs/adr/0007).

Backups are copies of the database on the same server. Two servers, for real, are in tests/crash/test_database_went_back.py.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from sync_worker.operations.relaying import show as look
from sync_worker.outbox.adopt import Differences
from tests.model.traffic import random_history
from tests.support.adopting import (
    COURSE,
    GROUP,
    METHOD,
    NOTHING,
    SEGMENT,
    adopt,
    apply,
    edit,
    ends_well,
    events_of,
    join,
    publish_and_clean,
    versions,
)
from tests.support.facts import member, method, new_id, suspension
from tests.support.relay import publish
from tests.support.sessions import Writer
from tests.support.site import Site
from tests.support.went_back import Backup, make_topic_anew


@pytest.fixture
def site(site: Site) -> Site:
    """A site with a method that everybody of SEGMENT gets."""
    apply(site, METHOD)
    return site


# ── a database that went back ───────────────────────────────────────────────────────────────────────────────────────


def test_every_way_in_which_a_row_can_differ_from_the_topic_ends_in_the_row(site: Site) -> None:
    same, left, turned, edited, edited_often, edited_in_vain, waited = join(site, 7)
    publish(site)
    edit(site, waited, new_id())
    backup = Backup(site)
    publish(site)
    (joined,) = join(site, 1)
    apply(site, member(SEGMENT, left, 2, is_member=False), member(SEGMENT, turned, 2, is_member=False))
    apply(site, member(SEGMENT, turned, 3))
    for user in (edited, edited_often, edited_in_vain):
        edit(site, user, new_id())
    publish(site)
    backup.restore()
    for user, times in ((edited, 1), (edited_often, 3)):
        for _ in range(times):
            edit(site, user, new_id())
    lost_group = events_of(site, edited_in_vain)[-1]["after"]["groups"]
    # The LMS comes to the same in other steps than those that were lost.
    (other,) = (group for group in lost_group if group != GROUP)
    edit(site, edited_in_vain, new := new_id())
    edit(site, edited_in_vain, other)
    edit(site, edited_in_vain, new, leave=True)

    found = adopt(site)
    assert (found.published, found.renumbered, found.repeated, found.waiting) == (4, 2, 0, 0)
    ends_well(site)
    assert versions(site, same) == [1]
    assert versions(site, waited) == [1, 2]
    assert versions(site, turned) == [1, 2, 3]
    assert versions(site, edited_in_vain) == [1, 2]
    assert versions(site, joined) == [1, 2]
    assert events_of(site, joined)[-1]["change"] == "UNENROLLED"
    assert versions(site, left) == [1, 2, 3]
    assert versions(site, edited) == versions(site, edited_often) == [1, 2, 3]
    assert events_of(site, edited)[-1]["cause"] == {"type": "REPUBLISH", "event_id": None, "method_id": None}

    # Each goes on without a gap from where it is.
    apply(site, *(member(SEGMENT, user, 9, is_member=False) for user in (same, left, turned, edited, edited_often)))
    apply(site, member(SEGMENT, joined, 9))
    edit(site, edited_in_vain, new_id())
    ends_well(site)


def test_a_database_that_caught_up_before_it_is_adopted_publishes_nothing(site: Site) -> None:
    people = join(site, 5)
    # The relay cleans up when it has been idle for a moment; what of it is left is dropped, too.
    publish_and_clean(site)
    backup = Backup(site)
    later = [member(SEGMENT, user, 2, is_member=False) for user in people[:2]]
    apply(site, *later)
    joining = [member(SEGMENT, new_id(), 1) for _ in range(3)]
    apply(site, *joining)
    publish(site)
    told = len(site.changes())
    backup.restore()
    apply(site, *later, *joining)
    assert adopt(site) == Differences(0, 0, 0, 0, 0, dropped=5)
    ends_well(site)
    assert len(site.changes()) == told


def test_what_waits_in_a_database_that_moved_is_published_as_it_is_once(site: Site) -> None:
    """Dumped and restored on another system, while the outbox was not empty."""
    (user, *_) = join(site, 3)
    publish(site)
    edit(site, user, new_id())
    edit(site, user, new_id())
    (newcomer,) = join(site, 1)
    with site.connect() as connection:
        # Another system's xids, which this one won't reach for a long time.
        connection.execute("update relay_window set system_identifier = 1")
        connection.execute("update outbox set xid = (xid::text::bigint + 1000000000)::text::xid8")
    found = adopt(site)
    assert (found.waiting, found.published, found.renumbered) == (2, 0, 0)
    ends_well(site)
    assert [event["cause"]["type"] for event in events_of(site, user)] == ["SegmentMemberAdded", "SQL", "SQL"]
    assert versions(site, newcomer) == [1]
    publish_and_clean(site)


def test_what_a_row_is_without_being_seen_is_no_difference(site: Site) -> None:
    """By hand in a group that a method gives, too; suspended without being enrolled; a contribution that enrolls nobody."""
    (user,) = join(site, 1)
    edit(site, user, hand := new_id())
    apply(site, method(SEGMENT, COURSE, group_id=hand))
    apply(site, method(SEGMENT, new_id(), kind="SEGMENT_GROUP", role=None, group_id=new_id()))
    apply(site, suspension(COURSE, new_id(), 1))
    publish_and_clean(site)
    with site.connect() as connection:
        connection.execute("update relay_window set system_identifier = 1")
    assert adopt(site) == NOTHING
    ends_well(site)


def test_random_histories_that_go_back_again_and_again_say_each_version_once(make_site: Callable[..., Site]) -> None:
    adopted = 0
    for seed in range(2):
        site, random = make_site(), Random(seed)
        history = random_history(seed, events=250, segments=3, users=15, methods_per_segment=2, courses=3)
        batches = [history[n : n + 10] for n in range(0, len(history), 10)]
        backup, kept_at, at = Backup(site), 0, 0
        while at < len(batches):
            with Writer(site.database_url) as writer:
                for event in batches[at]:
                    writer.batch(event)
            at += 1
            if random.random() < 0.4:
                publish(site)
            if random.random() < 0.1:
                backup, kept_at = Backup(site), at
            if random.random() < 0.15:
                backup.restore()
                if look(site.settings).misfit is not None:
                    # Before, in the middle of, or after catching up with what was lost.
                    with Writer(site.database_url) as writer:
                        for batch in batches[kept_at : random.randint(kept_at, at)]:
                            for event in batch:
                                writer.batch(event)
                    adopt(site)
                    ends_well(site)
                    adopted += 1
                at = kept_at
                backup = Backup(site)
        ends_well(site)
    assert adopted >= 4


# ── a Kafka that went back ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_lost_output_topic_gets_every_row_under_a_version_that_nobody_has_seen(site: Site) -> None:
    people = join(site, 4)
    apply(site, member(SEGMENT, people[0], 2, is_member=False))
    edit(site, people[1], new_id())
    publish_and_clean(site)
    edit(site, people[2], new_id())
    seen = site.records("changes")
    for topic in ("changes", "cursor"):
        make_topic_anew(site, topic)
    found = adopt(site)
    assert (found.waiting, found.repeated, found.published) == (1, 3, 0)
    ends_well(site, from_any_version=True, before=seen)
    assert [versions(site, user) for user in people] == [[3], [3], [2], [2]]
    assert [events_of(site, user)[0]["change"] for user in people] == ["UNENROLLED", "UPDATED", "UPDATED", "UPDATED"]


def test_a_deleted_cursor_topic_alone_changes_nothing_that_consumers_see(site: Site) -> None:
    join(site, 3)
    publish(site)
    make_topic_anew(site, "cursor")
    join(site, 1)
    found = adopt(site)
    assert (found.waiting, found.published, found.renumbered, found.repeated) == (1, 0, 0, 0)
    ends_well(site)
    assert len(site.changes()) == 4
