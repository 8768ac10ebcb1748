"""The main job at scale, seen from outside: each change once, in order, without a gap, also with workers killed all the time.

A short version by default; SYNC_WORKER_ACCEPTANCE_EVENTS=200000 runs the acceptance line of the project. It must never
take the worker's word for anything: inputs come from the model's traffic, and outputs are read by fastavro and SQL.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any
from uuid import NAMESPACE_DNS, uuid4, uuid5

import fastavro
import pytest
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaError, TopicPartition
from confluent_kafka.admin import AdminClient

from devstack import Stack
from sync_worker.database.migrate import migrate
from sync_worker.failpoints import KILLED
from tests.model.events import Event, MembershipChanged
from tests.model.model import Model
from tests.model.traffic import random_history
from tests.support.check import ABSENT, assert_rows_equal_model, state_of
from tests.support.kafka import wait_until_ended
from tests.support.site import Site, wait_for
from tests.support.wire import SCHEMAS, prefix

MEMBERSHIP_EVENTS = int(os.environ.get("SYNC_WORKER_ACCEPTANCE_EVENTS", "10000"))
WHOLE = MEMBERSHIP_EVENTS >= 200_000
SEGMENTS, METHODS_PER_SEGMENT = 100, 5
KILL_EVERY_S = 5.0
PORTIONS = 8 if WHOLE else 4
SETTLE_TIMEOUT_S = 900.0 if WHOLE else 240.0
# A dead member holds up its group for the length of a session. With a shorter one, a busy machine loses members that are alive.
SESSION_S = 3.0
FACTS = ("membership", "method", "source", "enrollment")

pytestmark = pytest.mark.timeout(3600 if WHOLE else 1200)


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """Durable, and with a broker that allows short sessions."""
    with Stack.start(kafka_properties={"group.min.session.timeout.ms": "500"}) as running:
        yield running


@pytest.fixture(scope="module")
def history() -> list[Event]:
    # Of all events a share are memberships; the others are sources, suspensions and methods.
    events = int(MEMBERSHIP_EVENTS / 0.85) + 2 * SEGMENTS * METHODS_PER_SEGMENT
    made = random_history(
        3,
        events=events,
        segments=SEGMENTS,
        users=max(150, MEMBERSHIP_EVENTS // 200),
        methods_per_segment=METHODS_PER_SEGMENT,
    )
    assert sum(isinstance(event, MembershipChanged) for event in made) >= MEMBERSHIP_EVENTS * 0.98
    return made


@pytest.fixture(scope="module")
def model(history: list[Event]) -> Model:
    """Where the history ends, in whatever batches it is applied."""
    model = Model()
    model.apply_batch(history)
    return model


@pytest.fixture
def busy_site(stack: Stack, tmp_path: Path) -> Iterator[Site]:
    url = stack.postgres.create_database(f"acceptance_{uuid4().hex[:8]}")
    migrate(url)
    properties = {"session.timeout.ms": int(SESSION_S * 1000), "heartbeat.interval.ms": int(SESSION_S * 150)}
    site = Site(stack, url, tmp_path, {"SYNC_WORKER_KAFKA_PROPERTIES": json.dumps(properties)})
    site.create_topics(6)
    yield site
    site.close()


def test_two_workers_end_in_the_models_state_publish_each_change_once_and_a_replay_changes_nothing(
    busy_site: Site, history: list[Event], model: Model
) -> None:
    busy_site.produce(history)
    with said("applied and published"):
        start_workers(busy_site)
        busy_site.wait_settled(SETTLE_TIMEOUT_S)
    assert_rows_equal_model(busy_site, model)
    changes = assert_each_change_once(busy_site)
    stop_workers(busy_site)
    assert_replay_changes_nothing(busy_site, changes)


def test_the_same_holds_while_a_random_worker_is_killed_every_few_seconds(
    busy_site: Site, history: list[Event], model: Model
) -> None:
    with said("applied and published beside the kills"), killing(busy_site, Random(5)) as kills:
        for portion in portions_of(history, PORTIONS):
            busy_site.produce(portion)
            seen = len(kills)
            wait_for(lambda seen=seen: len(kills) > seen, 180, "a kill")  # type: ignore[misc]  # bound at once
        if WHOLE:
            busy_site.wait_settled(SETTLE_TIMEOUT_S)
    busy_site.wait_settled(SETTLE_TIMEOUT_S)
    print(f"{len(kills)} kills")
    assert len(kills) >= PORTIONS
    assert_rows_equal_model(busy_site, model)
    changes = assert_each_change_once(busy_site)
    stop_workers(busy_site)
    assert_replay_changes_nothing(busy_site, changes)


def test_a_relay_killed_between_kafkas_commit_and_its_own_mark_leaves_nothing_to_wait_for(busy_site: Site) -> None:
    busy_site.produce(random_history(4, events=200, segments=2, users=20, methods_per_segment=1, courses=2))
    assert busy_site.start_worker(failpoints="relay_committed=exit").wait(SETTLE_TIMEOUT_S) == KILLED
    busy_site.start_worker()
    busy_site.wait_settled()
    assert_each_change_once(busy_site)


# the workers


def start_workers(site: Site, number: int = 2) -> None:
    for _ in range(number):
        site.start_worker()


def stop_workers(site: Site) -> None:
    for worker in site.workers:
        if worker.process.poll() is None:
            assert worker.terminate() == 0, worker.log()[-3000:]


@contextmanager
def killing(site: Site, random: Random) -> Iterator[list[float]]:
    """Two workers, one of which dies every few seconds and is started anew; when each died."""
    kills: list[float] = []
    enough = threading.Event()

    def go_on() -> None:
        while not enough.wait(KILL_EVERY_S):
            victim = random.choice([worker for worker in site.workers if worker.process.poll() is None])
            victim.kill()
            kills.append(time.monotonic())
            site.start_worker()

    start_workers(site)
    with ThreadPoolExecutor(1) as pool:
        killer = pool.submit(go_on)
        try:
            yield kills
        finally:
            enough.set()
    killer.result()


def portions_of(events: Sequence[Event], number: int) -> list[Sequence[Event]]:
    size = -(-len(events) // number)
    return [events[start : start + size] for start in range(0, len(events), size)]


# what came of it


def assert_replay_changes_nothing(site: Site, changes: int) -> None:
    """All input once more: positions set back in the database and in Kafka, as `positions reset` would while nobody works."""
    before = rows_by_hand(site)
    set_positions_back(site)
    start_workers(site)
    with said("replayed"):
        site.wait_settled(SETTLE_TIMEOUT_S)
    stop_workers(site)
    assert rows_by_hand(site) == before
    assert sum(1 for _ in change_records(site)) == changes


def set_positions_back(site: Site) -> None:
    with site.connect() as session:
        positions = session.execute("select topic, partition, next_offset from position").fetchall()
        assert sum(row["next_offset"] for row in positions) > MEMBERSHIP_EVENTS
        session.execute("update position set next_offset = 0")
    starts = [TopicPartition(row["topic"], row["partition"], 0) for row in positions]
    group = ConsumerGroupTopicPartitions(site.settings.consumer_group, starts)
    admin = AdminClient({"bootstrap.servers": site.stack.kafka.bootstrap_servers})
    # The broker refuses while it still counts somebody as a member: the killed ones, for a session's length.
    empty = admin.describe_consumer_groups([group.group_id])[group.group_id]
    wait_for(
        lambda: not admin.describe_consumer_groups([group.group_id])[group.group_id].result(60).members,
        120,
        "an empty group",
    )
    assert empty.result(60).group_id == group.group_id
    altered = admin.alter_consumer_group_offsets([group])[group.group_id].result(60)
    assert all(where.error is None for where in altered.topic_partitions)


def rows_by_hand(site: Site) -> dict[str, tuple[int, str]]:
    """Number and digest of the rows of each table, with the transaction that wrote each: a row written again is a change."""
    digests = {}
    with site.connect() as session:
        for table in FACTS:
            digest = "md5(string_agg(md5(t::text || t.xmin || t.ctid), '' order by t.ctid))"
            row = session.execute(f"select count(*) as rows, {digest} as digest from {table} t").fetchone()
            assert row is not None
            digests[table] = (row["rows"], row["digest"])
    return digests


def assert_each_change_once(site: Site) -> int:
    """Per key: versions 1, 2, 3 … in the order of the topic, before = the previous after, the last = the row; how many."""
    reader = ChangeReader()
    last: dict[bytes, tuple[int, int, bytes]] = {}
    with said("changes read and checked"):
        for partition, key, value in change_records(site):
            head, before_matches, after = reader.read(value, last[key][2] if key in last else reader.absent)
            version, home, _ = last.get(key, (0, partition, b""))
            assert key.decode() == f"{head['course_id']}:{head['user_id']}"
            assert head["version"] == version + 1, f"{key!r}: version {head['version']} where {version + 1} was due"
            assert head["event_id"] == str(uuid5(NAMESPACE, f"{key.decode()}:{version + 1}"))
            assert before_matches, f"{key!r} version {version + 1}: before is not the previous after"
            assert partition == home
            last[key] = (version + 1, partition, after)
    rows = {f"{course}:{user}".encode(): row for (course, user), row in site.enrollments().items()}
    for key, (version, _, after) in last.items():
        row = rows.pop(key, None)
        assert reader.states[after] == (ABSENT if row is None else state_of(row)), (
            f"{key!r}: the last event is not the row"
        )
        assert row is None or row["version"] == version
    assert not rows, f"{len(rows)} rows without an event, e.g. {next(iter(rows))!r}"
    number = sum(version for version, _, _ in last.values())
    print(f"{number} changes of {len(last)} keys, {len(reader.states)} different states")
    return number


NAMESPACE = uuid5(NAMESPACE_DNS, "user-segment-sync")


class ChangeReader:
    """EnrollmentChanged by fastavro, a million of them: in parts, so that equal states are read as one and compared as bytes."""

    def __init__(self) -> None:
        schema = plain(json.loads((SCHEMAS / "EnrollmentChanged.avsc").read_text("utf-8")))
        fields = {field["name"]: field for field in schema["fields"]}
        names = list(fields)
        assert names[6:] == ["before", "after", "cause"]
        self._head = fastavro.parse_schema(
            {"type": "record", "name": "Head", "fields": [fields[name] for name in names[:6]]}
        )
        self._state = fastavro.parse_schema(fields["before"]["type"])
        self._cause = fastavro.parse_schema(fields["cause"]["type"])
        self._prefix = prefix("EnrollmentChanged")
        buffer = BytesIO()
        fastavro.schemaless_writer(buffer, self._state, ABSENT)
        self.absent = buffer.getvalue()
        self.states: dict[bytes, dict[str, Any]] = {self.absent: ABSENT}

    def read(self, value: bytes, before: bytes) -> tuple[dict[str, Any], bool, bytes]:
        """The first fields; whether `before` is the bytes of its before; the bytes of its after."""
        assert value.startswith(self._prefix)
        stream = BytesIO(value)
        stream.seek(len(self._prefix))
        head: Any = fastavro.schemaless_reader(stream, self._head, None)
        start = stream.tell()
        if not value.startswith(before, start):
            return head, False, b""
        start += len(before)
        stream.seek(start)
        state: Any = fastavro.schemaless_reader(stream, self._state, None)
        after = value[start : stream.tell()]
        assert after != before
        self.states.setdefault(after, state)
        fastavro.schemaless_reader(stream, self._cause, None)
        assert stream.tell() == len(value)
        return head, True, after


def plain(schema: Any) -> Any:
    """A schema without logical types: ids stay text, times numbers."""
    if isinstance(schema, dict):
        return {name: plain(value) for name, value in schema.items() if name != "logicalType"}
    return [plain(item) for item in schema] if isinstance(schema, list) else schema


def change_records(site: Site) -> Iterator[tuple[int, bytes, bytes]]:
    """(partition, key, value) of every committed EnrollmentChanged, in order per partition."""
    topic = site.topic("changes")
    consumer = Consumer(
        {
            "bootstrap.servers": site.stack.kafka.bootstrap_servers,
            "group.id": f"reader-{uuid4().hex}",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
        }
    )
    try:
        unfinished = set(consumer.list_topics(topic, 60).topics[topic].partitions)
        wait_until_ended(site.stack.kafka.bootstrap_servers, topic, unfinished)
        consumer.assign([TopicPartition(topic, partition, 0) for partition in unfinished])
        while unfinished:
            for message in consumer.consume(10_000, 0.5):
                error = message.error()
                if error is None:
                    yield message.partition(), message.key(), message.value()  # type: ignore[misc]  # a record has all three
                else:
                    assert error.code() == KafkaError._PARTITION_EOF, error
                    unfinished.discard(message.partition())
    finally:
        consumer.close()


@contextmanager
def said(what: str) -> Iterator[None]:
    """Print how long something took; pytest shows it with -s, and when the test fails."""
    started = time.monotonic()
    yield
    print(f"{what} in {time.monotonic() - started:.1f} s")
