"""`relay show` and `relay adopt`: a database that went back, or a Kafka that did, follows what consumers know again (docs/adr/0007).

Backups are copies of the database on the same server. Two servers, for real, are in tests/crash/test_database_went_back.py.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import pytest

from sync_worker.operations.relaying import Adopting
from sync_worker.operations.relaying import show as look
from sync_worker.outbox.adopt import SQL, Adoption, Differences, Told
from tests.model.traffic import random_history
from tests.support.facts import member, method, new_id, suspension
from tests.support.kafka import KafkaRecord
from tests.support.relay import RunningRelay, cursors, publish
from tests.support.sessions import Writer
from tests.support.site import Site, wait_for
from tests.support.went_back import (
    Backup,
    assert_last_events_are_the_rows,
    assert_versions_never_repeat_with_other_content,
    make_topic_anew,
)

SEGMENT, COURSE, GROUP = new_id(), new_id(), new_id()
METHOD = method(SEGMENT, COURSE, group_id=GROUP)
NOTHING = Differences(0, 0, 0, 0, 0, 0)


@pytest.fixture
def site(site: Site) -> Site:
    """A site with a method that everybody of SEGMENT gets."""
    apply(site, METHOD)
    return site


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


# ── relay show ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_relay_that_fits_is_shown_with_both_its_memories(site: Site) -> None:
    fresh = show(site)
    assert fresh["fits"] is True
    assert (fresh["windows"], fresh["cursor"], fresh["leader"]) == ([], None, None)
    join(site, 3)
    publish(site)
    join(site, 2)
    shown = show(site)
    (identifier,) = site.query("select system_identifier::text as s from pg_control_system()")
    assert shown["misfit"] is None
    assert shown["next"] == "nothing to do"
    assert shown["system_identifier"] == identifier["s"]
    assert [(each["number"], each["published"]) for each in shown["windows"]] == [(1, True)]
    assert shown["cursor"] == {"window": 1, "last_id": 3, "complete": True, "system_identifier": identifier["s"]}
    assert shown["leader"]["leads"] is False
    assert shown["unpublished"] == 2


def test_a_relay_at_work_is_not_taken_for_a_misfit(site: Site) -> None:
    with RunningRelay(site), Writer(site.database_url) as writer:
        stop = threading.Event()

        def work() -> None:
            while not stop.is_set():
                writer.batch(member(SEGMENT, new_id(), 1))

        working = threading.Thread(target=work)
        working.start()
        try:
            shown = [show(site) for _ in range(3)]
        finally:
            stop.set()
            working.join(60)
    assert all(each["fits"] for each in shown), [each["misfit"] for each in shown]
    assert shown[-1]["leader"]["leads"] is True
    assert shown[0]["windows"][0]["number"] < shown[-1]["windows"][0]["number"]


def test_a_misfit_is_shown_in_the_words_in_which_the_relay_stops(site: Site) -> None:
    join(site, 1)
    publish(site)
    backup = Backup(site)
    join(site, 1)
    publish(site)
    backup.restore()
    with RunningRelay(site) as relay:
        error = relay.ended()
    shown = show(site)
    assert shown["fits"] is False
    assert shown["misfit"] == str(error)
    assert "relay adopt --dry-run" in shown["next"]
    table = site.command("relay", "show")
    assert table.returncode == 0
    assert str(error) in table.stdout


# ── when adopting is refused ────────────────────────────────────────────────────────────────────────────────────────


def test_where_everything_fits_there_is_nothing_to_adopt(site: Site) -> None:
    join(site, 1)
    publish(site)
    refused = site.command("relay", "adopt", "--yes")
    assert refused.returncode == 1
    assert "nothing to adopt" in refused.stderr


def test_adopting_is_refused_while_a_relay_leads_or_a_worker_is_in_the_group(site: Site) -> None:
    with RunningRelay(site, "the leader") as relay:
        join(site, 1)
        relay.wait_until_published()
        led = site.command("relay", "adopt", "--yes")
    worker = site.start_worker(failpoints=f"relay_fenced=hold:{site.directory / 'hold'}")
    worker.wait_for_event("partition_started")
    with site.connect() as connection:
        connection.execute(
            "update relay_lease set expires_at = clock_timestamp() - interval '1 hour', holder = 'nobody'"
        )
        member_of = site.command("relay", "adopt", "--yes")
    assert led.returncode == member_of.returncode == 1
    assert "a relay leads (the leader until " in led.stderr
    assert "stop the workers first" in member_of.stderr


def test_nobody_is_asked_without_a_terminal_and_a_dry_run_changes_nothing(site: Site) -> None:
    join(site, 2)
    publish(site)
    backup = Backup(site)
    join(site, 3)
    publish(site)
    backup.restore()

    def everything() -> list[Any]:
        tables = ("enrollment", "outbox", "relay_window", "intervention", "relay_lease")
        return [site.query(f"select t::text from {table} t order by 1") for table in tables]

    untouched = everything()
    dry = site.command("relay", "adopt", "--dry-run")
    assert dry.returncode == 3, dry.stderr
    assert re.search(r"^published\t3\t", dry.stdout, re.MULTILINE)
    unconfirmed = site.command("relay", "adopt")
    assert unconfirmed.returncode == 2
    assert "say --yes" in unconfirmed.stderr
    assert everything() == untouched
    assert len(cursors(site)) == 2

    done = site.command("relay", "adopt", "--yes", "--json")
    assert done.returncode == 0, done.stderr
    differences = json.loads(done.stdout)["differences"]
    assert differences["published"] == 3
    (record,) = site.query("select by, operation, detail from intervention")
    assert record["operation"] == "relay adopt"
    assert record["detail"] == {**differences, "window": 3, "dead_letters_dropped": 0}
    ends_well(site)


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
    publish(site)
    backup = Backup(site)
    later = [member(SEGMENT, user, 2, is_member=False) for user in people[:2]]
    apply(site, *later)
    joining = [member(SEGMENT, new_id(), 1) for _ in range(3)]
    apply(site, *joining)
    publish(site)
    told = len(site.changes())
    backup.restore()
    apply(site, *later, *joining)
    assert adopt(site) == Differences(0, 0, 0, 0, 0, dropped=10)
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


# ── erased keys, other groups, dead letters, records of nobody ──────────────────────────────────────────────────────


def erase(site: Site, user: str) -> None:
    """As the command does it: the row goes, a bare key is left in the outbox."""
    with site.connect() as connection:
        connection.execute(
            "with gone as (delete from enrollment where user_id = %s returning course_id, user_id) "
            "insert into outbox (course_id, user_id) select course_id, user_id from gone",
            (user,),
        )


def test_an_erasure_that_waits_is_published_and_one_that_was_lost_begins_a_new_life(site: Site) -> None:
    erased, erased_later, twice = join(site, 3)
    publish_and_clean(site)
    erase(site, erased)
    erase(site, twice)
    apply(site, member(SEGMENT, twice, 2, is_member=False))
    apply(site, member(SEGMENT, twice, 3))
    backup = Backup(site)
    publish(site)
    erase(site, erased_later)
    publish(site)
    backup.restore()
    found = adopt(site)
    assert (found.repeated, found.waiting) == (1, 1)
    ends_well(site)
    assert versions(site, erased) == [1]
    assert versions(site, erased_later) == [1, 1]
    assert set(site.enrollments()) == {(COURSE, erased_later), (COURSE, twice)}


def test_keys_of_another_group_on_the_same_topic_are_left_alone(site: Site, make_site: Callable[..., Site]) -> None:
    shared = ("membership", "methods", "sources", "changes", "cursor", "dead_letters")
    other = make_site(topics=False, **{f"{name}_topic": site.topic(name) for name in shared})
    with Writer(other.database_url) as writer:
        writer.batch(method(SEGMENT, new_id()))
        writer.batch(*(member(SEGMENT, new_id(), 1) for _ in range(4)))
    publish(other)
    join(site, 1)
    publish(site)
    backup = Backup(site)
    (lost,) = join(site, 1)
    publish(site)
    told = len(site.changes())
    backup.restore()
    found = adopt(site)
    assert (found.foreign, found.published) == (4, 1)
    publish(site)
    assert len(site.changes()) == told + 1
    assert versions(site, lost) == [1, 2]


def test_a_dead_letter_that_waits_is_published_and_one_that_was_published_is_not_published_again(site: Site) -> None:
    def reject(offset: int) -> None:
        with site.connect() as connection:
            connection.execute(
                """
                with kept as (
                  insert into dead_letter (topic, partition, record_offset, key, value, header_names, header_values, reason, detail)
                  values (%s, 0, %s, 'k', 'v', '{}', '{}', 'undecodable', 'no bytes of ours') returning id)
                insert into outbox (dead_letter_id) select id from kept""",
                (site.topic("membership"), offset),
            )

    reject(1)
    backup = Backup(site)
    publish(site)
    backup.restore()
    reject(2)
    assert site.command("relay", "adopt", "--yes").returncode == 0
    publish_and_clean(site)
    assert sorted(record.header("dlq_offset") or b"" for record in site.dead_letters()) == [b"1", b"2"]
    assert site.query("select from dead_letter") == []


def test_a_record_that_can_not_be_read_stops_adopting_and_is_named(site: Site) -> None:
    join(site, 1)
    publish(site)
    site.produce_raw("changes", b"not ours", key=f"{COURSE}:{new_id()}".encode(), partition=2)
    with site.connect() as connection:
        connection.execute("update relay_window set system_identifier = 1")
    refused = site.command("relay", "adopt", "--yes")
    assert refused.returncode == 1
    assert re.search(rf"{site.topic('changes')}\[2\] offset \d+ can't be read", refused.stderr)
    assert "SYNC_WORKER_SCHEMA_DIR" in refused.stderr
    assert site.query("select from intervention") == []


def test_of_a_key_in_two_partitions_the_higher_version_stands(site: Site) -> None:
    """The topic got partitions later: older records stay where they were."""
    user, nobody = new_id(), new_id()

    def told(partition: int, version: int, *, suspended: bool) -> Told:
        return Told(COURSE, user, partition, version, True, {}, (), suspended)

    with closing(Adoption(site.database_url)) as adoption:
        adoption.load([told(4, 8, suspended=True), Told.of_tombstone(f"{COURSE}:{nobody}", 0)])
        adoption.load([told(0, 7, suspended=False)])
        adoption.load([told(4, 9, suspended=False)])
        differences = adoption.compare()
    assert (differences.renumbered, differences.published) == (1, 0)


# ── killed at any point, and beside others ──────────────────────────────────────────────────────────────────────────

PLACES = ("fenced", "read", "planned", "before_commit", "committed", "finished")


def test_adopting_that_was_killed_at_any_point_ends_the_same_when_it_is_run_again(site: Site) -> None:
    join(site, 3)
    publish(site)
    for place in PLACES:
        backup = Backup(site)
        (lost,) = join(site, 1)
        publish(site)
        backup.restore()
        site.environment["SYNC_WORKER_TEST_FAILPOINTS"] = f"adopt_{place}=exit"
        killed = site.command("relay", "adopt", "--yes")
        assert killed.returncode == 137, f"{place}: {killed.stderr}"
        del site.environment["SYNC_WORKER_TEST_FAILPOINTS"]
        with site.connect() as connection:
            connection.execute("update relay_lease set expires_at = clock_timestamp()")
        if place == "finished":
            assert show(site)["fits"] is True
        else:
            with RunningRelay(site) as relay:
                assert "relay adopt" in str(relay.ended()), place
            with site.connect() as connection:
                connection.execute("update relay_lease set expires_at = clock_timestamp()")
            adopt(site)
        ends_well(site)
        assert versions(site, lost) == [1, 2]


def test_a_change_by_the_lms_is_waited_for_or_waits_and_follows_what_adopting_wrote(site: Site, tmp_path: Path) -> None:
    (before, meanwhile) = join(site, 2)
    publish(site)
    backup = Backup(site)
    for user in (before, meanwhile):
        edit(site, user, new_id())
    publish(site)
    backup.restore()
    hold = tmp_path / "hold"
    hold.touch()
    site.environment["SYNC_WORKER_TEST_FAILPOINTS"] = f"adopt_planned=hold:{hold}"
    done: list[Any] = []
    adopting = threading.Thread(target=lambda: done.append(site.command("relay", "adopt", "--yes")))
    with site.connect() as lms:
        lms.execute("begin")
        lms.execute(
            "insert into course_group_member (course_id, group_id, user_id) values (%s, %s, %s)",
            (COURSE, new_id(), before),
        )
        adopting.start()
        waits = (
            "select from pg_locks where not granted and relation = 'enrollment'::regclass and mode = 'ExclusiveLock'"
        )
        wait_for(lambda: site.query(waits), what="adopting to wait for the LMS")
        lms.execute("commit")
    wait_for(Path(f"{hold}.reached").exists, what="the plan")
    editing = threading.Thread(target=edit, args=(site, meanwhile, new_id()))
    editing.start()
    wait_for(
        lambda: site.query("select from pg_locks where not granted and mode = 'RowShareLock'"), what="the LMS to wait"
    )
    hold.unlink()
    for thread in (editing, adopting):
        thread.join(60)
    assert done[0].returncode == 0, done[0].stderr
    ends_well(site)
    assert versions(site, before) == [1, 2, 3]
    assert versions(site, meanwhile) == [1, 2, 3, 4]


def test_the_two_sides_are_compared_by_reading_each_of_them_once(site: Site) -> None:
    """By hash or merge, whatever is known of their sizes: a look-up per key would take hours for millions."""
    with closing(Adoption(site.database_url)) as adoption:
        adoption.load([Told(new_id(), new_id(), 0, 1, True, {}, (), False) for _ in range(2000)])
        adoption._session.execute(SQL["adopt_analyze"])
        plan = [row[0] for row in adoption._session.execute("explain " + SQL["adopt_plan"])]
    assert not [line for line in plan if "Nested Loop" in line], "\n".join(plan)
