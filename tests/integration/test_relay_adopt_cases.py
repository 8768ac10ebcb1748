"""`relay adopt` beside erased keys, other groups, dead letters and the LMS, and killed at every step (docs/adr/0007)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from sync_worker import failpoints
from sync_worker.operations.relaying import Adopting
from sync_worker.outbox.adopt import SQL, Adoption, Told
from tests.support.adopting import (
    COURSE,
    METHOD,
    SEGMENT,
    adopt,
    apply,
    edit,
    ends_well,
    join,
    publish_and_clean,
    show,
    versions,
)
from tests.support.facts import member, method, new_id
from tests.support.relay import RunningRelay, publish
from tests.support.sessions import Writer
from tests.support.site import Site, wait_for
from tests.support.went_back import Backup


@pytest.fixture
def site(site: Site) -> Site:
    """A site with a method that everybody of SEGMENT gets."""
    apply(site, METHOD)
    return site


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


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Makes failpoints of this process that hold until their file is gone."""
    held: dict[str, Path] = {}

    def make(place: str) -> Path:
        held[place] = tmp_path / place
        held[place].touch()
        failpoints.arm(",".join(f"{name}=hold:{path}" for name, path in held.items()))
        return held[place]

    yield make
    failpoints.arm("")
    for path in held.values():
        path.unlink(missing_ok=True)


def test_a_change_by_the_lms_is_waited_for_or_waits_and_follows_what_adopting_wrote(
    site: Site, hold: Callable[[str], Path]
) -> None:
    (before, meanwhile) = join(site, 2)
    publish(site)
    backup = Backup(site)
    for user in (before, meanwhile):
        edit(site, user, new_id())
    publish(site)
    backup.restore()
    read, planned = hold("adopt_read"), hold("adopt_planned")
    insert = "insert into course_group_member (course_id, group_id, user_id) values (%s, %s, %s)"
    waits = "select from pg_locks where not granted and relation = 'enrollment'::regclass and mode = %s"
    with ThreadPoolExecutor(2) as pool, closing(Adopting(site.settings)) as adopting:
        adopted = pool.submit(adopting.adopt, lambda _done, _total: None)
        wait_for(Path(f"{read}.reached").exists, what="what was told")
        with site.connect() as lms:
            lms.execute("begin")
            lms.execute(insert, (COURSE, new_id(), before))
            # The trigger has lowered it; a slow machine is no part of this.
            lms.execute("set local idle_in_transaction_session_timeout = 0")
            read.unlink()
            wait_for(lambda: site.query(waits, "ExclusiveLock"), what="adopting to wait for the LMS")
            lms.execute("commit")
        wait_for(Path(f"{planned}.reached").exists, what="the plan")
        editing = pool.submit(edit, site, meanwhile, new_id())
        wait_for(lambda: site.query(waits, "RowShareLock"), what="the LMS to wait for adopting")
        planned.unlink()
        editing.result(60)
        assert adopted.result(60).published == 2
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
