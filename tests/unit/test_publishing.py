"""A JSON line becomes the record that intake reads as the same event; a wrong one says what is wrong with it."""

import json
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sync_worker.events import NAMESPACE, RecordName, Suspension
from sync_worker.intake.decoding import Decoder
from sync_worker.operations.publishing import InvalidLine, LineEncoder
from sync_worker.schema.store import load_schemas
from tests.records import DATA, INPUTS, MEMBER, METHOD, SAMPLES, SOURCE, TOPIC_OF, TOPICS, Datum, datum_bytes, schema_of

STORE = load_schemas()
DECODER = Decoder(STORE, None, TOPICS)
NOW = 1_760_000_000_000_000
NEW_ID = UUID("11111111-2222-4333-8444-555555555555")
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def encoder(**changes: Any) -> LineEncoder:
    return LineEncoder(STORE, changes.pop("topics", TOPIC_OF), now=lambda: NOW, new_id=lambda: NEW_ID, **changes)


def line(record: RecordName, datum: Datum, **changes: Any) -> str:
    return json.dumps({"type": record, **datum, **changes})


def fault_of(text: str | bytes) -> str:
    with pytest.raises(InvalidLine) as caught:
        encoder().encode_line(text)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000
    return str(caught.value)


@pytest.mark.parametrize("name", INPUTS)
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_line_becomes_the_record_that_intake_reads_as_the_same_event(name: RecordName, data: st.DataObject) -> None:
    datum = data.draw(DATA[name])
    publication = encoder().encode_line(line(name, datum))
    bare = datum_bytes(schema_of(name), datum)
    assert publication.topic == TOPIC_OF[name]
    assert publication.value == STORE.current[name].single_object_prefix + bare
    headers: list[tuple[str, bytes | None]] = [*publication.headers]
    event = DECODER.decode(publication.topic, publication.value, headers)
    assert event.version == datum["version"]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        (RecordName.MEMBER_ADDED, MEMBER["user_id"]),
        (RecordName.MEMBER_REMOVED, MEMBER["user_id"]),
        (RecordName.METHOD_CHANGED, METHOD["method_id"]),
        (RecordName.SOURCE_CHANGED, f"{SOURCE['course_id']}:{SOURCE['user_id']}"),
        (RecordName.SUSPENSION_CHANGED, f"{SOURCE['course_id']}:{SOURCE['user_id']}"),
    ],
)
def test_the_key_is_the_contracts_and_the_headers_are_cloud_events(name: RecordName, key: str) -> None:
    publication = encoder(source="lms").encode_line(line(name, SAMPLES[name], traceparent=TRACEPARENT))
    headers = dict(publication.headers)
    assert publication.key == key.encode()
    assert headers["ce_specversion"] == b"1.0"
    assert headers["ce_id"] == SAMPLES[name]["event_id"].encode()
    assert headers["ce_type"] == f"{NAMESPACE}.{name}".encode()
    assert headers["ce_source"] == b"lms"
    assert headers["ce_time"].startswith(b"2025-06-15T15:06:40.00000")
    assert headers["ce_subject"] == publication.key
    assert headers["traceparent"] == TRACEPARENT.encode()
    assert headers["content-type"] == b"application/avro"


def test_event_id_time_and_version_are_filled_in_and_no_two_lines_get_the_same_time() -> None:
    short = {"type": "SegmentMemberAdded", "segment_id": MEMBER["segment_id"], "user_id": MEMBER["user_id"]}
    lines = encoder()
    events = [DECODER.decode(TOPIC_OF[RecordName.MEMBER_ADDED], lines.encode_line(json.dumps(short)).value, None)] * 1
    events += [DECODER.decode(TOPIC_OF[RecordName.MEMBER_ADDED], lines.encode_line(json.dumps(short)).value, None)]
    assert [(event.event_id, event.occurred_at, event.version) for event in events] == [
        (NEW_ID.bytes, NOW, NOW),
        (NEW_ID.bytes, NOW + 1, NOW + 1),
    ]


def test_the_schemas_defaults_are_filled_in() -> None:
    brief = {field: METHOD[field] for field in METHOD if field not in ("segment_name", "on_removal", "deleted")}
    publication = encoder().encode_line(line(RecordName.METHOD_CHANGED, brief))
    filled = {**METHOD, "segment_name": None, "on_removal": "UNENROLL", "deleted": False}
    assert publication.value.endswith(datum_bytes(schema_of(RecordName.METHOD_CHANGED), filled))


@pytest.mark.parametrize(
    ("written", "micros"),
    [
        (0, 0),
        ("1970-01-01T00:00:00Z", 0),
        ("2025-06-15T15:06:40.000001+00:00", 1_750_000_000_000_001),
        ("2025-06-15T17:06:40.000001+02:00", 1_750_000_000_000_001),
        ("9999-12-31T23:59:59.999999Z", 253_402_300_799_999_999),
    ],
)
def test_a_time_may_be_microseconds_or_iso_8601(written: Any, micros: int) -> None:
    text = line(RecordName.SUSPENSION_CHANGED, SAMPLES[RecordName.SUSPENSION_CHANGED], occurred_at=written)
    event = DECODER.decode("enrollment.sources", encoder().encode_line(text).value, None)
    assert isinstance(event, Suspension)
    assert event.occurred_at == micros


def test_ids_are_published_in_lower_case_and_the_source_as_it_is() -> None:
    loud = {**SOURCE, "user_id": SOURCE["user_id"].upper(), "event_id": SOURCE["event_id"].upper(), "source": "Manual"}
    publication = encoder().encode_line(line(RecordName.SOURCE_CHANGED, loud))
    assert publication.key.decode() == f"{SOURCE['course_id']}:{SOURCE['user_id']}"
    assert publication.value.endswith(datum_bytes(schema_of(RecordName.SOURCE_CHANGED), {**SOURCE, "source": "Manual"}))


def test_a_type_may_carry_its_namespace_and_a_line_may_be_bytes() -> None:
    text = json.dumps({"type": f"{NAMESPACE}.SegmentMemberAdded", **MEMBER})
    assert encoder().encode_line(text.encode()) == encoder().encode_line(line(RecordName.MEMBER_ADDED, MEMBER))


class Registering:
    """What the encoder asks of a registry."""

    def register(self, topic: str, schema: Any) -> int:
        assert (topic, schema.full_name) == ("segments.membership", f"{NAMESPACE}.SegmentMemberAdded")
        return 258


def test_with_a_registry_the_framing_is_confluents() -> None:
    publication = encoder(registry=Registering()).encode_line(line(RecordName.MEMBER_ADDED, MEMBER))
    assert publication.value == b"\0\0\0\x01\x02" + datum_bytes(schema_of(RecordName.MEMBER_ADDED), MEMBER)


ADDED = RecordName.MEMBER_ADDED


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not a JSON object"),
        ("{", "not a JSON object"),
        ("[]", "not a JSON object: []"),
        ("null", "not a JSON object: None"),
        ('"' + "x" * 5000 + '"', "(5000 characters)"),
        ("[" * 100_000, "not a JSON object"),
        (b"\xff\xfe{}", "not a JSON object"),
        ('{"a": ' + "1" * 5000 + "}", "not a JSON object"),
        ('{"type": "SegmentMemberAdded", "type": "SegmentMemberRemoved"}', "a field is given twice"),
        ("{}", "type: is missing"),
        ('{"type": "X\\u0000Y"}', r"type: 'X\x00Y' is not one of SegmentMemberAdded, "),
        ('{"type": ["SegmentMemberAdded"]}', "type: ['SegmentMemberAdded'] is not one of"),
        ('{"type": "EnrollmentChanged"}', "published by the worker alone"),
        (line(ADDED, MEMBER, usr_id="x"), "SegmentMemberAdded has no field 'usr_id'; its fields are event_id, "),
        (line(ADDED, {"segment_id": MEMBER["segment_id"]}), "user_id: is missing; it must be a string"),
        (line(ADDED, MEMBER, version="7"), "version: '7' is not an integer"),
        (line(ADDED, MEMBER, version=7.0), "version: 7.0 is not an integer"),
        (line(ADDED, MEMBER, version=True), "version: True is not an integer"),
        (line(ADDED, MEMBER, version=None), "version: None is not an integer"),
        (line(ADDED, MEMBER, version=0), "version: 0 is not between 1 and"),
        (line(ADDED, MEMBER, version=2**63), "version: 9223372036854775808 is not between 1 and"),
        (line(ADDED, MEMBER, version=float("nan")), "version: nan is not an integer"),
        (line(ADDED, MEMBER, user_id=5), "user_id: 5 is not a string"),
        (line(ADDED, MEMBER, user_id="5"), "user_id: '5' is not a uuid"),
        (line(ADDED, MEMBER, occurred_at="yesterday"), "occurred_at: 'yesterday' is neither microseconds"),
        (line(ADDED, MEMBER, occurred_at="2025-01-31T12:00:00"), "has no time zone; add Z"),
        (line(ADDED, MEMBER, occurred_at="1969-12-31T23:59:59Z"), "occurred_at: -1000000 is not a time"),
        (line(ADDED, MEMBER, occurred_at=None), "occurred_at: None is not an integer"),
        (line(ADDED, MEMBER, traceparent="00-1"), "traceparent: '00-1' is not a W3C traceparent"),
        (line(ADDED, MEMBER, traceparent="é" * 55), "is not a W3C traceparent"),
        (line(ADDED, MEMBER, traceparent=5), "traceparent: 5 is not"),
        (line(RecordName.METHOD_CHANGED, METHOD, active=1), "active: 1 is not true or false"),
        (line(RecordName.METHOD_CHANGED, METHOD, role=5), "role: 5 is not a string or null"),
        (line(RecordName.METHOD_CHANGED, METHOD, role=None), "needs a role"),
        (line(RecordName.METHOD_CHANGED, METHOD, kind="COHORT"), "kind: 'COHORT' is not one of SEGMENT_SYNC, SEGMENT_"),
        (line(RecordName.METHOD_CHANGED, METHOD, on_removal="x"), "on_removal: 'x' is not one of UNENROLL, SUSPEND"),
        (line(RecordName.METHOD_CHANGED, METHOD, name="\ud800"), r"name: '\ud800' has half of a surrogate pair"),
        (
            line(RecordName.SOURCE_CHANGED, SOURCE, status="GONE"),
            "status: 'GONE' is not one of ACTIVE, SUSPENDED, ABSENT",
        ),
        (line(RecordName.SOURCE_CHANGED, SOURCE, source=MEMBER["user_id"]), "uuids name enrollment methods"),
    ],
)
def test_a_wrong_line_says_what_is_wrong(text: str | bytes, says: str) -> None:
    assert says in fault_of(text)


def test_every_wrong_field_is_named_at_once() -> None:
    said = fault_of(line(ADDED, {"segment_id": 5, "version": "x"}))
    assert all(field in said for field in ("segment_id: 5", "user_id: is missing", "version: 'x'"))


@pytest.mark.parametrize("topics", [{}, {**TOPIC_OF, RecordName.SOURCE_CHANGED: ""}])
def test_a_record_whose_topic_is_not_used_is_refused(topics: dict[RecordName, str]) -> None:
    with pytest.raises(InvalidLine, match="has no topic"):
        encoder(topics=topics).encode_line(line(RecordName.SOURCE_CHANGED, SOURCE))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=3,
)


@given(
    name=st.sampled_from(INPUTS),
    changes=st.dictionaries(
        st.sampled_from([*METHOD, *SOURCE, "type", "traceparent"]) | st.text(), json_values, max_size=3
    ),
)
def test_any_json_is_published_as_a_valid_event_or_refused(name: RecordName, changes: dict[str, Any]) -> None:
    text = json.dumps({"type": name, **SAMPLES[name], **changes})
    try:
        publication = encoder().encode_line(text)
    except InvalidLine as refusal:
        assert str(refusal)
    else:
        headers: list[tuple[str, bytes | None]] = [*publication.headers]
        DECODER.decode(publication.topic, publication.value, headers)


@given(st.text() | st.binary())
def test_any_text_is_refused_in_words(text: str | bytes) -> None:
    fault_of(text)
