"""Keeps a record that can never be applied, bytes unchanged, in the transaction that moves past it (contract §2).

The relay publishes it like any other outbox row. Nothing here decides whether a record is bad, and an outage never gets here.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from sync_worker.database.sessions import Session
from sync_worker.database.statements import load
from sync_worker.events import Record, Rejection

SQL = load("sync_worker.intake", "statements.sql")

MAX_DETAIL = 1000


def keep(session: Session, rejected: Iterable[tuple[Record, Rejection]]) -> None:
    """Write each rejected record to the outbox, and count it."""
    counts: Counter[tuple[str, str]] = Counter()
    for record, (reason, detail) in rejected:
        message: Any = record.message
        # Never asked of the message again: see gathering.headers_of.
        headers = record.headers if record.headers is not None else ()
        note = (
            ""
            if record.headers is not None
            else "; its headers can't be read (a name that isn't UTF-8) and are left out"
        )
        timestamp_type, timestamp_ms = message.timestamp()
        session.execute(
            SQL["dead_letter"],
            {
                "topic": record.partition.topic,
                "partition": record.partition.number,
                "offset": message.offset(),
                "timestamp_ms": timestamp_ms if timestamp_type else None,
                "key": message.key(),
                "value": message.value(),
                "header_names": [_storable(name) for name, _ in headers],
                "header_values": [value for _, value in headers],
                "reason": str(reason),
                "detail": _storable(detail + note)[:MAX_DETAIL],
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


def _storable(text: str) -> str:
    """PostgreSQL's text holds everything but NUL."""
    return text.replace("\0", "\\0")
