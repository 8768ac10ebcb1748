"""Avro as a publisher and a consumer write and read it: by fastavro and the .avsc files alone, not by the worker's code."""

from __future__ import annotations

import json
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import fastavro
from fastavro.schema import fingerprint, to_parsing_canonical_form

SCHEMAS = Path(__file__).resolve().parents[2] / "schemas"


@cache
def schema(name: str) -> Any:
    """The schema of a record, as fastavro parsed it."""
    return fastavro.parse_schema(json.loads((SCHEMAS / f"{name}.avsc").read_text("utf-8")))


@cache
def prefix(name: str) -> bytes:
    """The single-object prefix: the magic and the CRC-64-AVRO fingerprint, which fastavro gives in little endian already."""
    raw = json.loads((SCHEMAS / f"{name}.avsc").read_text("utf-8"))
    return b"\xc3\x01" + bytes.fromhex(fingerprint(to_parsing_canonical_form(raw), "CRC-64-AVRO"))


def encode(name: str, fields: dict[str, Any]) -> bytes:
    """A record in single-object encoding."""
    buffer = BytesIO(prefix(str(name)))
    buffer.seek(0, 2)
    fastavro.schemaless_writer(buffer, schema(str(name)), fields)
    return buffer.getvalue()


def decode_change(value: bytes) -> dict[str, Any]:
    """An EnrollmentChanged in single-object encoding; ids as text."""
    assert value[:10] == prefix("EnrollmentChanged"), value[:10]
    buffer = BytesIO(value)
    buffer.seek(10)
    event: Any = fastavro.schemaless_reader(buffer, schema("EnrollmentChanged"), None)
    assert not buffer.read(), "bytes after the datum"
    return json.loads(json.dumps(event, default=str))  # type: ignore[no-any-return]  # an object
