"""Where the datum of a record begins, and which schema it says it was written with (contract §2, "Framing").

Tells Confluent framing, a schema GUID in the headers, and Avro single-object encoding apart, per record. Must never
read past a prefix, and never reject a record for its headers alone: they are advice, but for the schema id.
"""

from typing import NamedTuple
from uuid import UUID

from sync_worker.errors import InvalidRecord, RejectionReason
from sync_worker.events import Headers
from sync_worker.schema.wire import (
    CONFLUENT_MAGIC,
    CONFLUENT_PREFIX_BYTES,
    GUID_MAGIC,
    SCHEMA_ID_HEADER,
    SINGLE_OBJECT_MAGIC,
    SINGLE_OBJECT_PREFIX_BYTES,
    TRACEPARENT_HEADER,
)

SchemaReference = bytes | int | UUID
"""A CRC-64-AVRO fingerprint as on the wire, an id in the registry, or a GUID in it."""

_TRACEPARENT_BYTES = 55
_NO_TRACE = "0" * 32
_NO_SPAN = "0" * 16
_LOWER_HEX = frozenset("0123456789abcdef")


class Frame(NamedTuple):
    """The schema that a record names, and the offset of its datum in the value."""

    schema: SchemaReference
    start: int


def read_headers(headers: Headers) -> tuple[str | None, bytes | None]:
    """The record's traceparent, if it has a valid one, and the value of its schema id header, if it has that.

    Of several headers of one name the first counts, as in Confluent's deserializers.
    """
    traceparent: bytes | None = None
    schema_id: bytes | None = None
    for name, value in headers:
        if name == TRACEPARENT_HEADER and traceparent is None:
            traceparent = value
        elif name == SCHEMA_ID_HEADER and schema_id is None:
            schema_id = value
    return (None if traceparent is None else valid_traceparent(traceparent)), schema_id


def valid_traceparent(value: bytes) -> str | None:
    """The header's text when it has the form that W3C Trace Context gives version 00, else None."""
    if len(value) != _TRACEPARENT_BYTES or not value.isascii():
        return None
    text = value.decode("ascii")
    version, _, rest = text.partition("-")
    trace, _, rest = rest.partition("-")
    span, _, flags = rest.partition("-")
    if (len(version), len(trace), len(span), len(flags)) != (2, 32, 16, 2) or version == "ff":
        return None
    if trace == _NO_TRACE or span == _NO_SPAN or not _LOWER_HEX.issuperset(version + trace + span + flags):
        return None
    return text


def frame_of(value: bytes, schema_id: bytes | None) -> Frame:
    """Tell how a record is framed; `schema_id` is the value of its schema id header, which goes first if there is one.

    Raises InvalidRecord (undecodable) for a framing that is none of the contract's, or a prefix that is cut short.
    """
    if schema_id is not None:
        return Frame(_from_header(schema_id), 0)
    if not value:
        raise _undecodable("the value is empty: no framing, no event")
    if value[0] == CONFLUENT_MAGIC:
        if len(value) < CONFLUENT_PREFIX_BYTES:
            raise _undecodable(f"begins as Confluent framing but ends after {len(value)} of its 5 bytes")
        return Frame(int.from_bytes(value[1:CONFLUENT_PREFIX_BYTES], "big"), CONFLUENT_PREFIX_BYTES)
    if value.startswith(SINGLE_OBJECT_MAGIC):
        if len(value) < SINGLE_OBJECT_PREFIX_BYTES:
            raise _undecodable(f"begins as Avro single-object encoding but ends after {len(value)} of its 10 bytes")
        return Frame(value[2:SINGLE_OBJECT_PREFIX_BYTES], SINGLE_OBJECT_PREFIX_BYTES)
    hint = "; it looks like JSON, which is not read" if value[:1] in b"{[" else ""
    raise _undecodable(
        f"the value begins with byte 0x{value[0]:02x}, neither Confluent framing (00) nor Avro single-object encoding"
        f" (c3 01), and there is no {SCHEMA_ID_HEADER} header{hint}"
    )


def _from_header(value: bytes) -> int | UUID:
    if len(value) == 17 and value[0] == GUID_MAGIC:
        return UUID(bytes=value[1:])
    if len(value) == CONFLUENT_PREFIX_BYTES and value[0] == CONFLUENT_MAGIC:
        return int.from_bytes(value[1:], "big")
    raise _undecodable(
        f"its {SCHEMA_ID_HEADER} header of {len(value)} bytes is neither 01 and a GUID of 16 nor 00 and an id of 4"
    )


def _undecodable(detail: str) -> InvalidRecord:
    return InvalidRecord(RejectionReason.UNDECODABLE, detail)
