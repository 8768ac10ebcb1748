"""What the worker is at, as one document: `status --json`, `/status.json`, the page and the tables of `status` (contract §5).

It must never say `settled` too early, so the order is fixed: the ends of the inputs first, then positions, backfills,
releases and outbox in one snapshot of the database. Every key is described in docs/reference/status.md.
"""

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from psycopg import IsolationLevel
from psycopg.rows import DictRow, dict_row

from sync_worker import __version__
from sync_worker.database.revision import check_revision
from sync_worker.database.sessions import Session, connect, translated
from sync_worker.database.statements import load
from sync_worker.events import Partition
from sync_worker.kafka.broker import Broker, partitions_of
from sync_worker.outbox.windows import SQL as WINDOWS
from sync_worker.settings import Settings

SQL = load("sync_worker.operations", "status.sql")

# A count that takes longer than this is of a database in trouble, and the page has to say so.
_STATEMENT_TIMEOUT: Final = "30s"


def read_status(settings: Settings, broker: Broker | None = None) -> dict[str, Any]:
    """The document. Raises RetryableError while the database or the broker is away.

    `at` is before everything in it: what was published until then is what `settled` speaks of.
    """
    at = datetime.now(UTC)
    broker = broker or Broker(settings)
    partitions = partitions_of(broker.topics(settings.input_topics))
    ends = broker.stable_end(partitions)
    earliest = broker.earliest(partitions)
    with translated(), connect(settings.database_url.get_secret_value(), "status", autocommit=False) as session:
        session.isolation_level = IsolationLevel.REPEATABLE_READ
        session.execute(f"set local statement_timeout = '{_STATEMENT_TIMEOUT}'")
        # The revision first: what comes after it may not be there.
        revision = check_revision(session)
        session.execute("set local search_path = sync_worker, pg_temp")
        session.execute("set local timezone = 'UTC'")
        return {
            **_document(session, ends, earliest),
            "schema_revision": revision,
            "version": __version__,
            "at": at.isoformat(),
        }


def _document(session: Session, ends: Mapping[Partition, int], earliest: Mapping[Partition, int]) -> dict[str, Any]:
    lag = _lag(session, ends, earliest)
    backfills, releases = _rows(session, "backfills"), _rows(session, "releases")
    (waiting,) = session.execute(WINDOWS["waiting"]).fetchall()
    unpublished, dead_letters_waiting, oldest_age_s = waiting
    newest = _row(session, "newest_window")
    settled = (
        all(entry["lag"] == 0 for entry in lag)
        and not backfills
        and not releases
        and unpublished == 0
        and (newest is None or bool(newest["published"]))
    )
    return {
        "settled": settled,
        "lag": lag,
        "outbox": {"unpublished": unpublished, "oldest_age_s": oldest_age_s},
        "backfills": backfills,
        "holds": _rows(session, "holds"),
        "releases": releases,
        "dead_letters": {"waiting": dead_letters_waiting, **_dead_letters(session)},
        "leader": _row(session, "leader"),
        "relay": {
            "window": newest["number"] if newest else 0,
            "published": newest["published"] if newest else True,
            "window_at": newest["created_at"] if newest else None,
        },
        "workers": [
            row | {"records_per_s": round(row["records_per_s"], 1), "published_per_s": round(row["published_per_s"], 1)}
            for row in _rows(session, "workers")
        ],
    }


def _lag(session: Session, ends: Mapping[Partition, int], earliest: Mapping[Partition, int]) -> list[dict[str, Any]]:
    positions = {Partition(row["topic"], row["partition"]): row["next_offset"] for row in _rows(session, "positions")}
    return [
        {
            "topic": partition.topic,
            "partition": partition.number,
            "position": positions.get(partition),
            "end": end,
            "lag": max(0, end - positions.get(partition, earliest[partition])),
        }
        for partition, end in sorted(ends.items())
    ]


def _dead_letters(session: Session) -> dict[str, Any]:
    reasons = _rows(session, "dead_letters")
    by_reason: Counter[str] = Counter()
    for row in reasons:
        by_reason[row["reason"]] += row["records"]
    return {
        "total": by_reason.total(),
        "by_reason": dict(by_reason),
        "last_at": max(row["last_at"] for row in reasons) if reasons else None,
        "reasons": reasons,
    }


def _rows(session: Session, name: str) -> list[DictRow]:
    """A statement's rows as the document gives them: times in ISO 8601."""
    with session.cursor(row_factory=dict_row) as cursor:
        return [
            {column: value.isoformat() if isinstance(value, datetime) else value for column, value in row.items()}
            for row in cursor.execute(SQL[name])
        ]


def _row(session: Session, name: str) -> DictRow | None:
    rows = _rows(session, name)
    return rows[0] if rows else None
