"""The relay on a real Kafka: one leader, each window once, and a cursor that must fit the database (design §5)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]  # re-exported

from sync_worker import failpoints
from sync_worker.errors import FatalError, RetryableError
from sync_worker.kafka.broker import Broker
from sync_worker.outbox import cursor, term
from sync_worker.outbox.cursor import Cursor, read_cursor
from tests.model.events import Event
from tests.support.check import assert_changes_are_a_chain
from tests.support.facts import member, method, new_id
from tests.support.relay import RunningRelay, cursors, publish
from tests.support.sessions import Writer
from tests.support.site import Site, wait_for

SEGMENT = new_id()


@pytest.fixture
def writer(site: Site) -> Iterator[Writer]:
    """A session on a site with a method that everybody of SEGMENT gets."""
    with Writer(site.database_url) as opened:
        opened.batch(method(SEGMENT, new_id()))
        yield opened


@pytest.fixture
def arm() -> Iterator[Callable[[str], None]]:
    """Arms failpoints in this process."""
    yield failpoints.arm
    failpoints.arm("")


def joining(number: int) -> list[Event]:
    return [member(SEGMENT, new_id(), 1) for _ in range(number)]


# ── each window once ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_slow_transaction_is_published_once_though_its_relay_was_replaced_meanwhile(
    site: Site, writer: Writer
) -> None:
    with Writer(site.database_url) as slow:
        slow.begin(*joining(3))
        for _ in range(3):
            writer.batch(*joining(2))
            publish(site)
        assert len(site.changes()) == 6
        slow.commit()
    publish(site)
    assert assert_changes_are_a_chain(site) == 9
    assert [each["complete"] for each in cursors(site)] == [True] * 4


@pytest.mark.parametrize(
    "place", ["relay_fenced", "relay_due", "relay_window_opened", "relay_publishing", "relay_committed", "relay_marked"]
)
def test_a_relay_that_fails_at_any_point_publishes_each_window_once(
    site: Site, writer: Writer, arm: Callable[[str], None], place: str
) -> None:
    with Writer(site.database_url) as slow:
        slow.begin(*joining(2))
        writer.batch(*joining(3))
        arm(f"{place}=fail@1")
        with RunningRelay(site) as relay:
            relay.wait_until_published()
            slow.commit()
            writer.batch(*joining(1))
            relay.wait_until_published()
    assert assert_changes_are_a_chain(site) == 6
    numbers = [each["window"] for each in cursors(site)]
    assert numbers == sorted(set(numbers))


def test_a_window_larger_than_a_kafka_transaction_goes_in_several_and_a_failure_between_them_repeats_none(
    site: Site, writer: Writer, arm: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(term, "ROWS_PER_TRANSACTION", 100)
    writer.batch(*joining(450))
    arm("relay_committed=fail@2")
    publish(site)
    assert assert_changes_are_a_chain(site) == 450
    parts = [(each["window"], each["complete"]) for each in cursors(site)]
    assert parts == [(1, False)] * 4 + [(1, True)]
    assert site.query("select published from relay_window") == [{"published": True}]
    writer.batch(*joining(1))
    publish(site)
    assert assert_changes_are_a_chain(site) == 451


def test_a_window_of_exactly_as_many_rows_as_a_kafka_transaction_ends_complete(
    site: Site, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(term, "ROWS_PER_TRANSACTION", 100)
    writer.batch(*joining(200))
    publish(site)
    assert assert_changes_are_a_chain(site) == 200
    assert [each["complete"] for each in cursors(site)] == [False, True]


def test_a_window_that_turned_out_empty_is_published_as_such_and_numbered(site: Site, writer: Writer) -> None:
    with site.connect() as connection:
        connection.execute("""
            insert into relay_window (number, from_snapshot, to_snapshot, system_identifier)
            select 1, '3:3:', '3:3:', system_identifier from pg_control_system()""")
    publish(site)
    writer.batch(*joining(1))
    publish(site)
    assert [(each["window"], each["last_id"], each["complete"]) for each in cursors(site)] == [
        (1, 0, True),
        (2, 1, True),
    ]
    assert assert_changes_are_a_chain(site) == 1


def test_the_outbox_is_emptied_after_publishing_and_only_two_windows_are_kept(site: Site, writer: Writer) -> None:
    with RunningRelay(site) as relay:
        for _ in range(4):
            writer.batch(*joining(5))
            relay.wait_until_published()
        wait_for(lambda: not site.query("select from outbox"), what="the clean-up")
    assert len(site.query("select from relay_window")) <= 2
    assert assert_changes_are_a_chain(site) == 20


# ── one leader ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_leader_that_froze_in_front_of_its_publication_is_fenced_by_its_successor(
    site: Site, writer: Writer, arm: Callable[[str], None], tmp_path: Path
) -> None:
    hold = tmp_path / "hold"
    hold.touch()
    arm(f"relay_publishing=hold:{hold}@1")
    writer.batch(*joining(5))
    with RunningRelay(site, "the former leader") as former:
        wait_for(Path(f"{hold}.reached").exists, what="the publication")
        with RunningRelay(site, "the successor") as successor:
            _let_the_lease_run_out(site)
            successor.wait_until_published()
            assert assert_changes_are_a_chain(site) == 5
            hold.unlink()
            writer.batch(*joining(5))
            successor.wait_until_published()
            former.wait_until_published()
    assert assert_changes_are_a_chain(site) == 10
    numbers = [each["window"] for each in cursors(site)]
    assert numbers == [1, 2]


def test_two_relays_that_take_the_lease_from_one_another_all_the_time_publish_everything_once(
    site: Site, writer: Writer
) -> None:
    with RunningRelay(site, "one") as one, RunningRelay(site, "other"):
        for _ in range(4):
            writer.batch(*joining(5))
            _let_the_lease_run_out(site, "nobody")
            writer.batch(*joining(5))
            one.wait_until_published()
    assert assert_changes_are_a_chain(site) == 40


def _let_the_lease_run_out(site: Site, holder: str | None = None) -> None:
    with site.connect() as connection:
        connection.execute(
            "update relay_lease set expires_at = clock_timestamp(), holder = coalesce(%s, holder)", (holder,)
        )


# ── a cursor that doesn't fit ───────────────────────────────────────────────────────────────────────────────────────

MISFITS = {
    "a backup from before the first window": "delete from relay_window",
    "a backup from before the last window": "delete from relay_window where number = (select max(number) from relay_window)",
    "a backup from several windows ago": "update relay_window set number = number - 5",
    "a dump restored on another system": "update relay_window set system_identifier = 1",
    "windows that Kafka never heard of": "update relay_window set number = number + 2",
    "a published window that Kafka never heard of": """
        update relay_window set number = number + 1, published = true where number = (select max(number) from relay_window)""",
}


def test_a_database_that_does_not_fit_kafkas_cursor_stops_the_relay_and_nothing_is_published(
    site: Site, writer: Writer
) -> None:
    for _ in range(3):
        writer.batch(*joining(1))
        publish(site)
    with site.connect() as connection:
        connection.execute("create table kept as select * from relay_window")
        writer.batch(*joining(1))
        for misfit, statement in MISFITS.items():
            connection.execute(statement)
            with RunningRelay(site) as relay:
                error = relay.ended()
            assert isinstance(error, FatalError), misfit
            assert "`sync-worker relay show`" in str(error), misfit
            assert "`sync-worker relay adopt`" in str(error), misfit
            connection.execute("update relay_lease set expires_at = clock_timestamp()")
            connection.execute("truncate relay_window; insert into relay_window select * from kept")
    assert len(site.changes()) == 3
    publish(site)
    assert assert_changes_are_a_chain(site) == 4


def test_a_kafka_without_the_cursor_stops_a_worker_that_has_published_before(site: Site, writer: Writer) -> None:
    writer.batch(*joining(1))
    publish(site)
    admin = AdminClient({"bootstrap.servers": site.stack.kafka.bootstrap_servers})
    for future in admin.delete_topics([site.topic("cursor")]).values():
        future.result(60)
    wait_for(lambda: site.topic("cursor") not in admin.list_topics(timeout=60).topics, what="the topic's end")
    for future in admin.create_topics([NewTopic(site.topic("cursor"), 1, 1)]).values():
        future.result(60)
    wait_for(lambda: site.topic("cursor") in admin.list_topics(timeout=60).topics, what="the topic")
    worker = site.start_worker()
    assert worker.wait(120) == 1
    assert "the database has published up to window 1, but Kafka holds no cursor" in worker.log()
    assert "relay adopt" in worker.log()


def another_groups(site: Site) -> Producer:
    """The broker ends none of its transactions, however long a test takes."""
    config: dict[str, Any] = {"bootstrap.servers": site.stack.kafka.bootstrap_servers}
    return Producer(config | {"transactional.id": f"other-{new_id()}", "transaction.timeout.ms": 600_000})


def test_another_groups_open_transaction_on_the_cursor_topic_hides_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tried again by a relay, and by nobody here.
    monkeypatch.setattr(cursor, "READ_TIMEOUT_S", 150.0)
    topic, broker = site.topic("cursor"), Broker(site.settings, timeout_s=60)
    other = another_groups(site)
    own = Producer({"bootstrap.servers": site.stack.kafka.bootstrap_servers})
    other.init_transactions(60)
    other.begin_transaction()
    other.produce(topic, Cursor(7, 7, True, "1").to_bytes(), b"another group", partition=0)
    assert other.flush(60) == 0
    own.produce(topic, Cursor(1, 1, True, "1").to_bytes(), site.settings.consumer_group, partition=0)
    assert own.flush(60) == 0
    found: list[Cursor | None] = []
    config: dict[str, Any] = site.settings.kafka_client_config()
    reading = threading.Thread(
        target=lambda: found.append(read_cursor(broker, config, topic, site.settings.consumer_group))
    )
    reading.start()
    reading.join(1.0)
    assert not found, "it answered before it could see everything"
    other.commit_transaction(60)
    reading.join(150)
    assert found == [Cursor(1, 1, True, "1")]


def test_a_transaction_that_never_ends_is_waited_for_and_said(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    topic, group = site.topic("cursor"), site.settings.consumer_group
    broker, other = Broker(site.settings, timeout_s=60), another_groups(site)
    other.init_transactions(60)
    other.begin_transaction()
    other.produce(topic, Cursor(1, 1, True, "1").to_bytes(), group, partition=0)
    assert other.flush(60) == 0
    config: dict[str, Any] = site.settings.kafka_client_config()
    with monkeypatch.context() as patch:
        patch.setattr(cursor, "READ_TIMEOUT_S", 2.0)
        with pytest.raises(RetryableError, match=r"not readable up to its end 1, (.*)docs/runbook.md"):
            read_cursor(broker, config, topic, group)
    other.abort_transaction(60)
    assert read_cursor(broker, config, topic, group) is None
