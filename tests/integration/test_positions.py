"""Exactly once in: positions in PostgreSQL, moved by compare-and-set in the transaction that applies the records (design §4)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions  # type: ignore[attr-defined]  # re-exported

from sync_worker.errors import FatalError, RetryableError
from sync_worker.events import Partition, RecordName
from sync_worker.intake import positions
from sync_worker.intake.positions import PositionsMoved
from sync_worker.kafka.broker import Broker, partitions_of
from sync_worker.loops import checkpoint
from sync_worker.loops.checkpoint import Outcome
from tests.model.events import Event, to_record
from tests.model.model import Model
from tests.model.traffic import random_history
from tests.support.check import assert_changes_are_a_chain, assert_site_equals_model
from tests.support.facts import ANYWHERE, member, method, new_id, records_of
from tests.support.sessions import WAIT_S, Writer, assert_ends_as, wait_until_blocked
from tests.support.site import Site, wait_for
from tests.support.wire import encode

MakeWriter = Callable[..., Writer]


@pytest.fixture
def database(make_site: Callable[..., Site]) -> Site:
    """Only a database, with one partition that stands at 0."""
    site = make_site(topics=False)
    with site.connect() as connection:
        connection.execute("insert into position (topic, partition, next_offset) values ('anywhere', 0, 0)")
    return site


def _history(events: int = 400) -> list[Event]:
    return random_history(3, events=events, segments=4, users=40, methods_per_segment=2, courses=4)


def _is_the_models(site: Site, history: list[Event]) -> int:
    model = Model()
    model.apply_batch(history)
    return assert_site_equals_model(site, model)


# ── compare and set ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_of_two_workers_with_the_same_records_one_applies_them_and_the_other_drops_its_batch(database: Site) -> None:
    batch: list[Event] = [member(segment := new_id(), new_id(), 1)]
    enabled = method(segment, new_id())
    with Writer(database.database_url) as one, Writer(database.database_url) as other:
        one.batch(enabled)

        def work(outcome: Outcome, writer: Writer, stop_before: str = "") -> object:
            return writer.start(
                lambda session: checkpoint.commit(session, records_of(batch), {ANYWHERE: 0}, outcome),
                stop_before=stop_before,
            )

        won, lost = Outcome(), Outcome()
        work(won, one, stop_before="converge")
        one.wait_until_stopped()
        work(lost, other)
        wait_until_blocked(database, other)
        one.go_on()
        with pytest.raises(PositionsMoved):
            wait_for(other.ended, WAIT_S, "the other one's end")
        wait_for(one.ended, WAIT_S, "the first one's end")
    assert (won.transactions, lost.transactions) == (1, 0)
    assert database.query("select next_offset from position") == [{"next_offset": 1}]
    assert_ends_as(database, [enabled], batch)


@pytest.mark.parametrize("at", [-1, 1])
def test_a_position_that_is_not_where_the_batch_begins_lets_nothing_through(database: Site, at: int) -> None:
    with database.connect() as connection:
        connection.execute("update position set next_offset = next_offset + %s", (at,))
    with Writer(database.database_url) as one:
        batch: list[Event] = [member(new_id(), new_id(), 1)]
        running = one.start(lambda session: checkpoint.commit(session, records_of(batch), {ANYWHERE: 0}, Outcome()))
        with pytest.raises(PositionsMoved):
            running.result(WAIT_S)
    assert database.query("select from membership") == []


def test_positions_of_several_partitions_move_together_or_not_at_all(database: Site) -> None:
    other = Partition("anywhere", 1)
    with database.connect() as connection:
        connection.execute("insert into position (topic, partition, next_offset) values ('anywhere', 1, 5)")
    batch = records_of([member(new_id(), new_id(), 1)]) + records_of([member(new_id(), new_id(), 1)], other)
    with Writer(database.database_url) as one:
        running = one.start(lambda session: checkpoint.commit(session, batch, {ANYWHERE: 0, other: 0}, Outcome()))
        with pytest.raises(PositionsMoved):
            running.result(WAIT_S)
    assert [row["next_offset"] for row in database.query("select next_offset from position order by partition")] == [
        0,
        5,
    ]


# ── a retry is right ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "place",
    ["after_positions", "after_rows", "before_commit", "after_commit"],
    ids=lambda place: place.replace("_", " "),
)
def test_a_batch_that_fails_anywhere_is_tried_again_and_applied_once(site: Site, place: str) -> None:
    history = _history(200)
    site.produce(history)
    # In batches so small that there is a second one, whatever of it is fetched at once.
    worker = site.start_worker(batch_max_records="20", failpoints=f"{place}=fail@2")
    site.wait_settled()
    _is_the_models(site, history)
    assert any(f"failpoint {place}" in line["reason"] for line in worker.events("waiting"))


def test_batches_whose_connections_are_cut_are_applied_once(site: Site) -> None:
    history = _history(600)
    hold = site.directory / "hold"
    hold.touch()
    worker = site.start_worker(batch_max_records="20", failpoints=f"before_commit=hold:{hold}@2")

    def cut() -> bool:
        return bool(
            site.query("""
            select pg_terminate_backend(pid) from pg_stat_activity
            where datname = current_database() and application_name = 'sync-worker apply'""")
        )

    for start in range(0, len(history), 150):
        site.produce(history[start : start + 150])
        if start == 0:
            wait_for((site.directory / "hold.reached").exists, what="a transaction about to commit")
            # PostgreSQL may have been quicker: a worker's transaction may idle for two seconds.
            cut()
            hold.unlink()
        else:
            wait_for(cut, what="a session to cut")
    site.wait_settled()
    assert worker.events("database_away")
    _is_the_models(site, history)


# ── split groups ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_two_workers_of_different_groups_on_one_database_end_right(site: Site) -> None:
    history = _history(600)
    first = site.start_worker(batch_max_records="30")
    first.wait_for_event("relay_leads")
    # It never publishes: a relay of the other group, which gets the lease where the first one stands still, finds no cursor and stops.
    other_group = f"other-{site.settings.consumer_group}"
    second = site.start_worker("--without-relay", batch_max_records="30", consumer_group=other_group)
    second.wait_for_event("partition_started")
    for start in range(0, len(history), 100):
        site.produce(history[start : start + 100])
    site.wait_settled()
    _is_the_models(site, history)
    assert (first.terminate(), second.process.poll()) == (0, None)


# ── positions set back ──────────────────────────────────────────────────────────────────────────────────────────────


def _facts_and_rows(site: Site) -> list[object]:
    return [
        site.query(f"select t.*, xmin from {table} t order by t::text")
        for table in ("membership", "method", "source", "enrollment")
    ]


def test_the_whole_input_read_again_changes_no_row_and_publishes_nothing(site: Site) -> None:
    history = _history()
    worker = site.start_worker()
    site.produce(history)
    site.wait_settled()
    assert worker.terminate() == 0
    before, changes = _facts_and_rows(site), site.changes()
    with site.connect() as connection:
        connection.execute("update position set next_offset = 0")
    _set_back_in_kafka(site)
    site.start_worker()
    site.wait_settled()
    assert _facts_and_rows(site) == before
    assert site.changes() == changes
    _is_the_models(site, history)


def test_positions_set_back_under_a_running_worker_stop_it_until_kafkas_are_set_back_too(site: Site) -> None:
    history = _history()
    worker = site.start_worker()
    site.produce(history[:300])
    site.wait_settled()
    broker, group = Broker(site.settings, timeout_s=60), site.settings.consumer_group
    inputs = partitions_of(broker.topics(site.settings.input_topics))
    # By which it knows that they were set back; it says so to Kafka only now and then.
    wait_for(lambda: any(broker.committed(group, inputs).values()), what="positions that Kafka was told of")
    with site.connect() as connection:
        connection.execute("update position set next_offset = 0 where next_offset > 0")
    site.produce(history[300:])
    assert worker.wait(120) == 1
    assert "positions reset" in worker.log()
    changes = site.changes()
    _set_back_in_kafka(site)
    site.start_worker()
    site.wait_settled()
    assert len(site.changes()) >= len(changes)
    _is_the_models(site, history)


def _set_back_in_kafka(site: Site) -> None:
    """As `kafka-consumer-groups --reset-offsets`: possible once the group has no members, or has missed the last one."""
    admin = AdminClient({"bootstrap.servers": site.stack.kafka.bootstrap_servers})
    group = site.settings.consumer_group
    where = [TopicPartition(topic, number, 0) for topic in site.settings.input_topics for number in range(3)]

    def is_set() -> bool:
        (future,) = admin.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(group, where)]).values()
        try:
            future.result(60)
        except KafkaException:
            return False
        return True

    wait_for(is_set, what="a group without members")


# ── where a partition starts ────────────────────────────────────────────────────────────────────────────────────────


def test_an_aborted_and_a_committed_transaction_of_a_publisher_settle_to_the_last_control_record(site: Site) -> None:
    enabled = method(new_id(), new_id())
    site.start_worker()
    producer = Producer(
        {"bootstrap.servers": site.stack.kafka.bootstrap_servers, "transactional.id": f"publisher-{new_id()}"}
    )
    producer.init_transactions(60)
    sent: list[Event] = [enabled, *(member(enabled.segment_id, new_id(), 1) for _ in range(3))]
    for end in (producer.commit_transaction, producer.abort_transaction):
        producer.begin_transaction()
        for event in sent:
            name, fields = to_record(event)
            topic = site.topic("methods" if event is enabled else "membership")
            producer.produce(topic, encode(RecordName(name), fields), new_id(), partition=0)
        producer.flush(60)
        end(60)
        sent = [member(enabled.segment_id, new_id(), 1)]
    site.wait_settled()
    assert assert_changes_are_a_chain(site) == 3
    # Whoever aborts is answered before the record that says so is in the topic.
    broker, membership = Broker(site.settings, timeout_s=60), Partition(site.topic("membership"), 0)
    where = "select next_offset from position where topic = %s and partition = 0"
    wait_for(
        lambda: (
            [*broker.end([membership]).values()] == [row["next_offset"] for row in site.query(where, membership.topic)]
        ),
        what="the position behind the last control record",
    )


def test_a_new_topic_starts_at_its_earliest_record_and_a_partition_that_comes_later_at_its_first(site: Site) -> None:
    topic, admin = site.topic("membership"), AdminClient({"bootstrap.servers": site.stack.kafka.bootstrap_servers})
    for _ in range(5):
        site.produce_raw("membership", b"x", partition=0)
    for future in admin.delete_records([TopicPartition(topic, 0, 3)]).values():
        future.result(60)
    broker, group = Broker(site.settings, timeout_s=60), site.settings.consumer_group
    first = [Partition(topic, number) for number in range(3)]
    with Writer(site.database_url) as one:
        assert positions.establish(one.session, broker, group, first) == dict(zip(first, (3, 0, 0), strict=True))
        for future in admin.create_partitions([NewPartitions(topic, 5)]).values():
            future.result(60)
        later = [Partition(topic, 3), Partition(topic, 4)]
        wait_for(lambda: broker.topics([topic])[topic].partitions == 5, what="the partitions")

        def establish() -> dict[Partition, int]:
            try:
                return positions.establish(one.session, broker, group, later[:1])
            except RetryableError:
                return {}  # the new partition has no leader yet

        assert wait_for(establish, what="an answer") == {later[0]: 0}
        late = Producer({"bootstrap.servers": site.stack.kafka.bootstrap_servers})
        late.produce(topic, b"x", partition=4)
        assert late.flush(60) == 0
        fresh = AdminClient({"bootstrap.servers": site.stack.kafka.bootstrap_servers})
        for future in fresh.delete_records([TopicPartition(topic, 4, 1)]).values():
            future.result(60)
        with pytest.raises(FatalError, match="positions reset"):
            positions.establish(one.session, broker, group, later[1:])
