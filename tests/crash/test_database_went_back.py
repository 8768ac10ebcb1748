"""A database that went back or is another one, on real servers: the worker stops, and what docs/recovery.md says brings it to an end
where rows, facts and the last event of every key agree, and no version was ever said twice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

import psycopg
import pytest

from devstack import Stack
from tests.crash.conftest import SHORT_SESSION
from tests.model.events import Event
from tests.model.model import Model
from tests.model.traffic import random_history
from tests.support.check import assert_rows_equal_model
from tests.support.facts import member, method, new_id
from tests.support.kafka import KafkaRecord
from tests.support.servers import Server, move
from tests.support.site import Site, wait_for
from tests.support.went_back import (
    assert_last_events_are_the_rows,
    assert_versions_never_repeat_with_other_content,
    make_topic_anew,
)

DEADLINE_S = 150.0
# Servers made and started, and one worker after the other.
pytestmark = pytest.mark.timeout(900)
MakeServer = Callable[[str], Server]


@pytest.fixture
def log_is_kept(stack: Stack) -> Iterator[None]:
    """What a restored server reads of the log stays, also where a checkpoint comes meanwhile."""
    with psycopg.connect(stack.postgres.url(), autocommit=True) as owner:
        owner.execute("alter system set wal_keep_size = '1GB'")
        owner.execute("select pg_reload_conf()")
    yield
    with psycopg.connect(stack.postgres.url(), autocommit=True) as owner:
        owner.execute("alter system reset wal_keep_size")
        owner.execute("select pg_reload_conf()")


@pytest.fixture
def server(stack: Stack) -> Iterator[MakeServer]:
    servers: list[Server] = []

    def make(name: str) -> Server:
        servers.append(made := Server(stack, name))
        return made

    yield make
    for each in servers:
        each.discard()


class Story:
    """A history, half of it applied and published before something happens, and what the site must end as."""

    def __init__(self, site: Site, seed: int, events: int = 600) -> None:
        self.site = site
        self.history: list[Event] = list(
            random_history(seed, events=events, segments=4, users=40, methods_per_segment=2, courses=4)
        )
        self.told: list[KafkaRecord] = []
        self._at = 0

    def go_on(self, number: int) -> None:
        """So many more events, applied and published, by a worker that is gone afterwards."""
        worker = self.site.start_worker(batch_max_records="50")
        self.produce(number)
        self.site.wait_settled(DEADLINE_S)
        assert worker.terminate() == 0, worker.log()[-2000:]

    def produce(self, number: int) -> None:
        self.site.produce(self.history[self._at : self._at + number])
        self._at += number

    def stops_with(self, *reasons: str) -> None:
        """A worker stops by itself and names the command that helps."""
        worker = self.site.start_worker()
        assert worker.wait(DEADLINE_S) == 1, worker.log()[-2000:]
        stopped = worker.wait_for_event("stopped")
        assert stopped["kind"] == "FatalError"
        assert any(re.search(reason, stopped["reason"]) for reason in reasons), stopped["reason"]

    def command(self, *arguments: str, code: int = 0) -> str:
        done = self.site.command(*arguments)
        assert done.returncode == code, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    def misfit(self) -> str:
        shown = json.loads(self.command("relay", "show", "--json"))
        assert shown["fits"] is False
        return str(shown["misfit"])

    def adopt(self) -> dict[str, int]:
        """`relay adopt`, which does what it said it would."""
        said = json.loads(self.command("relay", "adopt", "--dry-run", "--json", code=3))
        done = json.loads(self.command("relay", "adopt", "--yes", "--json"))
        assert done["differences"] == said["differences"]
        assert json.loads(self.command("relay", "show", "--json"))["fits"] is True
        differences: dict[str, int] = done["differences"]
        return differences

    def catch_up(self) -> None:
        """Apply everything and publish nothing."""
        worker = self.site.start_worker("--without-relay")

        def caught_up() -> bool:
            status = self.site.status()
            return all(each["lag"] == 0 for each in status["lag"]) and not status["backfills"]

        wait_for(caught_up, DEADLINE_S, "catching up")
        assert worker.terminate() == 0, worker.log()[-2000:]

    def ends_well(self, *, from_any_version: bool = False) -> None:
        """The rest of the history, and the site is what the model says, also to whoever reads the topic."""
        site = self.site
        self.produce(len(self.history))
        site.start_worker()
        site.wait_settled(DEADLINE_S)
        model = Model()
        model.apply_batch(self.history)
        assert_rows_equal_model(site, model)
        records = site.records("changes")
        assert_last_events_are_the_rows(site, records, from_any_version=from_any_version)
        assert_versions_never_repeat_with_other_content(self.told + records)
        self.command("reconcile", "--dry-run")


@pytest.fixture
def story(make_site: Callable[..., Site]) -> Callable[[int], Story]:
    """Makes a story of a seed, on a site of its own."""
    return lambda seed: Story(make_site(kafka_properties=SHORT_SESSION), seed)


WENT_BACK = (r"relay adopt", r"the database went back")


def test_an_asynchronous_standby_promoted_with_transactions_lost(
    story: Callable[[int], Story], stack: Stack, server: MakeServer
) -> None:
    """Two sites in one failover: one is adopted at once, the other one catches up before."""
    at_once, gently = story(21), story(22)
    at_once.go_on(200)
    segment = new_id()
    people: list[Event] = [member(segment, new_id(), 1) for _ in range(40)]
    gently.history = [method(segment, new_id()), *people]
    gently.go_on(20)
    standby = server("standby")
    standby.back_up("--write-recovery-conf")
    standby.start()
    at_once.go_on(100)
    with psycopg.connect(stack.postgres.url(), autocommit=True) as primary:
        replayed = "select pg_last_wal_replay_lsn() >= '{}'::pg_lsn"
        now = primary.execute("select pg_current_wal_flush_lsn()::text").fetchone()
        assert now is not None
        wait_for(lambda: standby.ask(replayed.format(now[0])) == "True", what="the standby")
        # The network between the two goes; the primary lives on for a while, and acknowledges what only it knows.
        _disconnect(standby)
        wait_for(lambda: not primary.execute("select from pg_stat_replication").fetchall(), what="the separation")
    at_once.go_on(150)
    gently.go_on(15)
    told = len(gently.site.records("changes"))
    stack.postgres.kill()
    try:
        standby.ask("select pg_promote(true, 60)")
        standby.wait_for_primary()
        for each in (at_once, gently):
            move(each.site, standby)
            each.stops_with(*WENT_BACK)
            assert "Kafka's cursor stands at window" in each.misfit()

        differences = at_once.adopt()
        assert differences["published"] > 0
        at_once.stops_with(r"positions reset")
        at_once.command("positions", "reset", "--to", "database", "--yes")
        at_once.ends_well()

        gently.command("positions", "reset", "--to", "database", "--yes")
        gently.catch_up()
        assert gently.adopt()["published"] == 0
        assert len(gently.site.records("changes")) == told
        gently.ends_well()
        assert len(gently.site.records("changes")) == len(people)
    finally:
        for each in (at_once, gently):
            each.site.close()
        stack.postgres.start()


def _disconnect(standby: Server) -> None:
    with psycopg.connect(standby.url(), autocommit=True) as owner:
        owner.execute("alter system set primary_conninfo = ''")
        owner.execute("select pg_reload_conf()")


@pytest.mark.usefixtures("log_is_kept")
def test_a_base_backup_restored_to_a_point_in_time(
    story: Callable[[int], Story], stack: Stack, server: MakeServer
) -> None:
    told = story(23)
    told.go_on(100)
    restored = server("restored")
    restored.back_up()
    told.go_on(150)
    with psycopg.connect(stack.postgres.url(), autocommit=True) as primary:
        primary.execute("select pg_create_restore_point('before the accident')")
    told.go_on(150)
    with psycopg.connect(stack.postgres.url(), autocommit=True) as primary:
        primary.execute("select pg_switch_wal()")
    restored.recover_from(stack.directory / "postgres" / "data" / "pg_wal", "before the accident")
    restored.start()
    restored.wait_for_primary()
    move(told.site, restored)
    told.stops_with(*WENT_BACK)
    assert told.adopt()["published"] > 0
    told.command("positions", "reset", "--to", "database", "--yes")
    told.ends_well()


def test_a_database_dumped_and_restored_elsewhere_then_upgraded_with_events_waiting_each_time(
    story: Callable[[int], Story], stack: Stack, server: MakeServer
) -> None:
    told = story(24)
    site = told.site
    # Of the LMS's changes; the model knows nothing of these, so they come in pairs.
    told.go_on(300)
    _edit_in_vain(site)
    elsewhere, upgraded = server("elsewhere"), server("upgraded")
    elsewhere.initialize()
    elsewhere.start()
    name = site.database_url.rpartition("/")[2]
    elsewhere.run("pg_dump", "--format=custom", "--file", str(elsewhere.home / "dump"), site.database_url)
    elsewhere.create_database(name)
    elsewhere.run(
        "pg_restore",
        "--no-privileges",
        "--dbname",
        elsewhere.url(name),
        "--exit-on-error",
        str(elsewhere.home / "dump"),
    )
    waiting = site.query("select max(xid::text::bigint) as xid from outbox")[0]["xid"]
    assert waiting > int(elsewhere.ask("select pg_current_xact_id()")), (
        "the waiting rows' xids are no xids of the future"
    )
    move(site, elsewhere)
    told.stops_with("was written for the database system")
    differences = told.adopt()
    assert differences["waiting"] == 1
    assert differences["published"] == differences["repeated"] == 0
    told.go_on(100)

    _edit_in_vain(site)
    elsewhere.stop()
    upgraded.initialize()
    # As initdb left it, so that its own start and ours are the only ones.
    upgraded.run(
        "pg_upgrade",
        *("--old-bindir", str(elsewhere.programs), "--new-bindir", str(upgraded.programs)),
        *("--old-datadir", str(elsewhere.data), "--new-datadir", str(upgraded.data)),
        *("--username", "postgres", "--no-sync"),
    )
    upgraded.start()
    move(site, upgraded)
    told.stops_with("was written for the database system")
    assert told.adopt()["waiting"] == 1
    told.ends_well()
    events = [change.event for change in site.changes() if change.event["cause"]["type"] == "SQL"]
    assert len(events) == 4


def _edit_in_vain(site: Site) -> None:
    """The LMS puts somebody into a group and takes them out again: two changes that wait."""
    course, user = min(site.enrollments())
    place = (course, new_id(), user)
    with site.connect() as lms:
        lms.execute("insert into course_group_member (course_id, group_id, user_id) values (%s, %s, %s)", place)
        lms.execute("delete from course_group_member where course_id = %s and group_id = %s and user_id = %s", place)


def test_a_kafka_made_anew_and_later_only_its_cursor_topic(story: Callable[[int], Story]) -> None:
    told = story(25)
    told.go_on(300)
    told.told = told.site.records("changes")
    for topic in ("membership", "methods", "sources", "changes", "cursor", "dead_letters"):
        make_topic_anew(told.site, topic, 1 if topic == "cursor" else 3)
    told.stops_with("was made anew", "Kafka holds no cursor")
    everybody = len(told.site.query("select from enrollment where version > 0"))
    differences = told.adopt()
    # Of whom the outbox still holds the last events: it says these once more, as they were.
    assert differences["repeated"] + differences["waiting"] == everybody
    told.command("positions", "reset", "--to", "earliest", "--yes")
    told.go_on(200)
    make_topic_anew(told.site, "cursor")
    told.stops_with("Kafka holds no cursor")
    differences = told.adopt()
    assert differences == {**dict.fromkeys(differences, 0), "dropped": differences["dropped"]}
    told.ends_well(from_any_version=True)


def test_an_output_topic_lost_alone_is_filled_again_by_republish(story: Callable[[int], Story]) -> None:
    """Its cursor fits, so nothing stops; whoever deleted it knows."""
    told = story(26)
    told.go_on(300)
    told.told = told.site.records("changes")
    make_topic_anew(told.site, "changes", 3)
    told.command("republish")
    told.ends_well(from_any_version=True)
