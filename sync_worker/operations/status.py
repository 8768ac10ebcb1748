"""What the worker is at, as one document: `status --json`, `/status.json` and the tables of `status` (contract §5).

It must never say `settled` too early, so the order is fixed: the ends of the inputs first, then positions, backfills and
outbox in one snapshot of the database.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, func, select

from sync_worker import __version__
from sync_worker.database.revision import check_revision
from sync_worker.database.sessions import engine_for, translated
from sync_worker.database.tables import backfill, dead_letter_count, method, position, relay_lease, relay_window
from sync_worker.events import Partition
from sync_worker.kafka.broker import Broker, partitions_of
from sync_worker.outbox.windows import SQL as WINDOWS
from sync_worker.settings import Settings


def read_status(settings: Settings, broker: Broker | None = None) -> dict[str, Any]:
    """The document. Raises RetryableError while the database or the broker is away.

    `at` is before everything in it: what was published until then is what `settled` speaks of.
    """
    at = datetime.now(UTC)
    broker = broker or Broker(settings)
    partitions = partitions_of(broker.topics(settings.input_topics))
    ends = broker.stable_end(partitions)
    earliest = broker.earliest(partitions)
    engine = engine_for(settings.database_url.get_secret_value(), "status")
    with translated(), engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        return {**_document(connection, ends, earliest), "at": at.isoformat()}


def _document(
    connection: Connection, ends: Mapping[Partition, int], earliest: Mapping[Partition, int]
) -> dict[str, Any]:
    revision = check_revision(connection)
    lag = _lag(connection, ends, earliest)
    backfills = _backfills(connection)
    unpublished, dead_letters_waiting, oldest_age_s = connection.exec_driver_sql(WINDOWS["waiting"]).one()
    newest = connection.execute(
        select(relay_window.c.number, relay_window.c.published).order_by(relay_window.c.number.desc()).limit(1)
    ).first()
    settled = (
        all(entry["lag"] == 0 for entry in lag)
        and not backfills
        and unpublished == 0
        and (newest is None or bool(newest.published))
    )
    return {
        "settled": settled,
        "lag": lag,
        "outbox": {"unpublished": unpublished, "oldest_age_s": oldest_age_s},
        "backfills": backfills,
        "dead_letters": {"waiting": dead_letters_waiting, **_dead_letters(connection)},
        "leader": _leader(connection),
        "relay": {"window": newest.number if newest else 0, "published": bool(newest.published) if newest else True},
        "schema_revision": revision,
        "version": __version__,
    }


def _lag(
    connection: Connection, ends: Mapping[Partition, int], earliest: Mapping[Partition, int]
) -> list[dict[str, Any]]:
    rows = connection.execute(select(position.c.topic, position.c.partition, position.c.next_offset)).all()
    positions = {Partition(topic, number): next_offset for topic, number, next_offset in rows}
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


def _backfills(connection: Connection) -> list[dict[str, Any]]:
    rows = connection.execute(
        select(
            backfill.c.method_id,
            method.c.course_id,
            method.c.segment_id,
            backfill.c.version,
            backfill.c.done,
            backfill.c.total,
            backfill.c.created_at,
        )
        .join(method, method.c.method_id == backfill.c.method_id)
        .order_by(backfill.c.created_at)
    ).all()
    return [
        {
            "method_id": str(row.method_id),
            "course_id": str(row.course_id),
            "segment_id": str(row.segment_id),
            "version": row.version,
            "done": row.done,
            "total": row.total,
            "since": row.created_at.isoformat(),
        }
        for row in rows
    ]


def _dead_letters(connection: Connection) -> dict[str, Any]:
    rows = connection.execute(
        select(dead_letter_count.c.reason, func.sum(dead_letter_count.c.records), func.max(dead_letter_count.c.last_at))
        .group_by(dead_letter_count.c.reason)
        .order_by(dead_letter_count.c.reason)
    ).all()
    return {
        "total": int(sum(records for _, records, _ in rows)),
        "by_reason": {reason: int(records) for reason, records, _ in rows},
        "last_at": max((last_at for _, _, last_at in rows), default=None) and max(row[2] for row in rows).isoformat(),
    }


def _leader(connection: Connection) -> dict[str, Any] | None:
    row = connection.execute(
        select(
            relay_lease.c.holder,
            relay_lease.c.since,
            relay_lease.c.expires_at,
            relay_lease.c.expires_at > func.clock_timestamp(),
        )
    ).first()
    if row is None or not row[3]:
        return None
    return {"holder": row[0], "since": row[1].isoformat(), "expires_at": row[2].isoformat()}
