"""The bytes and headers around an Avro datum: single-object and Confluent prefixes, CloudEvents headers.

Only what intake, outbox and `publish` have to agree on (contract §2, "Framing"). Must never look into a datum.
"""

from datetime import UTC, datetime, timedelta

SINGLE_OBJECT_MAGIC = b"\xc3\x01"
SINGLE_OBJECT_PREFIX_BYTES = 10  # the magic and an 8-byte fingerprint
CONFLUENT_MAGIC = 0
CONFLUENT_PREFIX_BYTES = 5  # the magic and a 4-byte schema id
GUID_MAGIC = 1  # first byte of the header, before the GUID's 16 bytes

SCHEMA_ID_HEADER = "__value_schema_id"
TRACEPARENT_HEADER = "traceparent"
CONTENT_TYPE = "application/avro"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def confluent_prefix(schema_id: int) -> bytes:
    """What stands before a datum in Confluent framing."""
    return bytes([CONFLUENT_MAGIC]) + schema_id.to_bytes(4, "big")


def rfc3339(micros: int) -> str:
    """A time in microseconds since 1970 as CloudEvents writes it: `2025-01-31T12:00:00.000001Z`."""
    return (_EPOCH + timedelta(microseconds=micros)).isoformat(timespec="microseconds").replace("+00:00", "Z")


def cloud_event_headers(
    *, event_id: str, full_name: str, source: str, occurred_at: int, subject: str, traceparent: str | None = None
) -> list[tuple[str, bytes]]:
    """The headers of CloudEvents binary mode over Kafka (contract §2).

    `occurred_at` is in microseconds since 1970; `subject` is the record's key, which names the entity.
    """
    headers = [
        ("ce_specversion", b"1.0"),
        ("ce_id", event_id.encode()),
        ("ce_type", full_name.encode()),
        ("ce_source", source.encode()),
        ("ce_time", rfc3339(occurred_at).encode()),
        ("ce_subject", subject.encode()),
        ("content-type", CONTENT_TYPE.encode()),
    ]
    if traceparent is not None:
        headers.append((TRACEPARENT_HEADER, traceparent.encode()))
    return headers
