"""Keeps a record that can never be applied, bytes unchanged, in the transaction that moves past it (contract §2).

The relay publishes it like any other outbox row. Nothing here decides whether a record is bad, and an outage never gets here.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from sync_worker.database.sessions import Session
from sync_worker.database.statements import load
from sync_worker.events import Headers, Record, Rejection

SQL = load("sync_worker.intake", "statements.sql")

MAX_DETAIL = 1000
# A record of a few kilobytes may unpack to a gigabyte, which neither we nor PostgreSQL should have to hold several times over.
MAX_KEPT_BYTES = 32 << 20


def keep(session: Session, rejected: Iterable[tuple[Record, Rejection]]) -> None:
    """Write each rejected record to the outbox, and count it."""
    counts: Counter[tuple[str, str]] = Counter()
    for record, (reason, detail) in rejected:
        message: Any = record.message
        # Never asked of the message again: see gathering.headers_of.
        headers = record.headers if record.headers is not None else ()
        key, value, headers, note = _kept(message.key(), message.value(), headers)
        if record.headers is None:
            note += "; its headers can't be read (a name that isn't UTF-8) and are left out"
        timestamp_type, timestamp_ms = message.timestamp()
        session.execute(
            SQL["dead_letter"],
            {
                "topic": record.partition.topic,
                "partition": record.partition.number,
                "offset": message.offset(),
                "timestamp_ms": timestamp_ms if timestamp_type else None,
                "key": key,
                "value": value,
                "header_names": [_storable(name) for name, _ in headers],
                "header_values": [value for _, value in headers],
                "reason": str(reason),
                "detail": _storable(detail[: MAX_DETAIL - len(note)] + note)[:MAX_DETAIL],
            },
        )
        counts[record.partition.topic, str(reason)] += 1
    if counts:
        keys = sorted(counts)
        session.execute(
            SQL["dead_letters_counted"],
            {
                "topics": [topic for topic, _ in keys],
                "reasons": [reason for _, reason in keys],
                "records": [counts[key] for key in keys],
            },
        )


def _kept(key: bytes | None, value: bytes, headers: Headers) -> tuple[bytes | None, bytes | None, Headers, str]:
    """What of a record is kept: all of it up to the limit; beyond, not its value, nor key and headers where they alone exceed it."""
    rest = len(key or b"") + sum(len(name) + len(content or b"") for name, content in headers)
    if len(value) + rest <= MAX_KEPT_BYTES:
        return key, value, headers, ""
    note = f"; of its {len(value) + rest} bytes the value is not kept"
    return (key, None, headers, note) if rest <= MAX_KEPT_BYTES else (None, None, (), f"{note}, nor key and headers")


def _storable(text: str) -> str:
    """PostgreSQL's text holds everything but NUL."""
    return text.replace("\0", "\\0")
