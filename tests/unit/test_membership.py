"""The short way to a membership says what the long way says, of whatever bytes, and is taken by all that publishers write."""

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sync_worker.events import RecordName
from sync_worker.intake.decoding import _direct_reader
from sync_worker.intake.membership import has_layout, membership_at
from sync_worker.intake.validation import BUILDERS
from sync_worker.schema.store import load_schemas
from tests.records import MEMBER, datum_bytes, schema_of

SCHEMAS = load_schemas().current
READ = _direct_reader(SCHEMAS[RecordName.MEMBER_ADDED], BUILDERS[RecordName.MEMBER_ADDED])
PREFIX = b"\xc3\x01prefix.."


def framed(**changes: Any) -> bytes:
    return PREFIX + datum_bytes(schema_of(RecordName.MEMBER_ADDED), {**MEMBER, **changes})


def short(value: bytes) -> object:
    return membership_at(value, len(PREFIX), "trace", is_member=True)


def test_the_members_schemas_have_the_layout_and_no_other_has() -> None:
    assert {name for name, schema in SCHEMAS.items() if has_layout(schema)} == {
        RecordName.MEMBER_ADDED,
        RecordName.MEMBER_REMOVED,
    }


@given(
    version=st.one_of(st.integers(1, 8191), st.integers(2**48, 2**55 - 1)),
    occurred_at=st.integers(2**48, 2**55 - 1),
    ids=st.tuples(st.uuids(), st.uuids(), st.uuids()),
    upper=st.booleans(),
)
@example(version=1, occurred_at=1_795_000_000_000_000, ids=(MEMBER["event_id"],) * 3, upper=False)
def test_counters_and_times_as_versions_go_the_short_way(
    version: int, occurred_at: int, ids: tuple[object, ...], upper: bool
) -> None:
    event, segment, user = (str(id_).upper() if upper else str(id_) for id_ in ids)
    value = framed(version=version, occurred_at=occurred_at, event_id=event, segment_id=segment, user_id=user)
    assert short(value) is not None
    assert short(value) == READ(value, len(PREFIX), "trace")


@settings(max_examples=1000)
@given(
    version=st.one_of(st.integers(-1, 2**14), st.integers(-(2**63), 2**63 - 1)),
    occurred_at=st.one_of(st.integers(0, 2**55), st.integers(-(2**63), 2**63 - 1)),
    edits=st.lists(st.tuples(st.integers(10, 140), st.binary(max_size=2), st.integers(0, 2)), max_size=3),
)
def test_whatever_the_short_way_takes_the_long_way_takes_as_the_same(
    version: int, occurred_at: int, edits: list[tuple[int, bytes, int]]
) -> None:
    value = framed(version=version, occurred_at=occurred_at)
    for place, put, dropped in edits:
        value = value[:place] + put + value[place + dropped :]
    found = short(value)
    if found is not None:  # what it leaves is the long way's alone
        assert found == READ(value, len(PREFIX), "trace")


@pytest.mark.parametrize("place", range(10, 130))
def test_no_single_byte_is_overlooked(place: int) -> None:
    value = framed(version=2**50)
    for byte in (0x00, 0x01, 0x2D, 0x20, 0x47, 0x48, 0x49, 0x61, 0x67, 0x7F, 0x80, 0xFF):
        changed = value[:place] + bytes([byte]) + value[place + 1 :]
        found = short(changed)
        if found is not None:
            assert found == READ(changed, len(PREFIX), "trace")


def test_numbers_in_more_bytes_than_they_need_go_the_long_way() -> None:
    value = framed(version=2**50)
    assert short(value[:-1] + bytes([value[-1] | 0x80]) + b"\x00") is None
    assert short(framed(version=1)[:-1] + b"\x82\x00") is None
