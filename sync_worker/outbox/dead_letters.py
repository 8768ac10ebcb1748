"""Dead letters as Kafka records: the bytes as they came, and headers that say why and from where (contract §2).

No dead letter may stop the relay: one too large for the topic goes without its value.
"""

from typing import Any, NamedTuple

# What a record takes beside key, value and headers: batch header, lengths, timestamp.
_OVERHEAD_BYTES = 256
_HEADER_OVERHEAD_BYTES = 12

Header = tuple[str, bytes | None]


class DeadLetterRecord(NamedTuple):
    """A record for the dead-letter topic."""

    key: bytes | None
    value: bytes | None
    headers: list[Header]
    truncated: bool


def dead_letter_record(row: tuple[Any, ...], max_bytes: int, *, without_value: bool = False) -> DeadLetterRecord:
    """The record for a row of `dead_letter`; where it is larger than `max_bytes` without its value, if need be headers and key."""
    _, topic, partition, offset, timestamp_ms, key, value, names, values, reason, detail, _ = row
    own: list[Header] = list(zip(names, values, strict=True))
    why: list[Header] = [
        ("dlq_reason", reason.encode()),
        ("dlq_detail", detail.encode()),
        ("dlq_topic", topic.encode()),
        ("dlq_partition", str(partition).encode()),
        ("dlq_offset", str(offset).encode()),
        ("dlq_timestamp", str(timestamp_ms if timestamp_ms is not None else "").encode()),
    ]
    whole = DeadLetterRecord(key, value, own + why, truncated=False)
    # No dead letter had no value: one that is missing was too large to be read, or to be kept.
    if value is not None and not without_value and _size(whole) <= max_bytes:
        return whole
    why.append(("dlq_truncated", b"true"))
    for candidate in (
        DeadLetterRecord(key, None, own + why, truncated=True),
        DeadLetterRecord(key, None, why, truncated=True),
        DeadLetterRecord(None, None, why, truncated=True),
    ):
        if _size(candidate) <= max_bytes:
            return candidate
    return candidate


def _size(record: DeadLetterRecord) -> int:
    headers = sum(len(name.encode()) + len(value or b"") + _HEADER_OVERHEAD_BYTES for name, value in record.headers)
    return _OVERHEAD_BYTES + len(record.key or b"") + len(record.value or b"") + headers
