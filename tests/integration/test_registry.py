"""Against a real schema registry: writer schemas by id, ids it does not know, outages, and what we register."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient

from devstack import Stack
from sync_worker.errors import FatalError, InvalidRecord, RejectionReason
from sync_worker.events import NAMESPACE, Membership, RecordName
from sync_worker.intake.decoding import Decoder
from sync_worker.operations.publishing import LineEncoder
from sync_worker.schema.avro import AvroSchema, parse
from sync_worker.schema.registry import Answer, Registry, RegistryUnavailable, SchemaNotYetKnown, subject_name
from sync_worker.schema.store import load_schemas
from tests.records import MEMBER, SAMPLES, TOPIC_OF, TOPICS, datum_bytes, schema_of

STORE = load_schemas()
TOPIC = "segments.membership"
UNHEARD_OF = 99_999


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class PatientRegistry(Registry):
    """Asks once more where no answer came. What it answers is looked at here, not how soon.

    Apicurio has no path for GUIDs, and of thousands of requests for a path that it hasn't, some are never answered: the client's
    timeout ends them. A worker comes back to them by itself (an outage, tests/integration/test_registry_worker.py).
    """

    def _put(self, what: str, call: Callable[[], Answer], *, any_not_found: bool, registering: bool) -> Answer:
        try:
            return super()._put(what, call, any_not_found=any_not_found, registering=registering)
        except RegistryUnavailable as outage:
            if "ReadTimeout" not in str(outage):
                raise
            return super()._put(what, call, any_not_found=any_not_found, registering=registering)


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with Stack.start(registry=True) as started:
        yield started


@pytest.fixture
def client(stack: Stack) -> Iterator[SchemaRegistryClient]:
    with SchemaRegistryClient({"url": stack.registry.url}) as connected:
        yield connected


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(stack: Stack, clock: Clock) -> Iterator[Registry]:
    connected = PatientRegistry(stack.registry.url, clock=clock, timeout_s=20.0)
    yield connected
    connected.close()


def framed(schema_id: int, schema: Any, datum: Any) -> bytes:
    return b"\0" + schema_id.to_bytes(4, "big") + datum_bytes(schema, datum)


def member_schema(**extra: Any) -> dict[str, Any]:
    schema = schema_of(RecordName.MEMBER_ADDED)
    schema["fields"] += [{"name": name, "type": "string", "default": default} for name, default in extra.items()]
    return schema


def register(client: SchemaRegistryClient, subject: str, schema: Any) -> int:
    return client.register_schema(subject, Schema(json.dumps(schema), "AVRO"))


def test_a_record_is_decoded_by_the_schema_its_publisher_registered(
    client: SchemaRegistryClient, registry: Registry
) -> None:
    newer = member_schema(reason="none")
    schema_id = register(client, "newer-member", newer)
    event = Decoder(STORE, registry, TOPICS).decode(
        TOPIC, framed(schema_id, newer, {**MEMBER, "reason": "moved"}), None
    )
    assert isinstance(event, Membership)
    assert (event.user_id, event.version) == (UUID(MEMBER["user_id"]).bytes, MEMBER["version"])


@pytest.mark.parametrize("name", SAMPLES)
def test_what_publish_registers_and_frames_is_decoded(
    name: RecordName, registry: Registry, client: SchemaRegistryClient
) -> None:
    line = json.dumps({"type": name, **SAMPLES[name]})
    publication = LineEncoder(STORE, TOPIC_OF, registry).encode_line(line)
    schema_id = int.from_bytes(publication.value[1:5], "big")
    assert publication.value == framed(schema_id, schema_of(name), SAMPLES[name])
    assert f"{TOPIC_OF[name]}-{NAMESPACE}.{name}" in client.get_subjects()
    decoded = Decoder(STORE, registry, TOPICS).decode(publication.topic, publication.value, None)
    alone = LineEncoder(STORE, TOPIC_OF).encode_line(line)
    assert decoded == Decoder(STORE, None, TOPICS).decode(alone.topic, alone.value, None)


def test_the_output_schema_is_registered_under_its_topic_and_record_and_only_once(
    client: SchemaRegistryClient, registry: Registry, stack: Stack
) -> None:
    output = STORE.current[RecordName.ENROLLMENT_CHANGED]
    schema_id = registry.register("enrollment.changes", output)
    subject = "enrollment.changes-user_segment_sync.v1.EnrollmentChanged"
    assert subject_name("enrollment.changes", output) == subject
    assert client.get_versions(subject) == [1]
    registered = client.get_schema(schema_id).schema_str
    assert registered is not None
    assert parse(registered).fingerprint == output.fingerprint
    another = PatientRegistry(stack.registry.url, timeout_s=20.0)
    assert (
        registry.register("enrollment.changes", output) == another.register("enrollment.changes", output) == schema_id
    )
    another.close()
    assert client.get_versions(subject) == [1]


def test_a_schema_the_registry_refuses_to_register_is_fatal_and_named(
    client: SchemaRegistryClient, registry: Registry
) -> None:
    subject = f"guarded-{NAMESPACE}.SegmentMemberAdded"
    register(client, subject, member_schema())
    client.set_compatibility(subject, "FULL_TRANSITIVE")
    broken = member_schema()
    broken["fields"] = [{**field, "type": "string"} for field in broken["fields"]]
    with pytest.raises(FatalError, match=f"refuses to register {subject}"):
        registry.register("guarded", parse(json.dumps(broken)))


def test_the_registry_itself_finds_every_current_schema_fully_compatible_with_every_release(
    client: SchemaRegistryClient,
) -> None:
    for name in RecordName:
        subject = f"evolution-{name}"
        for schema in [each for each in STORE.by_fingerprint.values() if each.full_name == f"{NAMESPACE}.{name}"]:
            client.register_schema(subject, Schema(schema.text, "AVRO"))
        client.set_compatibility(subject, "FULL_TRANSITIVE")
        assert client.test_compatibility(subject, Schema(STORE.current[name].text, "AVRO"))


@pytest.mark.parametrize("reference", [UNHEARD_OF, UUID("89791762-2336-4186-9674-299b90a802e2")])
def test_a_schema_the_registry_does_not_know_is_waited_for_a_minute_and_then_a_dead_letter(
    reference: int | UUID, registry: Registry, clock: Clock
) -> None:
    decoder = Decoder(STORE, registry, TOPICS)

    def decode() -> object:
        if isinstance(reference, int):
            return decoder.decode(TOPIC, framed(reference, schema_of(RecordName.MEMBER_ADDED), MEMBER), None)
        return decoder.decode(TOPIC, b"any", [("__value_schema_id", b"\x01" + reference.bytes)])

    for seconds in (0, 1, 5, 30, 59.9):
        clock.now = 1000 + seconds
        with pytest.raises(SchemaNotYetKnown, match=str(reference)):
            decode()
    for seconds in (60, 61, 500):
        clock.now = 1000 + seconds
        with pytest.raises(InvalidRecord, match=str(reference)) as caught:
            decode()
        assert caught.value.reason is RejectionReason.UNKNOWN_SCHEMA


def test_a_schema_that_is_registered_while_it_is_waited_for_is_used_after_a_few_seconds(
    client: SchemaRegistryClient, registry: Registry, clock: Clock
) -> None:
    last = register(client, "before-late", member_schema(before="x"))
    late = member_schema(late="x")
    decoder = Decoder(STORE, registry, TOPICS)
    value = framed(last + 1, late, {**MEMBER, "late": "y"})
    with pytest.raises(SchemaNotYetKnown):
        decoder.decode(TOPIC, value, None)
    assert register(client, "late", late) == last + 1
    with pytest.raises(SchemaNotYetKnown):  # not asked again yet
        decoder.decode(TOPIC, value, None)
    clock.now += 3
    assert isinstance(decoder.decode(TOPIC, value, None), Membership)


@pytest.mark.parametrize("schema_id", [0, 2**31, 2**32 - 1])
def test_an_id_that_no_registry_gives_is_a_dead_letter_at_once(schema_id: int, registry: Registry) -> None:
    with pytest.raises(InvalidRecord) as caught:
        registry.schema(schema_id)
    assert caught.value.reason is RejectionReason.UNKNOWN_SCHEMA


@pytest.mark.parametrize(
    ("type_", "text", "why"),
    [
        ("JSON", '{"$schema": "http://json-schema.org/draft-07/schema#", "type": "object"}', "of type JSON, not AVRO"),
        ("AVRO", '"string"', "not an Avro record schema"),
        (
            "AVRO",
            '{"type": "record", "name": "R", "fields": [{"name": "r", "type": ["null", "R"]}]}',
            "R contains itself",
        ),
    ],
)
def test_a_registered_schema_that_cannot_be_decoded_with_is_a_dead_letter(
    type_: str, text: str, why: str, client: SchemaRegistryClient, registry: Registry
) -> None:
    schema_id = client.register_schema(f"unusable-{why}", Schema(text, type_))
    with pytest.raises(InvalidRecord, match=why) as caught:
        registry.schema(schema_id)
    assert caught.value.reason is RejectionReason.UNKNOWN_SCHEMA


@pytest.mark.parametrize("reference", [1, UUID(int=1)])
def test_a_wrong_path_is_an_outage_that_asks_about_the_setting_and_never_a_verdict(
    reference: int | UUID, stack: Stack, clock: Clock
) -> None:
    wrong = PatientRegistry(stack.registry.url.replace("ccompat", "nothing"), clock=clock, timeout_s=20.0)
    for _ in range(2):
        with pytest.raises(RegistryUnavailable, match="SYNC_WORKER_SCHEMA_REGISTRY_URL"):
            wrong.schema(reference)
        clock.now += 100
    with pytest.raises(RegistryUnavailable):
        wrong.register(TOPIC, STORE.current[RecordName.MEMBER_ADDED])
    wrong.close()


def test_no_password_gets_into_an_error(stack: Stack) -> None:
    address = stack.registry.url.replace("http://", "http://somebody:s3cret%21@").replace("ccompat", "nothing")
    registry = Registry(address)
    with pytest.raises(RegistryUnavailable) as caught:
        registry.schema(1)
    registry.close()
    assert "s3cret" not in str(caught.value)
    assert "somebody" not in str(caught.value)


def test_a_registry_that_hangs_is_an_outage_after_a_bounded_time(stack: Stack, registry: Registry) -> None:
    slow = Registry(stack.registry.url, timeout_s=0.5)
    stack.registry.pause()
    try:
        begun = time.monotonic()
        with pytest.raises(RegistryUnavailable):
            slow.schema(1)
        assert time.monotonic() - begun < 120  # it would answer never
    finally:
        stack.registry.resume()
    slow.close()


def test_while_the_registry_is_away_nothing_is_a_dead_letter_and_afterwards_decoding_goes_on(
    stack: Stack, registry: Registry, clock: Clock
) -> None:
    decoder = Decoder(STORE, registry, TOPICS)
    known: AvroSchema = STORE.current[RecordName.MEMBER_ADDED]
    known_id = registry.register(TOPIC, known)
    seen = framed(known_id, schema_of(RecordName.MEMBER_ADDED), MEMBER)
    assert decoder.decode(TOPIC, seen, None)
    with pytest.raises(SchemaNotYetKnown):
        registry.schema(UNHEARD_OF)
    stack.registry.stop()
    try:
        for _ in range(3):
            clock.now += 100
            for reference in (UNHEARD_OF, UNHEARD_OF + 1):
                with pytest.raises(RegistryUnavailable, match=f"does not answer for schema {UNHEARD_OF}"):
                    registry.schema(reference)  # the second isn't asked for: the registry was silent a moment ago
            assert decoder.decode(TOPIC, seen, None), "what is known needs no registry"
        with pytest.raises(RegistryUnavailable):
            registry.register("another", known)
    finally:
        stack.registry.start()
    clock.now += 100
    again = registry.register("after-restart", known)
    fresh = PatientRegistry(stack.registry.url, timeout_s=20.0)
    value = framed(again, schema_of(RecordName.MEMBER_ADDED), MEMBER)
    assert isinstance(Decoder(STORE, fresh, TOPICS).decode(TOPIC, value, None), Membership)
    assert registry.schema(again).fingerprint == known.fingerprint
    fresh.close()
