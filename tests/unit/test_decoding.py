"""From bytes to events: what was written is what is read, and whatever else the bytes are, they are only rejected."""

import copy
import json
from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sync_worker.errors import InvalidRecord, RejectionReason
from sync_worker.events import Event, Membership, Method, RecordName, Source, Suspension
from sync_worker.intake.decoding import Decoder
from sync_worker.schema.avro import parse
from sync_worker.schema.store import SchemaStore, load_schemas
from tests.records import DATA, INPUTS, MEMBER, METHOD, SAMPLES, TOPIC_OF, TOPICS, Datum, datum_bytes, schema_of

STORE = load_schemas()
DECODER = Decoder(STORE, None, TOPICS)
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNDECODABLE, UNKNOWN, INVALID = (
    RejectionReason.UNDECODABLE,
    RejectionReason.UNKNOWN_SCHEMA,
    RejectionReason.INVALID_EVENT,
)
LATER = settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])


def framed(record: RecordName, datum: Datum, **changes: Any) -> bytes:
    """The datum in single-object encoding."""
    schema = schema_of(record)
    return b"\xc3\x01" + parse(json.dumps(schema)).fingerprint + datum_bytes(schema, {**datum, **changes})


def decode(name: RecordName, value: bytes) -> Event:
    return DECODER.decode(TOPIC_OF[name], value, None)


def outcome(call: Callable[[], Event]) -> Event | InvalidRecord:
    try:
        return call()
    except InvalidRecord as rejection:
        return rejection


def rejected(call: Callable[[], Event]) -> tuple[RejectionReason, str]:
    rejection = outcome(call)
    assert isinstance(rejection, InvalidRecord)
    assert len(rejection.detail) <= 500
    assert rejection.detail.isprintable()
    return rejection.reason, rejection.detail


def expected(name: RecordName, datum: Datum, traceparent: str | None) -> Event:
    """The event that a datum means, told independently: field by field, by name."""
    values: dict[str, Any] = {"traceparent": traceparent}
    for field, value in datum.items():
        values[field] = UUID(value).bytes if field.endswith("_id") and value is not None else value
    if name in (RecordName.MEMBER_ADDED, RecordName.MEMBER_REMOVED):
        return Membership(**values, is_member=name is RecordName.MEMBER_ADDED)
    if name is RecordName.METHOD_CHANGED:
        return Method(**values)
    return Source(**values) if name is RecordName.SOURCE_CHANGED else Suspension(**values)


class KnowingRegistry:
    """What the decoder asks of a registry, answered from the checkout: every current schema under an id and a GUID."""

    def __init__(self, schemas: Mapping[int | UUID, Any]) -> None:
        self.schemas = schemas
        self.asked = 0

    def schema(self, reference: int | UUID) -> Any:
        self.asked += 1
        return self.schemas[reference]


@pytest.mark.parametrize("name", INPUTS)
@LATER
@given(data=st.data(), traced=st.booleans())
def test_each_valid_event_survives_each_framing(name: RecordName, data: st.DataObject, traced: bool) -> None:
    datum = data.draw(DATA[name])
    guid = UUID(int=5)
    registry = KnowingRegistry({7: STORE.current[name], guid: STORE.current[name]})
    decoder = Decoder(STORE, registry, TOPICS)  # type: ignore[arg-type]
    headers: list[tuple[str, bytes | None]] = [("ce_id", b"x")]
    if traced:
        headers.append(("traceparent", TRACEPARENT.encode()))
    bare = datum_bytes(schema_of(name), datum)
    event = expected(name, datum, TRACEPARENT if traced else None)
    assert decoder.decode(TOPIC_OF[name], framed(name, datum), headers) == event
    for _ in range(2):
        assert decoder.decode(TOPIC_OF[name], b"\0\0\0\0\x07" + bare, headers) == event
        guid_header = ("__value_schema_id", b"\x01" + guid.bytes)
        assert decoder.decode(TOPIC_OF[name], bare, [*headers, guid_header]) == event
    assert registry.asked == 2


@pytest.mark.parametrize("name", INPUTS)
def test_ids_are_read_in_either_case_and_so_normalised(name: RecordName) -> None:
    loud = {field: value.upper() if field.endswith("_id") else value for field, value in SAMPLES[name].items()}
    assert decode(name, framed(name, loud)) == decode(name, framed(name, SAMPLES[name]))


@LATER
@given(topic=st.sampled_from(sorted(TOPICS)), value=st.binary(max_size=300))
def test_random_bytes_are_only_ever_rejected_or_an_event(topic: str, value: bytes) -> None:
    assert isinstance(
        outcome(lambda: DECODER.decode(topic, value, None)), InvalidRecord | Membership | Method | Source | Suspension
    )


@pytest.mark.parametrize("name", INPUTS)
@LATER
@given(body=st.binary(max_size=400))
@example(body=b"")
@example(body=b"\xff" * 20)
def test_random_bytes_under_a_known_fingerprint_are_only_ever_rejected(name: RecordName, body: bytes) -> None:
    reason, _ = rejected(lambda: decode(name, STORE.current[name].single_object_prefix + body))
    assert reason in (UNDECODABLE, INVALID)


@pytest.mark.parametrize("name", INPUTS)
@LATER
@given(data=st.data())
def test_a_record_with_bytes_changed_is_rejected_or_reads_as_what_the_changed_bytes_say(
    name: RecordName, data: st.DataObject
) -> None:
    value = bytearray(framed(name, SAMPLES[name]))
    for _ in range(data.draw(st.integers(1, 4))):
        value[data.draw(st.integers(10, len(value) - 1))] = data.draw(st.integers(0, 255))
    event = outcome(lambda: decode(name, bytes(value)))
    if not isinstance(event, InvalidRecord):
        # Ids in the other case aside, an event has one encoding only.
        again = framed(name, datum_of(name, event))
        assert again.lower() == bytes(value).lower()


def datum_of(name: RecordName, event: Event) -> Datum:
    fields = event._asdict()
    return {
        field: str(UUID(bytes=fields[field])) if isinstance(fields[field], bytes) else fields[field]
        for field in SAMPLES[name]
    }


@pytest.mark.parametrize("name", INPUTS)
def test_a_record_cut_short_anywhere_is_undecodable(name: RecordName) -> None:
    value = framed(name, SAMPLES[name])
    for length in range(len(value)):
        assert rejected(lambda: decode(name, value[:length]))[0] is UNDECODABLE  # noqa: B023 - called at once


@pytest.mark.parametrize("name", INPUTS)
def test_bytes_after_the_datum_make_a_record_undecodable(name: RecordName) -> None:
    reason, detail = rejected(lambda: decode(name, framed(name, SAMPLES[name]) + b"\0\0"))
    assert reason is UNDECODABLE
    assert detail.startswith(f"not a user_segment_sync.v1.{name} ")
    assert detail.endswith("2 bytes follow it; a record's value is one datum and nothing else")


def zigzag(number: int) -> bytes:
    number = ((number << 1) ^ (number >> 63)) & (2**64 - 1)
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


@pytest.mark.parametrize("length", [2**31 - 1, 2**31, 2**62, 2**63 - 1, -1, -37, -(2**63)])
def test_a_string_that_declares_an_absurd_length_is_undecodable_at_once(length: int) -> None:
    value = STORE.current[RecordName.MEMBER_ADDED].single_object_prefix + zigzag(length) + b"x" * 100
    assert rejected(lambda: decode(RecordName.MEMBER_ADDED, value))[0] is UNDECODABLE


@pytest.mark.parametrize(
    ("field", "encoded"), [("kind", b"\x01"), ("kind", b"\x04"), ("active", b"\x02"), ("role", b"\x01")]
)
def test_an_index_or_boolean_out_of_range_is_undecodable(field: str, encoded: bytes) -> None:
    # fastavro alone reads index -1 as the last symbol or branch, and any non-zero byte as true.
    schema = schema_of(RecordName.METHOD_CHANGED)
    names = [each["name"] for each in schema["fields"]]
    before = {**schema, "fields": schema["fields"][: names.index(field)]}
    after = {**schema, "fields": schema["fields"][names.index(field) + 1 :]}
    rest = b"\x0estudent" if field == "role" else b""
    after = copy.deepcopy(after)
    value = b"".join(
        [
            STORE.current[RecordName.METHOD_CHANGED].single_object_prefix,
            datum_bytes(before, METHOD),
            encoded,
            rest,
            datum_bytes(after, METHOD),
        ]
    )
    assert rejected(lambda: decode(RecordName.METHOD_CHANGED, value))[0] is UNDECODABLE


def test_text_that_is_not_utf8_is_undecodable() -> None:
    value = framed(RecordName.METHOD_CHANGED, METHOD).replace(b"Sales people", b"Sales\xff\xfeople")
    assert rejected(lambda: decode(RecordName.METHOD_CHANGED, value))[0] is UNDECODABLE


@pytest.mark.parametrize("header", [None, [], [("ce_id", None)]])
def test_an_empty_value_is_undecodable(header: Any) -> None:
    assert rejected(lambda: DECODER.decode("segments.membership", b"", header))[0] is UNDECODABLE


def test_an_unknown_fingerprint_is_an_unknown_schema_and_named() -> None:
    reason, detail = rejected(lambda: DECODER.decode("segments.membership", b"\xc3\x01\1\2\3\4\5\6\7\x08rest", None))
    assert reason is UNKNOWN
    assert "0102030405060708" in detail
    assert "SYNC_WORKER_SCHEMA_DIR" in detail


@pytest.mark.parametrize(
    ("value", "headers"),
    [(b"\0\0\0\0\x07abc", None), (b"abc", [("__value_schema_id", b"\x01" + bytes(16))])],
)
def test_confluent_framing_without_a_registry_names_the_setting(value: bytes, headers: Any) -> None:
    reason, detail = rejected(lambda: DECODER.decode("segments.membership", value, headers))
    assert reason is UNKNOWN
    assert "SYNC_WORKER_SCHEMA_REGISTRY_URL" in detail


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("topic", TOPICS)
def test_a_record_on_another_records_topic_is_an_invalid_event(name: RecordName, topic: str) -> None:
    if name in TOPICS[topic]:
        assert DECODER.decode(topic, framed(name, SAMPLES[name]), None)
    else:
        reason, detail = rejected(lambda: DECODER.decode(topic, framed(name, SAMPLES[name]), None))
        assert reason is INVALID
        assert name in detail
        assert topic in detail


def test_the_workers_own_output_is_an_invalid_event_on_an_input_topic() -> None:
    value = STORE.current[RecordName.ENROLLMENT_CHANGED].single_object_prefix + b"anything"
    assert rejected(lambda: DECODER.decode("segments.membership", value, None))[0] is INVALID


# Contract §2, "Valid or not".

ADDED, CHANGED, SOURCED, SUSPENDED = (
    RecordName.MEMBER_ADDED,
    RecordName.METHOD_CHANGED,
    RecordName.SOURCE_CHANGED,
    RecordName.SUSPENSION_CHANGED,
)
GROUP = {"kind": "SEGMENT_GROUP", "role": None}


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        (ADDED, {"version": 0}, "version: 0 is not between 1"),
        (ADDED, {"version": -(2**63)}, "version: -9223372036854775808 is not"),
        (ADDED, {"occurred_at": -1}, "occurred_at: -1 is not a time"),
        (ADDED, {"occurred_at": 253_402_300_800_000_000}, "occurred_at: 253402300800000000 is not a time"),
        (ADDED, {"user_id": "nobody"}, "user_id: 'nobody' is not a uuid"),
        (ADDED, {"user_id": ""}, "user_id: '' is not a uuid"),
        (ADDED, {"user_id": "aaaaaaaa000040008000000000000002"}, "user_id: 'aaaaaaaa0000400080000000000"),
        (ADDED, {"user_id": "{aaaaaaa-0000-4000-8000-000000000002"}, "user_id: "),
        (ADDED, {"user_id": "aaaaaaaa-0000-4000-8000-00000000000 "}, "user_id: "),
        (ADDED, {"user_id": "aaaaaa  -0000-4000-8000-000000000002"}, "user_id: "),
        (ADDED, {"user_id": "aaaaaaaa-0000-4000-8000-0000-0000002"}, "user_id: "),
        (ADDED, {"user_id": "aaaaaaaa-0000-4000-8000-00000000000٢"}, "user_id: "),
        (ADDED, {"user_id": "x\0y\n" * 9}, r"user_id: 'x\x00y\n"),
        (ADDED, {"user_id": "x" * 2_000_000}, "(2000000 characters) is not a uuid"),
        (ADDED, {"segment_id": "1", "event_id": "2"}, "event_id: '2' is not a uuid in the 8-4-4-4-12 form; segment_id"),
        (CHANGED, {"role": None}, "role: is None, but a SEGMENT_SYNC method needs a role"),
        (CHANGED, {"role": ""}, "role: is '', but a SEGMENT_SYNC method needs a role"),
        (CHANGED, {"role": "x" * 256}, "role: has 256 characters, at most 255"),
        (CHANGED, {**GROUP, "group_id": None}, "group_id: is null, but a SEGMENT_GROUP method needs a group"),
        (CHANGED, {**GROUP, "role": "student"}, "role: is 'student', but a SEGMENT_GROUP method has none"),
        (CHANGED, {**GROUP, "role": ""}, "role: is '', but a SEGMENT_GROUP method has none"),
        (CHANGED, {"name": "a\0b"}, "name: has a NUL character at position 1"),
        (CHANGED, {"segment_name": "\0"}, "segment_name: has a NUL character at position 0"),
        (CHANGED, {"name": "x" * 256}, "name: has 256 characters"),
        (CHANGED, {"name": "x" * 2_000_000}, "name: has 2000000 characters"),
        (CHANGED, {"segment_name": "x" * 256}, "segment_name: has 256 characters"),
        (CHANGED, {"group_id": "g"}, "group_id: 'g' is not a uuid"),
        (CHANGED, {"method_id": "m", "course_id": "c"}, "method_id: 'm' is not a uuid"),
        (CHANGED, {"version": 0}, "version: 0"),
        (SOURCED, {"source": ""}, "source: is empty"),
        (SOURCED, {"source": "s\0"}, "source: has a NUL"),
        (SOURCED, {"source": "s" * 256}, "source: has 256"),
        (SOURCED, {"source": "aaaaaaaa-0000-4000-8000-000000000002"}, "is a uuid; uuids name enrollment methods"),
        (SOURCED, {"source": "AAAAAAAA-0000-4000-8000-000000000002"}, "is a uuid; uuids name enrollment methods"),
        (SOURCED, {"role": ""}, "role: is empty; give a text, or null for no role"),
        (SOURCED, {"role": "r" * 256}, "role: has 256"),
        (SOURCED, {"course_id": "c"}, "course_id: 'c'"),
        (SOURCED, {"version": 0}, "version: 0"),
        (SUSPENDED, {"user_id": "u"}, "user_id: 'u'"),
        (SUSPENDED, {"occurred_at": -5}, "occurred_at: -5"),
    ],
)
def test_an_event_that_the_contract_forbids_says_which_field_and_why(
    name: RecordName, changes: Datum, says: str
) -> None:
    reason, detail = rejected(lambda: decode(name, framed(name, SAMPLES[name], **changes)))
    assert reason is INVALID
    assert says in detail


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        (ADDED, {"version": 1, "occurred_at": 0}),
        (ADDED, {"version": 2**63 - 1, "occurred_at": 253_402_300_799_999_999}),
        (CHANGED, {"name": "", "segment_name": "", "group_id": None}),
        (CHANGED, {"name": "é𝄞" * 127 + "x", "role": "𝄞" * 255, "segment_name": None}),
        (CHANGED, {**GROUP, "deleted": True, "on_removal": "SUSPEND_WITHOUT_ROLES"}),
        (SOURCED, {"source": "𝄞" * 255, "role": None, "status": "ABSENT"}),
        (SOURCED, {"source": "aaaaaaaa000040008000000000000002"}),
        (SUSPENDED, {"suspended": False}),
    ],
)
def test_what_the_contract_allows_is_an_event(name: RecordName, changes: Datum) -> None:
    datum = {**SAMPLES[name], **changes}
    assert decode(name, framed(name, datum)) == expected(name, datum, None)


# Other writer schemas than ours.


def decoder_with(schema: Any) -> tuple[Decoder, bytes]:
    """A decoder that also knows this writer schema, and its prefix."""
    added = parse(json.dumps(schema))
    store = SchemaStore(STORE.current, {**STORE.by_fingerprint, added.fingerprint: added})
    return Decoder(store, None, TOPICS), added.single_object_prefix


def evolved(name: RecordName, change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    schema = schema_of(name)
    change(schema)
    return schema


def test_a_newer_writers_further_fields_are_passed_over_and_missing_ones_take_their_defaults() -> None:
    extra = {"name": "tags", "type": {"type": "array", "items": "string"}}
    schema = evolved(CHANGED, lambda schema: schema["fields"].insert(3, extra))
    schema["fields"] = [field for field in schema["fields"] if field["name"] not in ("on_removal", "deleted")]
    decoder, prefix = decoder_with(schema)
    value = prefix + datum_bytes(schema, {**METHOD, "tags": ["a", "b"]})
    assert decoder.decode("enrollment.methods", value, None) == expected(CHANGED, METHOD, None)
    assert rejected(lambda: decoder.decode("enrollment.methods", value[:-1], None))[0] is UNDECODABLE
    assert rejected(lambda: decoder.decode("enrollment.methods", value + b"\0", None))[0] is UNDECODABLE


def enum_of(schema: Any, name: str) -> Any:
    return next(field for field in schema["fields"] if field["name"] == name)["type"]


def test_a_symbol_this_version_does_not_know_is_an_invalid_event_and_the_known_ones_are_read() -> None:
    schema = evolved(CHANGED, lambda schema: enum_of(schema, "on_removal")["symbols"].insert(0, "ARCHIVE"))
    decoder, prefix = decoder_with(schema)
    known = prefix + datum_bytes(schema, METHOD)
    assert decoder.decode("enrollment.methods", known, None) == expected(CHANGED, METHOD, None)
    unknown = prefix + datum_bytes(schema, {**METHOD, "on_removal": "ARCHIVE"})
    reason, detail = rejected(lambda: decoder.decode("enrollment.methods", unknown, None))
    assert reason is INVALID
    assert "ARCHIVE" in detail


@pytest.mark.parametrize(
    "change",
    [
        lambda schema: schema["fields"].pop(3),
        lambda schema: schema["fields"][3].update(type="long"),
        lambda schema: schema["fields"][4].update(type=["null", "long"]),
    ],
)
def test_a_writer_schema_that_cannot_be_read_as_ours_makes_invalid_events(change: Any) -> None:
    schema = evolved(ADDED, change)
    decoder, prefix = decoder_with(schema)
    datum: Datum = {**MEMBER}
    kinds = {field["name"]: field["type"] for field in schema["fields"]}
    if kinds.get("user_id") == "long":
        datum["user_id"] = 5
    if kinds.get("version") == ["null", "long"]:
        datum["version"] = None
    reason, _ = rejected(lambda: decoder.decode("segments.membership", prefix + datum_bytes(schema, datum), None))
    assert reason is INVALID


def test_a_writers_bytes_are_read_as_the_string_they_spell() -> None:
    schema = evolved(ADDED, lambda schema: schema["fields"][3].update(type="bytes"))
    decoder, prefix = decoder_with(schema)
    value = prefix + datum_bytes(schema, {**MEMBER, "user_id": MEMBER["user_id"].encode()})
    assert decoder.decode("segments.membership", value, None) == expected(ADDED, MEMBER, None)
    wrong = prefix + datum_bytes(schema, {**MEMBER, "user_id": b"\xff" * 36})
    assert rejected(lambda: decoder.decode("segments.membership", wrong, None))[0] is INVALID


def test_a_record_of_a_strange_name_is_an_invalid_event_wherever_its_schema_came_from() -> None:
    for change in ({"namespace": "other.v1"}, {"name": "SegmentMemberAdmired"}):
        schema = {**schema_of(ADDED), **change}
        decoder, prefix = decoder_with(schema)
        value = prefix + datum_bytes(schema, MEMBER)
        assert rejected(lambda: decoder.decode("segments.membership", value, None))[0] is INVALID  # noqa: B023


@LATER
@given(body=st.binary(max_size=300))
def test_random_bytes_under_a_schema_with_arrays_maps_and_floats_are_only_ever_rejected(body: bytes) -> None:
    assert rejected(lambda: RICH.decode("segments.membership", RICH_PREFIX + body, None))[0] in (UNDECODABLE, INVALID)


def _rich() -> tuple[Decoder, bytes]:
    inner = {"type": "record", "name": "I", "fields": [{"name": "n", "type": ["null", "int", "double"]}]}
    schema = schema_of(ADDED)
    schema["fields"][:0] = [
        {"name": "a", "type": {"type": "array", "items": inner}},
        {"name": "m", "type": {"type": "map", "values": "I"}},
        {"name": "f", "type": {"type": "fixed", "name": "F", "size": 3}},
        {"name": "d", "type": "float"},
    ]
    return decoder_with(schema)


RICH, RICH_PREFIX = _rich()


@pytest.mark.parametrize("count", [2**31, 2**62, 2**63 - 1, -1, -(2**40), -(2**63)])
def test_an_array_that_declares_an_absurd_count_is_undecodable_at_once(count: int) -> None:
    value = RICH_PREFIX + zigzag(count) + bytes(60)
    assert rejected(lambda: RICH.decode("segments.membership", value, None))[0] is UNDECODABLE


def test_the_same_member_decodes_whatever_else_its_event_id() -> None:
    ids = {decode(ADDED, framed(ADDED, MEMBER, event_id=str(uuid4()))).event_id for _ in range(3)}
    assert len(ids) == 3
