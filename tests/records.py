"""Valid data of every input record, and their encodings, for the tests of schemas, intake and publishing.

Encodes with fastavro alone, not with the code under test.
"""

import json
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import UUID

from fastavro import parse_schema, schemaless_writer
from hypothesis import strategies as st

from sync_worker.events import RecordName

SCHEMAS = Path(__file__).parent.parent / "schemas"
TOPICS = {
    "segments.membership": frozenset({RecordName.MEMBER_ADDED, RecordName.MEMBER_REMOVED}),
    "enrollment.methods": frozenset({RecordName.METHOD_CHANGED}),
    "enrollment.sources": frozenset({RecordName.SOURCE_CHANGED, RecordName.SUSPENSION_CHANGED}),
}
TOPIC_OF = {name: topic for topic, names in TOPICS.items() for name in names}
INPUTS = tuple(sorted(TOPIC_OF))  # in one order in every process that collects tests

Datum = dict[str, Any]

_uuids = st.uuids().map(str)
_texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=255)
_filled = _texts.filter(bool)
_head = {
    "event_id": _uuids,
    "occurred_at": st.integers(0, 253_402_300_799_999_999),
    "version": st.integers(1, 2**63 - 1),
}
_member = st.fixed_dictionaries({**_head, "segment_id": _uuids, "user_id": _uuids})
_course_user = {**_head, "course_id": _uuids, "user_id": _uuids}


def _is_no_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return True
    return False


_method: dict[str, st.SearchStrategy[Any]] = {
    **_head,
    "method_id": _uuids,
    "course_id": _uuids,
    "segment_id": _uuids,
    "segment_name": st.none() | _texts,
    "name": _texts,
    "active": st.booleans(),
    "visible": st.booleans(),
    "on_removal": st.sampled_from(["UNENROLL", "SUSPEND", "SUSPEND_WITHOUT_ROLES"]),
    "deleted": st.booleans(),
}
DATA: dict[RecordName, st.SearchStrategy[Datum]] = {
    RecordName.MEMBER_ADDED: _member,
    RecordName.MEMBER_REMOVED: _member,
    RecordName.METHOD_CHANGED: st.fixed_dictionaries(
        {**_method, "kind": st.just("SEGMENT_SYNC"), "role": _filled, "group_id": st.none() | _uuids}
    )
    | st.fixed_dictionaries({**_method, "kind": st.just("SEGMENT_GROUP"), "role": st.none(), "group_id": _uuids}),
    RecordName.SOURCE_CHANGED: st.fixed_dictionaries(
        {
            **_course_user,
            "source": _filled.filter(_is_no_uuid),
            "status": st.sampled_from(["ACTIVE", "SUSPENDED", "ABSENT"]),
            "role": st.none() | _filled,
        }
    ),
    RecordName.SUSPENSION_CHANGED: st.fixed_dictionaries({**_course_user, "suspended": st.booleans()}),
}
"""Valid data of each input record, as contract §2 allows them."""

MEMBER: Datum = {
    "event_id": "0b0e6a9e-6ad9-4b5f-8a53-1f2a0d8a7f11",
    "occurred_at": 1_750_000_000_000_000,
    "segment_id": "5e6f7a8b-0000-4000-8000-000000000001",
    "user_id": "aaaaaaaa-0000-4000-8000-000000000002",
    "version": 7,
}
METHOD: Datum = {
    "event_id": "0b0e6a9e-6ad9-4b5f-8a53-1f2a0d8a7f12",
    "occurred_at": 1_750_000_000_000_001,
    "method_id": "3e7a0d00-0000-4000-8000-000000000003",
    "version": 3,
    "course_id": "c0000000-0000-4000-8000-000000000004",
    "segment_id": "5e6f7a8b-0000-4000-8000-000000000001",
    "segment_name": "Sales",
    "kind": "SEGMENT_SYNC",
    "name": "Sales people",
    "active": True,
    "visible": True,
    "role": "student",
    "group_id": "90000000-0000-4000-8000-000000000005",
    "on_removal": "UNENROLL",
    "deleted": False,
}
SOURCE: Datum = {
    "event_id": "0b0e6a9e-6ad9-4b5f-8a53-1f2a0d8a7f13",
    "occurred_at": 1_750_000_000_000_002,
    "course_id": "c0000000-0000-4000-8000-000000000004",
    "user_id": "aaaaaaaa-0000-4000-8000-000000000002",
    "source": "manual",
    "version": 1,
    "status": "ACTIVE",
    "role": "teacher",
}
SUSPENSION: Datum = {
    "event_id": "0b0e6a9e-6ad9-4b5f-8a53-1f2a0d8a7f14",
    "occurred_at": 1_750_000_000_000_003,
    "course_id": "c0000000-0000-4000-8000-000000000004",
    "user_id": "aaaaaaaa-0000-4000-8000-000000000002",
    "version": 2,
    "suspended": True,
}
SAMPLES: dict[RecordName, Datum] = {
    RecordName.MEMBER_ADDED: MEMBER,
    RecordName.MEMBER_REMOVED: MEMBER,
    RecordName.METHOD_CHANGED: METHOD,
    RecordName.SOURCE_CHANGED: SOURCE,
    RecordName.SUSPENSION_CHANGED: SUSPENSION,
}


def schema_of(name: RecordName) -> dict[str, Any]:
    """The current .avsc as JSON."""
    loaded: dict[str, Any] = json.loads((SCHEMAS / f"{name}.avsc").read_text("utf-8"))
    return loaded


def without_logical_types(node: Any) -> Any:
    """The schema as fastavro writes it from plain strings and integers."""
    if isinstance(node, dict):
        return {key: without_logical_types(value) for key, value in node.items() if key != "logicalType"}
    return [without_logical_types(each) for each in node] if isinstance(node, list) else node


def datum_bytes(schema: Any, datum: Any) -> bytes:
    """A bare Avro datum, without any framing."""
    written = BytesIO()
    schemaless_writer(written, parse_schema(without_logical_types(schema)), datum)
    return written.getvalue()
