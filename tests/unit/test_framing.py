"""The three framings of contract §2 are told apart by the record itself, and headers are read for what they are."""

from uuid import UUID

import pytest
from confluent_kafka.schema_registry.serde import SchemaId
from hypothesis import given
from hypothesis import strategies as st

from sync_worker.errors import InvalidRecord, RejectionReason
from sync_worker.intake.framing import Frame, frame_of, read_headers, valid_traceparent
from sync_worker.schema.wire import cloud_event_headers, confluent_prefix, rfc3339

GUID = UUID("89791762-2336-4186-9674-299b90a802e2")
TRACEPARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_value_that_begins_with_zero_names_a_registry_id_in_its_next_four_bytes() -> None:
    assert frame_of(b"\0\0\0\x01\x02rest", None) == Frame(258, 5)


def test_a_value_that_begins_with_c3_01_names_a_fingerprint() -> None:
    assert frame_of(b"\xc3\x01abcdefghrest", None) == Frame(b"abcdefgh", 10)


def test_a_guid_in_the_header_goes_before_what_the_value_looks_like() -> None:
    header = SchemaId("AVRO", guid=str(GUID)).guid_to_bytes()
    for value in (b"", b"\0\0\0\0\x01x", b"\xc3\x01abcdefgh"):
        assert frame_of(value, header) == Frame(GUID, 0)


def test_an_id_in_the_header_is_read_as_confluents_deserializers_do() -> None:
    assert frame_of(b"x", SchemaId("AVRO", schema_id=7).id_to_bytes()) == Frame(7, 0)


@given(st.integers(0, 2**32 - 1))
def test_our_confluent_prefix_is_confluents(schema_id: int) -> None:
    assert confluent_prefix(schema_id) == SchemaId("AVRO", schema_id=schema_id).id_to_bytes()


@pytest.mark.parametrize("length", range(5))
def test_a_confluent_prefix_cut_short_is_undecodable(length: int) -> None:
    with pytest.raises(InvalidRecord) as caught:
        frame_of(b"\0\0\0\0\x01"[:length], None)
    assert caught.value.reason is RejectionReason.UNDECODABLE


@pytest.mark.parametrize("length", range(2, 10))
def test_a_single_object_prefix_cut_short_is_undecodable(length: int) -> None:
    with pytest.raises(InvalidRecord, match=f"ends after {length} of its 10 bytes"):
        frame_of(b"\xc3\x01abcdefgh"[:length], None)


@pytest.mark.parametrize("value", [b"{}", b"[1]", b"\xc3\x02abcdefgh", b"Obj\x01", b"\xff" * 40])
def test_any_other_beginning_is_undecodable_and_named(value: bytes) -> None:
    with pytest.raises(InvalidRecord, match=f"begins with byte 0x{value[0]:02x}") as caught:
        frame_of(value, None)
    assert caught.value.reason is RejectionReason.UNDECODABLE
    assert ("JSON" in caught.value.detail) == (value[:1] in b"{[")


@pytest.mark.parametrize("header", [b"", b"\x01", b"\x01" + b"x" * 15, b"\x01" + b"x" * 17, b"\x02" + b"x" * 16, b"7"])
def test_a_schema_id_header_of_no_known_form_is_undecodable(header: bytes) -> None:
    with pytest.raises(InvalidRecord, match="__value_schema_id header") as caught:
        frame_of(b"\xc3\x01abcdefgh", header)
    assert caught.value.reason is RejectionReason.UNDECODABLE


@given(st.binary(max_size=40), st.none() | st.binary(max_size=20))
def test_any_bytes_give_a_frame_inside_the_value_or_an_undecodable_record(value: bytes, header: bytes | None) -> None:
    try:
        outcome: Frame | InvalidRecord = frame_of(value, header)
    except InvalidRecord as rejection:
        outcome = rejection
    if isinstance(outcome, InvalidRecord):
        assert outcome.reason is RejectionReason.UNDECODABLE
        assert len(outcome.detail) <= 500
    else:
        assert 0 <= outcome.start <= len(value)


def test_headers_give_the_trace_and_the_schema_id_and_nothing_else() -> None:
    headers = [
        ("ce_id", b"1"),
        ("traceparent", TRACEPARENT),
        ("__value_schema_id", b"\x01x"),
        ("__key_schema_id", b"k"),
    ]
    assert read_headers(headers) == (TRACEPARENT.decode(), b"\x01x")
    assert read_headers([]) == (None, None)


def test_of_headers_given_twice_the_first_counts_and_one_without_value_is_none() -> None:
    other = TRACEPARENT.replace(b"0af", b"1af")
    assert read_headers([("traceparent", None), ("traceparent", TRACEPARENT), ("traceparent", other)]) == (
        TRACEPARENT.decode(),
        None,
    )
    assert read_headers([("__value_schema_id", None)]) == (None, None)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        TRACEPARENT.upper(),
        TRACEPARENT[:-1],
        TRACEPARENT + b"0",
        TRACEPARENT + b"-more",
        b"ff" + TRACEPARENT[2:],
        b"00-" + b"0" * 32 + b"-b7ad6b7169203331-01",
        b"00-0af7651916cd43dd8448eb211c80319c-" + b"0" * 16 + b"-01",
        TRACEPARENT.replace(b"-", b"_"),
        TRACEPARENT.replace(b"a", b"g"),
        TRACEPARENT.replace(b"a", b"\xe9"),
        TRACEPARENT.replace(b"a", b"\0"),
        b"00-0af7651916cd43dd8448eb211c80319-cb7ad6b7169203331-01",
        b"-" * 55,
    ],
)
def test_a_traceparent_that_w3c_would_not_write_is_ignored(value: bytes) -> None:
    assert valid_traceparent(value) is None
    assert read_headers([("traceparent", value)]) == (None, None)


def test_a_valid_traceparent_is_kept_as_it_is() -> None:
    assert valid_traceparent(TRACEPARENT) == TRACEPARENT.decode()


def test_cloud_events_headers_are_the_binary_modes() -> None:
    headers = cloud_event_headers(
        event_id="e", full_name="n.R", source="s", occurred_at=1, subject="k", traceparent=TRACEPARENT.decode()
    )
    assert dict(headers) == {
        "ce_specversion": b"1.0",
        "ce_id": b"e",
        "ce_type": b"n.R",
        "ce_source": b"s",
        "ce_time": b"1970-01-01T00:00:00.000001Z",
        "ce_subject": b"k",
        "content-type": b"application/avro",
        "traceparent": TRACEPARENT,
    }


@pytest.mark.parametrize(
    ("micros", "text"), [(0, "1970-01-01T00:00:00.000000Z"), (253_402_300_799_999_999, "9999-12-31T23:59:59.999999Z")]
)
def test_times_are_written_to_the_microsecond(micros: int, text: str) -> None:
    assert rfc3339(micros) == text
