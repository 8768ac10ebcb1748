"""A membership event out of its Avro bytes, as any consumer would decode it: by fastavro and the schema that its prefix names."""

import json
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import fastavro
from fastavro.schema import fingerprint, to_parsing_canonical_form

_SCHEMAS = Path(__file__).resolve().parents[2] / "schemas"
_PREFIX_BYTES = 10


@cache
def _schemas() -> dict[bytes, tuple[bool, Any]]:
    found = {}
    for name, is_member in (("SegmentMemberAdded", True), ("SegmentMemberRemoved", False)):
        raw = json.loads((_SCHEMAS / f"{name}.avsc").read_text("utf-8"))
        prefix = b"\xc3\x01" + bytes.fromhex(fingerprint(to_parsing_canonical_form(raw), "CRC-64-AVRO"))
        found[prefix] = (is_member, fastavro.parse_schema(raw))
    return found


def decode(value: bytes) -> dict[str, Any]:
    """Its fields as text and numbers, and `is_member`."""
    is_member, schema = _schemas()[value[:_PREFIX_BYTES]]
    event: Any = fastavro.schemaless_reader(BytesIO(value[_PREFIX_BYTES:]), schema, None)
    return {
        "segment_id": str(event["segment_id"]),
        "user_id": str(event["user_id"]),
        "version": event["version"],
        "is_member": is_member,
        "event_id": str(event["event_id"]),
    }
