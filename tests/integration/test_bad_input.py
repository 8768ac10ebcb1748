"""Records that can never be applied: each becomes one dead letter, bytes unchanged, and what is around it is applied.

All of it seen from outside, on a real worker: the dead-letter topic, the public views, EnrollmentChanged, status, metrics
and log. The good records around each bad one are in the same partition, and in the model that the site must equal.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from typing import Any
from uuid import uuid4

import fastavro
import httpx
import pytest
from confluent_kafka import KafkaError, Message, Producer
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # re-exported
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from devstack import Stack
from sync_worker.events import NAMESPACE
from tests.model.events import (
    Event,
    MembershipChanged,
    MethodChanged,
    SourceChanged,
    SuspensionChanged,
    key_of,
    to_record,
    topic_of,
)
from tests.model.model import Model
from tests.support.check import assert_site_equals_model
from tests.support.databases import copy_database, drop_database
from tests.support.kafka import KafkaRecord
from tests.support.site import Site, WorkerProcess, wait_for
from tests.support.wire import encode, prefix, schema

Headers = list[tuple[str, bytes | None]]

NOW = 1_767_225_600_000_000
PARTITION = 1
TOPICS = {"segments.membership": "membership", "enrollment.methods": "methods", "enrollment.sources": "sources"}
# Whatever stands here must come back as it is: repeated, empty, null and not UTF-8.
OWN_HEADERS: Headers = [
    ("ce_id", b"0b0e6a9e"),
    ("twice", b"1"),
    ("twice", b"2"),
    ("empty", b""),
    ("null", None),
    ("not utf-8", b"\xff\x00\xfe"),
]
OWN_KEY = b"\xff\x00 a key"
LARGEST_METHOD_BYTES = 3_000_000


def uuid() -> str:
    return str(uuid4())


def member(segment: str, user: str | None = None, version: int = 1, *, added: bool = True) -> MembershipChanged:
    return MembershipChanged(uuid(), NOW, segment, user or uuid(), version, added)


def method(segment: str, course: str | None = None, version: int = 1) -> MethodChanged:
    return MethodChanged(
        uuid(), NOW, uuid(), version, course or uuid(), segment, None, "SEGMENT_SYNC", "A method", True, True,
        "student", None,
    )  # fmt: skip


def source(course: str | None = None, version: int = 1) -> SourceChanged:
    return SourceChanged(uuid(), NOW, course or uuid(), uuid(), "manual", version, "ACTIVE", "teacher")


def suspension(version: int = 1) -> SuspensionChanged:
    return SuspensionChanged(uuid(), NOW, uuid(), uuid(), version, suspended=True)


def wire(event: Event) -> bytes:
    name, fields = to_record(event)
    return encode(name, fields)


@dataclass(frozen=True, slots=True)
class Sent:
    """A record as it was published, and where Kafka put it."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers


@dataclass(frozen=True, slots=True)
class Bad:
    """A record to be rejected: what it is, and what must be said of it."""

    topic: str
    value: bytes
    reason: str
    detail: str
    key: bytes | None = OWN_KEY
    headers: Headers = field(default_factory=lambda: list(OWN_HEADERS))


def send(
    producer: Producer,
    topic: str,
    value: bytes | None,
    *,
    key: bytes | None = None,
    headers: Sequence[tuple[str, bytes | None]] = (),
    partition: int = PARTITION,
) -> list[Sent]:
    """Publish; the list holds the record once Kafka has acknowledged it, which the caller waits for."""
    sent: list[Sent] = []

    def delivered(error: KafkaError | None, message: Message) -> None:
        assert error is None, error
        offset, (_, timestamp_ms) = message.offset(), message.timestamp()
        assert offset is not None
        sent.append(Sent(topic, partition, offset, timestamp_ms, key, value, list(headers)))

    producer.produce(topic, value, key, partition, headers=list(headers), on_delivery=delivered)
    return sent


Place = tuple[bytes | None, ...]


def place_of(sent: Sent) -> Place:
    """Topic, partition and offset, as the dlq_ headers have them."""
    return sent.topic.encode(), str(sent.partition).encode(), str(sent.offset).encode()


def send_one(site: Site, topic: str, value: bytes | None, **further: Any) -> Sent:
    sent = send(site.producer, site.topic(topic), value, **further)
    site.flush()
    return sent[0]


def assert_is_dead_letter_of(
    letter: KafkaRecord, sent: Sent, reason: str, detail: str, *, truncated: bool = False
) -> None:
    """The record as it was published, and the dlq_ headers of contract §2 behind its own ones."""
    assert letter.key == sent.key
    assert letter.value == (None if truncated else sent.value)
    count = len(sent.headers)
    assert list(letter.headers[:count]) == sent.headers
    added = dict(letter.headers[count:])
    assert len(added) == len(letter.headers) - count
    said = (added.pop("dlq_detail") or b"").decode()
    assert detail in said, said
    assert added == {
        "dlq_reason": reason.encode(),
        "dlq_topic": sent.topic.encode(),
        "dlq_partition": str(sent.partition).encode(),
        "dlq_offset": str(sent.offset).encode(),
        "dlq_timestamp": str(sent.timestamp_ms).encode(),
        **({"dlq_truncated": b"true"} if truncated else {}),
    }


class Yard:
    """A site with a worker, what its rows must come to, and the dead letters it must have. Grows from test to test."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.model = Model()
        self.segment, self.course = uuid(), uuid()
        self.expected: list[tuple[Sent, str, str]] = []
        self.transactional = Producer(
            {"bootstrap.servers": site.stack.kafka.bootstrap_servers, "transactional.id": f"publisher-{uuid()}"}
        )
        self.transactional.init_transactions(60)

    @property
    def worker(self) -> WorkerProcess:
        return self.site.workers[-1]

    def good(self, topic: str) -> Event:
        """A record of that topic which changes somebody's enrollment."""
        if topic == "membership":
            return member(self.segment)
        return method(self.segment) if topic == "methods" else source(self.course)

    def publish(self, *events: Event) -> None:
        """Good records, in the partition where the bad ones are."""
        self.publish_all(list(events))

    def publish_all(self, records: Sequence[Event | Bad], *, transaction: bool = False) -> list[Sent]:
        """Records in this order; the bad ones as they were sent.

        In a transaction they become visible together, so that the worker reads them at once.
        """
        producer = self.transactional if transaction else self.site.producer
        if transaction:
            producer.begin_transaction()
        acknowledged: list[tuple[Bad, list[Sent]]] = []
        for record in records:
            if isinstance(record, Bad):
                sent = send(
                    producer, self.site.topic(record.topic), record.value, key=record.key, headers=record.headers
                )
                acknowledged.append((record, sent))
            else:
                topic = self.site.topic(TOPICS[topic_of(record)])
                send(producer, topic, wire(record), key=key_of(record).encode())
        if transaction:
            producer.commit_transaction(60)
        else:
            assert producer.flush(120) == 0
        self.expected += [(sent[0], bad.reason, bad.detail) for bad, sent in acknowledged]
        self.model.apply_batch([record for record in records if not isinstance(record, Bad)])
        return [sent[0] for _, sent in acknowledged]

    def publish_around(self, *bad: Bad) -> None:
        """The bad records, and a good one before and after them in the same partition."""
        topic = bad[0].topic
        self.publish_all([self.good(topic), *bad, self.good(topic)])

    def check(self) -> None:
        """Everything good is applied and published; everything bad is one dead letter, and counted."""
        status = self.site.wait_settled()
        assert_site_equals_model(self.site, self.model)
        letters = self.letters()
        assert sum(map(len, letters.values())) == len(self.expected)
        for sent, reason, detail in self.expected:
            (letter,) = letters[place_of(sent)]
            assert_is_dead_letter_of(letter, sent, reason, detail)
        counted = Counter(reason for _, reason, _ in self.expected)
        assert status["dead_letters"]["by_reason"] == counted
        assert status["dead_letters"]["total"] == counted.total()
        assert self.worker.process.poll() is None

    def letters(self) -> dict[Place, list[KafkaRecord]]:
        """The dead letters by the place of their record."""
        found: dict[Place, list[KafkaRecord]] = defaultdict(list)
        for letter in self.site.dead_letters():
            found[letter.header("dlq_topic"), letter.header("dlq_partition"), letter.header("dlq_offset")].append(
                letter
            )
        return found


def admin_of(site: Site) -> AdminClient:
    return AdminClient({"bootstrap.servers": site.stack.kafka.bootstrap_servers})


def make_topic(site: Site, name: str, partitions: int, **config: str) -> None:
    """A topic of the site, made before `topics create` would make it."""
    wanted = {key.replace("_", "."): value for key, value in config.items()}
    new = NewTopic(site.topic(name), num_partitions=partitions, replication_factor=1, config=wanted)
    admin = admin_of(site)  # kept until it has answered
    admin.create_topics([new])[site.topic(name)].result(60)


def other_member_schema() -> dict[str, Any]:
    """SegmentMemberAdded by its name, but its version is a text: what a publisher might have rolled out by mistake."""
    raw: dict[str, Any] = json.loads(json.dumps(schema("SegmentMemberAdded"), default=str))
    fields = [{**each, "type": "string"} if each["name"] == "version" else each for each in raw["fields"]]
    return {"type": "record", "name": "SegmentMemberAdded", "namespace": NAMESPACE, "fields": fields}


def framed(writer: Any, datum: dict[str, Any]) -> bytes:
    """A datum of any schema in single-object encoding."""
    text = fastavro.schema.to_parsing_canonical_form(writer)
    buffer = BytesIO(b"\xc3\x01" + bytes.fromhex(fastavro.schema.fingerprint(text, "CRC-64-AVRO")))
    buffer.seek(0, 2)
    fastavro.schemaless_writer(buffer, fastavro.parse_schema(writer), datum)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def yard(stack: Stack, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    directory = tmp_path_factory.mktemp("yard")
    schemas = directory / "schemas"
    schemas.mkdir()
    (schemas / "other.avsc").write_text(json.dumps(other_member_schema()), "utf-8")
    name = f"yard_{uuid4().hex[:12]}"
    url = copy_database(stack, name, template)
    settings = {"SYNC_WORKER_SCHEMA_DIR": str(schemas), "SYNC_WORKER_LOG_LEVEL": "debug"}
    site = Site(stack, url, directory, settings)
    make_topic(site, "methods", 3, max_message_bytes=str(LARGEST_METHOD_BYTES))
    site.create_topics(3)
    yard = Yard(site)
    site.start_worker()
    # Both are there before anything bad: a segment with a method in a course, so that each good record shows.
    yard.publish(method(yard.segment, yard.course))
    yield yard
    site.close()
    drop_database(stack, name)


# what can't be decoded


A_MEMBER = member(uuid())
ADDED = wire(A_MEMBER)
UNDECODABLE: dict[str, tuple[bytes, str, str]] = {
    "random bytes": (b"\x8f" + os.urandom(200), "undecodable", "neither Confluent framing (00) nor Avro single-object"),
    "no bytes": (b"", "undecodable", "the value is empty"),
    "one byte": (b"\xc3", "undecodable", "neither Confluent framing"),
    "JSON": (b'{"user_id": "u"}', "undecodable", "looks like JSON"),
    "random bytes behind a right prefix": (ADDED[:10] + b"\xff" * 50, "undecodable", "not a user_segment_sync.v1."),
    "an Avro datum cut short": (ADDED[:-3], "undecodable", "not a user_segment_sync.v1.SegmentMemberAdded"),
    "a prefix cut short": (ADDED[:7], "undecodable", "ends after 7 of its 10 bytes"),
    "bytes after the datum": (ADDED + b"\0", "undecodable", "1 bytes follow"),
    "a fingerprint nobody knows": (b"\xc3\x01" + b"\x07" * 8 + ADDED[10:], "unknown_schema", "0707070707070707"),
    "Confluent framing without a registry": (b"\0\0\0\0\x07" + ADDED[10:], "unknown_schema", "none is configured"),
    "the datum of another schema": (
        prefix("SegmentMemberAdded") + framed(other_member_schema(), {**to_record(A_MEMBER)[1], "version": "one"})[10:],
        "undecodable",
        "SegmentMemberAdded",
    ),
    "a schema of the same name with other types": (
        framed(other_member_schema(), {**to_record(A_MEMBER)[1], "version": "one"}),
        "invalid_event",
        "cannot read as its own",
    ),
}


# what can be decoded and is no valid event


A_METHOD, A_SOURCE = method(uuid()), source()
A_GROUP = replace(A_METHOD, kind="SEGMENT_GROUP", role=None, group_id=uuid())
INVALID: dict[str, tuple[str, Event, str]] = {
    "NUL in a name": ("methods", replace(A_METHOD, name="A\0B"), "name: has a NUL character at position 1"),
    "a name of 2 MB": ("methods", replace(A_METHOD, name="n" * 2_000_000), "name: has 2000000 characters"),
    "a method without role": ("methods", replace(A_METHOD, role=None), "needs a role"),
    "a group method with a role": ("methods", replace(A_GROUP, role="student"), "must be null"),
    "a group method without group": ("methods", replace(A_GROUP, group_id=None), "needs a group"),
    "a bad method id": ("methods", replace(A_METHOD, method_id="m1"), "method_id: 'm1' is not a uuid"),
    "a bad group id": ("methods", replace(A_METHOD, group_id="{" + uuid()[1:]), "group_id: "),
    "a bad user id": ("membership", replace(A_MEMBER, user_id=uuid() + " "), "user_id: "),
    "a bad event id": ("membership", replace(A_MEMBER, event_id=""), "event_id: "),
    "a course id of NULs": ("sources", replace(A_SOURCE, course_id="\0" * 36), "course_id: "),
    "version 0 of a membership": ("membership", replace(A_MEMBER, version=0), "version: 0 is not between"),
    "version 0 of a method": ("methods", replace(A_METHOD, version=0), "version: 0 is not between"),
    "version -1 of a source": ("sources", replace(A_SOURCE, version=-1), "version: -1 is not between"),
    "version 0 of a suspension": ("sources", suspension(0), "version: 0 is not between"),
    "a time before 1970": ("membership", replace(A_MEMBER, occurred_at=-1), "occurred_at: -1"),
    "NUL in a role": ("sources", replace(A_SOURCE, role="tea\0cher"), "role: has a NUL character"),
    "a source named by a uuid": ("sources", replace(A_SOURCE, source=uuid()), "is a uuid"),
    "a source of 256 characters": ("sources", replace(A_SOURCE, source="s" * 256), "source: has 256 characters"),
    "a method on the topic of members": ("membership", A_METHOD, "EnrollmentMethodChanged does not belong"),
    "a member on the topic of methods": ("methods", A_MEMBER, "SegmentMemberAdded does not belong"),
    "a member on the topic of sources": ("sources", A_MEMBER, "SegmentMemberAdded does not belong"),
    "a source on the topic of members": ("membership", A_SOURCE, "EnrollmentSourceChanged does not belong"),
}


OTHERS: dict[str, Bad] = {
    "a schema id header that is none": Bad(
        "membership",
        ADDED,
        "undecodable",
        "__value_schema_id",
        headers=[*OWN_HEADERS, ("__value_schema_id", b"\x01\x02")],
    ),
    "a null key, no headers": Bad("sources", b"nothing", "undecodable", "0x6e", key=None, headers=[]),
    "an empty key": Bad("sources", b"nothing", "undecodable", "0x6e", key=b""),
    "a long key": Bad("sources", b"nothing", "undecodable", "0x6e", key=b"k" * 3000),
}
BAD: dict[str, Bad] = {
    **{what: Bad("membership", *found) for what, found in UNDECODABLE.items()},
    **{what: Bad(topic, wire(event), "invalid_event", detail) for what, (topic, event, detail) in INVALID.items()},
    **OTHERS,
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of all of BAD, published one after the other with good records between them."""

    sent: dict[str, Sent]
    around: dict[str, tuple[Event, Event]]
    letters: dict[Place, list[KafkaRecord]]
    enrolled: set[tuple[str, str]]
    published: set[bytes]


@pytest.fixture(scope="module")
def outcome(yard: Yard) -> Outcome:
    sent: dict[str, Sent] = {}
    around: dict[str, tuple[Event, Event]] = {}
    for what, bad in BAD.items():
        around[what] = before, after = yard.good(bad.topic), yard.good(bad.topic)
        (sent[what],) = yard.publish_all([before, bad, after])
    yard.site.wait_settled()
    changes = {change.record.key or b"" for change in yard.site.changes()}
    return Outcome(sent, around, yard.letters(), set(yard.site.enrollments()), changes)


@pytest.mark.parametrize("what", BAD)
def test_what_can_never_be_applied_is_one_dead_letter_and_the_records_around_it_are_applied(
    what: str, outcome: Outcome
) -> None:
    (letter,) = outcome.letters[place_of(outcome.sent[what])]
    assert_is_dead_letter_of(letter, outcome.sent[what], BAD[what].reason, BAD[what].detail)
    for good in outcome.around[what]:
        if isinstance(good, MethodChanged):
            pairs = [pair for pair in outcome.enrolled if pair[0] == good.course_id]
        else:
            pairs = [pair for pair in outcome.enrolled if pair[1] == good.user_id]
        assert pairs
        assert all(":".join(pair).encode() in outcome.published for pair in pairs)


@pytest.mark.usefixtures("outcome")
def test_among_all_that_is_bad_nothing_else_is_lost_harmed_or_published_twice(yard: Yard) -> None:
    yard.check()


def test_an_output_record_on_an_input_topic_is_a_dead_letter(yard: Yard) -> None:
    yard.publish(member(yard.segment))
    yard.check()
    change = yard.site.changes()[-1].record
    assert change.value is not None
    yard.publish_around(Bad("membership", change.value, "invalid_event", "EnrollmentChanged does not belong"))
    yard.check()


def test_a_method_changes_neither_course_nor_kind_and_is_not_raised_from_the_dead(yard: Yard) -> None:
    moved, changed, deleted = method(yard.segment), method(yard.segment), method(yard.segment)
    yard.publish(moved, changed, deleted, replace(deleted, version=2, deleted=True))
    yard.check()
    group = replace(changed, version=2, kind="SEGMENT_GROUP", role=None, group_id=uuid())
    yard.publish_around(
        Bad("methods", wire(replace(moved, version=2, course_id=uuid())), "invalid_event", "course_id of method"),
        Bad("methods", wire(group), "invalid_event", "kind of method"),
        Bad("methods", wire(replace(deleted, version=3)), "invalid_event", "was deleted, which is final"),
    )
    yard.check()


# one version, two contents


def contradictions(segment: str) -> list[tuple[Event, Event]]:
    """An event of each kind, and another one of the same entity and version."""
    a_member, a_method, a_source, a_suspension = member(segment), method(segment), source(), suspension()
    return [
        (a_member, replace(a_member, is_member=False)),
        (a_source, replace(a_source, status="SUSPENDED")),
        (a_source, replace(a_source, role=None)),
        (a_suspension, replace(a_suspension, suspended=False)),
        (a_method, replace(a_method, name="Another name")),
    ]


def contradiction(event: Event) -> Bad:
    return Bad(TOPICS[topic_of(event)], wire(replace(event, event_id=uuid())), "version_conflict", "version 1 of ")


def repetition(event: Event) -> Event:
    return replace(event, event_id=uuid(), occurred_at=NOW + 1)


def test_of_two_contents_under_one_version_in_one_batch_the_first_stands(yard: Yard) -> None:
    for kind in range(len(contradictions(yard.segment))):
        before = len(read_at_once(yard))

        def sent_together(kind: int = kind) -> None:
            first, other = contradictions(yard.segment)[kind]
            topic = TOPICS[topic_of(first)]
            together = [yard.good(topic), first, contradiction(other), repetition(first), yard.good(topic)]
            yard.publish_all(together, transaction=True)
            yard.site.wait_settled()

        # One by one, so that each is seen to be read at once. A rebalance may part them: then others, of the same kind.
        sent_together()
        while len(read_at_once(yard)) == before:
            sent_together()
    yard.check()


def read_at_once(yard: Yard) -> list[dict[str, Any]]:
    """The batches so far of five records, with or without what ends their transaction."""
    return [line for line in yard.worker.events("batch_applied") if line["records"] in {5, 6}]


def test_of_two_contents_under_one_version_in_two_batches_the_first_stands(yard: Yard) -> None:
    pairs = contradictions(yard.segment)
    yard.publish(*(first for first, _ in pairs))
    yard.check()
    for first, other in pairs:
        topic = TOPICS[topic_of(first)]
        yard.publish_all([yard.good(topic), repetition(first), contradiction(other), yard.good(topic)])
    yard.check()


# what is no event


def test_a_null_value_is_skipped_counted_and_logged_with_its_key(yard: Yard) -> None:
    topics = ("membership", "methods", "sources")
    sent: dict[str, Sent] = {}
    for topic in topics:
        yard.publish(yard.good(topic))
        key = uuid().encode()
        sent[topic] = send_one(yard.site, topic, None, key=key, headers=OWN_HEADERS)
        yard.publish(yard.good(topic))
    yard.check()
    lines = yard.worker.events("null_value_skipped")
    # What is read again, by a rebalance, is skipped again.
    skipped = Counter(line["partition"] for line in lines)
    assert {topic: null_values(yard, topic) for topic in topics} == {
        topic: skipped[f"{yard.site.topic(topic)}[{PARTITION}]"] for topic in topics
    }
    assert {(line["partition"], line["offset"], line["key"]) for line in lines} == {
        (f"{each.topic}[{PARTITION}]", each.offset, repr(each.key)) for each in sent.values()
    }


def null_values(yard: Yard, topic: str) -> int:
    text = httpx.get(f"http://127.0.0.1:{yard.worker.http_port}/metrics", timeout=60).text
    series = f'sync_worker_records_total{{result="null",topic="{yard.site.topic(topic)}"}} '
    return sum(int(float(line.removeprefix(series))) for line in text.splitlines() if line.startswith(series))


def test_aborted_transactions_are_never_applied_and_control_records_do_not_hinder_settling(yard: Yard) -> None:
    for _ in range(2):
        yard.transactional.begin_transaction()
        for event in (member(yard.segment), method(yard.segment), source(yard.course)):
            send(yard.transactional, yard.site.topic(TOPICS[topic_of(event)]), wire(event))
        send(yard.transactional, yard.site.topic("membership"), b"neither is this a dead letter")
        yard.transactional.flush(60)
        yard.transactional.abort_transaction(60)
        # Settled although the partitions end with control records, and again with records behind them.
        yard.site.wait_settled()
        yard.publish_all([yard.good("membership"), yard.good("sources")], transaction=True)
    yard.check()


# what no client of Kafka's own would write


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def varint(number: int) -> bytes:
    number, encoded = number << 1 ^ number >> 63, b""
    while number > 0x7F:
        encoded += bytes([number & 0x7F | 0x80])
        number >>= 7
    return encoded + bytes([number])


def counted(data: bytes) -> bytes:
    return varint(len(data)) + data


def publish_with_raw_header(site: Site, topic: str, value: bytes, key: bytes, name: bytes) -> Sent:
    """Kafka's protocol by hand (Produce v3, a batch of one record), since the clients take only text for a header's name."""
    now_ms, where = NOW // 1000, site.topic(topic).encode()
    body = b"\0" + varint(0) + varint(0) + counted(key) + counted(value) + varint(1) + counted(name) + counted(b"v")
    sealed = struct.pack(">hiqqqhii", 0, 0, now_ms, now_ms, -1, -1, -1, 1) + counted(body)
    batch = struct.pack(">ibI", -1, 2, crc32c(sealed)) + sealed
    records = struct.pack(">qi", 0, len(batch)) + batch
    request = struct.pack(">hhih", 0, 3, 1, -1) + struct.pack(">hhi", -1, -1, 30_000)
    request += struct.pack(">ih", 1, len(where)) + where + struct.pack(">iii", 1, PARTITION, len(records)) + records
    host, _, port = site.stack.kafka.bootstrap_servers.partition(":")
    with socket.create_connection((host, int(port)), 60) as connection, connection.makefile("rb") as answers:
        connection.sendall(struct.pack(">i", len(request)) + request)
        answer = answers.read(*struct.unpack(">i", answers.read(4)))
    error, offset = struct.unpack_from(">hq", answer, 4 + 4 + 2 + len(where) + 4 + 4)
    assert error == 0
    return Sent(site.topic(topic), PARTITION, offset, now_ms, key, value, [])


def test_headers_that_cannot_be_read_harm_nothing_and_a_dead_letter_without_them_says_so(yard: Yard) -> None:
    # Many, since the client fails on the first few of them in another way than on the others.
    for _ in range(20):
        good = member(yard.segment)
        publish_with_raw_header(yard.site, "membership", wire(good), OWN_KEY, b"\xff\xfe")
        yard.model.apply_batch([good])
        sent = publish_with_raw_header(yard.site, "membership", b"\x8f", OWN_KEY, b"\xff\xfe")
        yard.expected.append((sent, "undecodable", "its headers can't be read (a name that isn't UTF-8)"))
    yard.publish(yard.good("membership"))
    yard.check()


# sizes


def largest_accepted(site: Site, topic: str) -> Sent:
    """Publish random bytes as large as the topic takes them at all."""
    producer = Producer({"bootstrap.servers": site.stack.kafka.bootstrap_servers, "message.max.bytes": 20_000_000})
    admin, resource = admin_of(site), ConfigResource(ResourceType.TOPIC, site.topic(topic))
    limit = int(admin.describe_configs([resource])[resource].result(60)["max.message.bytes"].value)
    errors: list[KafkaError | None] = []
    key, headers = os.urandom(1000), [*OWN_HEADERS, ("large", os.urandom(100_000))]
    size = limit - 101_000
    while True:
        value = b"\x8f" + os.urandom(size)
        sent: list[Message] = []

        def delivered(error: KafkaError | None, message: Message) -> None:
            errors.append(error)
            sent.append(message)  # noqa: B023 - called by the flush below

        producer.produce(site.topic(topic), value, key, PARTITION, headers=list(headers), on_delivery=delivered)
        assert producer.flush(120) == 0
        error, (message,) = errors[-1], sent
        if error is None:
            break
        assert error.code() == KafkaError.MSG_SIZE_TOO_LARGE
        size -= 8
    assert len(errors) > 1, "the first one should have been too large"
    offset, (_, timestamp_ms) = message.offset(), message.timestamp()
    assert offset is not None
    return Sent(site.topic(topic), PARTITION, offset, timestamp_ms, key, value, list(headers))


def test_a_record_as_large_as_the_broker_takes_them_is_a_dead_letter_with_all_its_bytes(yard: Yard) -> None:
    yard.publish(yard.good("membership"))
    sent = largest_accepted(yard.site, "membership")
    yard.publish(yard.good("membership"))
    yard.expected.append((sent, "undecodable", "neither Confluent framing"))
    yard.check()


@pytest.fixture(scope="module")
def narrow(stack: Stack, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    """A yard whose dead-letter topic takes far less than its input topics."""
    name = f"narrow_{uuid4().hex[:12]}"
    url = copy_database(stack, name, template)
    site = Site(stack, url, tmp_path_factory.mktemp("narrow"), {})
    make_topic(site, "dead_letters", 1, max_message_bytes="20000")
    site.create_topics(3)
    yard = Yard(site)
    site.start_worker()
    yard.publish(method(yard.segment, yard.course))
    yield yard
    site.close()
    drop_database(stack, name)


def check_kept(yard: Yard, sent: Sent) -> None:
    """The dead letter went without its value, which is in the database, and what came behind it is published."""
    yard.site.wait_settled()
    (letter,) = [each for each in yard.site.dead_letters() if each.header("dlq_offset") == str(sent.offset).encode()]
    assert_is_dead_letter_of(letter, sent, "undecodable", "", truncated=True)
    kept = yard.site.query("select * from dead_letter where record_offset = %s", sent.offset)
    assert [(row["key"], row["value"], row["truncated"]) for row in kept] == [(sent.key, sent.value, True)]
    assert list(zip(kept[0]["header_names"], kept[0]["header_values"], strict=True)) == sent.headers
    assert_site_equals_model(yard.site, yard.model)
    assert yard.worker.process.poll() is None


def publish_large(yard: Yard, size: int) -> Sent:
    yard.publish(yard.good("membership"))
    sent = send_one(yard.site, "membership", b"\x8f" + os.urandom(size), key=OWN_KEY, headers=OWN_HEADERS)
    yard.publish(yard.good("membership"))
    return sent


def test_one_too_large_for_the_dead_letter_topic_goes_without_its_value_which_the_database_keeps(narrow: Yard) -> None:
    check_kept(narrow, publish_large(narrow, 50_000))


def test_dead_letters_that_each_fit_keep_their_values_however_many_come_at_once(narrow: Yard) -> None:
    values = [b"\x8f" + os.urandom(6_000) for _ in range(30)]
    narrow.publish_all(
        [Bad("membership", value, "undecodable", "neither Confluent framing") for value in values], transaction=True
    )
    narrow.site.wait_settled()
    letters = [letter.value for letter in narrow.site.dead_letters()]
    assert all(letters.count(value) == 1 for value in values)


def test_a_limit_that_is_lowered_while_the_relay_leads_does_not_stop_it(narrow: Yard) -> None:
    resource = ConfigResource(
        ResourceType.TOPIC,
        narrow.site.topic("dead_letters"),
        incremental_configs=[ConfigEntry("max.message.bytes", "9000", incremental_operation=AlterConfigOpType.SET)],
    )
    admin = admin_of(narrow.site)
    admin.incremental_alter_configs([resource])[resource].result(60)
    wait_for(
        lambda: admin.describe_configs([resource])[resource].result(60)["max.message.bytes"].value == "9000",
        what="the lower limit",
    )
    check_kept(narrow, publish_large(narrow, 15_000))


# what only the database refuses


def test_a_record_that_the_database_refuses_for_its_data_is_found_among_the_others(
    make_site: Callable[..., Site],
) -> None:
    site = make_site()
    yard = Yard(site)
    refused, forbidden = member(yard.segment), replace(source(yard.course), role="forbidden")
    with site.connect() as connection:
        connection.execute(
            f"""create function refuse() returns trigger language plpgsql as $$ begin
                  raise exception 'nobody like this' using errcode = 'invalid_parameter_value'; end $$;
                create trigger refuse before insert on membership for each row
                  when (new.user_id = '{refused.user_id}') execute function refuse();
                alter table source add constraint no_such_role check (role <> 'forbidden');
                alter table method add constraint no_such_name check (name <> 'forbidden')"""
        )
    yard.publish(method(yard.segment, yard.course))
    good = [member(yard.segment) for _ in range(200)]
    bad = Bad("membership", wire(refused), "rejected_by_database", "nobody like this (22023)")
    yard.publish_all([*good[:77], bad, *good[77:]])
    bad = Bad("sources", wire(forbidden), "rejected_by_database", "no_such_role")
    yard.publish_all([source(yard.course), bad, source(yard.course), replace(forbidden, user_id=uuid(), role="x")])
    bad = Bad("methods", wire(replace(method(yard.segment), name="forbidden")), "rejected_by_database", "no_such_name")
    yard.publish_all([method(yard.segment), bad, method(yard.segment)])
    site.start_worker()
    yard.check()


# a wrong schema rolled out


def test_a_partition_of_which_most_is_rejected_stops_while_others_go_on_until_it_is_told_to_go_on(
    make_site: Callable[..., Site],
) -> None:
    site = make_site()
    yard = Yard(site)
    stopped, others = site.topic("membership"), PARTITION + 1
    yard.publish(method(yard.segment, yard.course))
    yard.publish_all([Bad("membership", b"\x8f nonsense", "undecodable", "0x8f") for _ in range(700)])
    behind = member(yard.segment)
    yard.publish(behind)
    worker = site.start_worker()

    def readiness() -> str:
        return httpx.get(f"http://127.0.0.1:{worker.http_port}/readyz", timeout=60).text

    named = f"{stopped}[{PARTITION}]"
    wait_for(lambda: f"failed rejections: more than half of the last records of {named}" in readiness(), what="a stop")
    line = worker.wait_for_event("partition_stopped")
    assert line["partition"] == named
    assert "SYNC_WORKER_REJECTION_PAUSE=false" in line["next_step"]
    elsewhere = member(yard.segment)
    send_one(site, "membership", wire(elsewhere), partition=others)
    yard.model.apply_batch([elsewhere])
    yard.publish(source(yard.course))
    wait_for(lambda: (yard.course, elsewhere.user_id) in site.enrollments(), what="another partition going on")
    wait_for(lambda: len(site.dead_letters()) >= 500, what="what was rejected before the stop")
    assert len(site.dead_letters()) < 700
    assert (yard.course, behind.user_id) not in site.enrollments()
    assert httpx.get(f"http://127.0.0.1:{worker.http_port}/livez", timeout=60).status_code == 200
    assert worker.terminate() == 0
    worker = site.start_worker(rejection_pause="false")
    yard.check()
    assert "failed" not in readiness()


# reading again


def test_a_record_read_again_is_a_dead_letter_again_once_per_reading_and_changes_nothing(
    make_site: Callable[..., Site],
) -> None:
    site = make_site()
    yard = Yard(site)
    a_member = member(yard.segment)
    yard.publish(method(yard.segment, yard.course))
    yard.publish_around(Bad("membership", b"nonsense", "undecodable", "0x6e"))
    conflict = wire(replace(a_member, is_member=False))
    yard.publish_all([a_member, Bad("membership", conflict, "version_conflict", "was applied with other content")])
    for reading in (1, 2):
        worker = site.start_worker()
        site.wait_settled()
        letters = site.dead_letters()
        assert len(letters) == 2 * reading
        for sent, reason, detail in yard.expected:
            found = [each for each in letters if each.header("dlq_offset") == str(sent.offset).encode()]
            assert len(found) == reading
            for letter in found:
                assert_is_dead_letter_of(letter, sent, reason, detail)
        assert assert_site_equals_model(site, yard.model) == 3
        assert worker.terminate() == 0
        if reading == 1:
            reset = site.command("positions", "reset", "--to", "earliest", "--yes")
            assert reset.returncode == 0, reset.stderr
