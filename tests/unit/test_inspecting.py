"""What is wrong with a record is found at its place; what is right has no flaw. No bytes raise anything."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sync_worker.events import RecordName
from sync_worker.operations.inspecting import Flaw, Inspector, hexdump
from sync_worker.settings import Settings
from tests.records import DATA, INPUTS, MEMBER, METHOD
from tests.support.wire import encode

SETTINGS = Settings(kafka_bootstrap_servers="nowhere:1")
INSPECTOR = Inspector(SETTINGS)
TOPIC_OF = {
    RecordName.MEMBER_ADDED: SETTINGS.membership_topic,
    RecordName.MEMBER_REMOVED: SETTINGS.membership_topic,
    RecordName.METHOD_CHANGED: SETTINGS.methods_topic,
    RecordName.SOURCE_CHANGED: SETTINGS.sources_topic,
    RecordName.SUSPENSION_CHANGED: SETTINGS.sources_topic,
}
A_METHOD = encode("EnrollmentMethodChanged", METHOD)


@pytest.mark.parametrize("name", INPUTS)
@given(data=st.data())
def test_a_valid_record_is_shown_whole(name: RecordName, data: st.DataObject) -> None:
    datum = data.draw(DATA[name])
    found = INSPECTOR.inspect(TOPIC_OF[name], encode(name, datum), ())
    assert (found.verdict, found.flaw) == (None, None)
    assert found.schema == f"user_segment_sync.v1.{name}"
    assert found.fields == datum


@pytest.mark.parametrize(
    ("value", "flaw", "last_field"),
    [
        (A_METHOD[:120], (93, 120, "course_id"), "version"),
        (A_METHOD + b"xx", (len(A_METHOD), len(A_METHOD) + 2, None), "deleted"),
        (A_METHOD[:-1] + b"\x07", (len(A_METHOD) - 1, len(A_METHOD), "deleted"), "deleted"),
        (A_METHOD[:10], (10, 11, "event_id"), None),
        (b"\xc3\x0112345678abc", (0, 10, None), None),
        (b"{}", (0, 1, None), None),
        (b"", (0, 0, None), None),
        (b"\0\0\0\0\x07abc", (0, 5, None), None),
    ],
)
def test_the_place_of_what_cannot_be_read_is_found(
    value: bytes, flaw: tuple[int, int, str | None], last_field: str | None
) -> None:
    found = INSPECTOR.inspect(SETTINGS.methods_topic, value, ())
    assert found.verdict is not None
    assert found.flaw is not None
    assert (found.flaw.begin, found.flaw.end, found.flaw.field) == flaw
    assert next(reversed(found.fields), None) == last_field


@pytest.mark.parametrize(
    ("name", "datum", "field"),
    [
        (RecordName.MEMBER_ADDED, MEMBER | {"user_id": "nobody"}, "user_id"),
        (RecordName.MEMBER_REMOVED, MEMBER | {"version": 0}, "version"),
        (RecordName.METHOD_CHANGED, METHOD | {"role": None}, "role"),
    ],
)
def test_the_place_of_what_is_invalid_is_that_of_the_field(name: RecordName, datum: dict[str, Any], field: str) -> None:
    value = encode(name, datum)
    found = INSPECTOR.inspect(TOPIC_OF[name], value, ())
    assert found.flaw is not None
    assert found.flaw.field == field
    assert found.fields == datum
    longer = encode(name, datum | {field: "x" * 40}) if isinstance(datum[field], str) else None
    if longer is not None:
        assert value[: found.flaw.begin] == longer[: found.flaw.begin]
        assert longer.endswith(value[found.flaw.end :])


def test_a_topic_that_is_not_read_has_no_valid_record() -> None:
    assert INSPECTOR.inspect("elsewhere", A_METHOD, ()).verdict == "elsewhere is no input topic"


@given(st.sampled_from(sorted(TOPIC_OF.values())), st.binary() | st.binary().map(lambda tail: A_METHOD[:40] + tail))
def test_no_bytes_raise_anything_and_what_is_rejected_for_its_bytes_has_a_place(topic: str, value: bytes) -> None:
    found = INSPECTOR.inspect(topic, value, ())
    if found.verdict is not None and found.verdict.startswith("undecodable"):
        assert found.flaw is not None
        assert 0 <= found.flaw.begin <= len(value)
        assert hexdump(value, found.flaw)


def test_the_bytes_around_a_flaw_are_shown_with_it_in_brackets() -> None:
    value = bytes(range(0x20, 0x80))
    assert hexdump(value, Flaw(50, 52, None, "")) == [
        "00000010  30  31  32  33  34  35  36  37  38  39  3a  3b  3c  3d  3e  3f  0123456789:;<=>?",
        "00000020  40  41  42  43  44  45  46  47  48  49  4a  4b  4c  4d  4e  4f  @ABCDEFGHIJKLMNO",
        "00000030  50  51 [52][53] 54  55  56  57  58  59  5a  5b  5c  5d  5e  5f  PQRSTUVWXYZ[\\]^_",
        "00000040  60  61  62  63  64  65  66  67  68  69  6a  6b  6c  6d  6e  6f  `abcdefghijklmno",
        "00000050  70  71  72  73  74  75  76  77  78  79  7a  7b  7c  7d  7e  7f  pqrstuvwxyz{|}~.",
    ]


def test_a_large_flaw_is_shown_at_its_beginning() -> None:
    assert len(hexdump(bytes(100_000), Flaw(1000, 100_000, None, ""))) < 10
