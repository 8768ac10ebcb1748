"""What the worker is at, as one document: `status --json`, `/status.json`, the page and the tables of `status` (contract §5).

It must never say `settled` too early, so the order is fixed: the ends of the inputs first, then positions, backfills,
releases and outbox in one snapshot of the database. Every key is described in docs/reference/status.md.
"""

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, ScalarSelect, func, select, text

from sync_worker import __version__
from sync_worker.database.revision import check_revision
from sync_worker.database.sessions import engine_for, translated
from sync_worker.database.tables import (
    backfill,
    dead_letter_count,
    hold_release,
    membership,
    method,
    position,
    relay_lease,
    relay_window,
    removal_hold,
    worker,
)
from sync_worker.events import Partition
from sync_worker.kafka.broker import Broker, partitions_of
from sync_worker.outbox.windows import SQL as WINDOWS
from sync_worker.settings import Settings

# A count that takes longer than this is of a database in trouble, and the page has to say so.
_STATEMENT_TIMEOUT: Final = "30s"
# A worker speaks every five seconds; one that missed three times has been stopped, frozen or cut off.
_PRESENT_FOR: Final = text("interval '16 seconds'")


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
        connection.exec_driver_sql(f"set local statement_timeout = '{_STATEMENT_TIMEOUT}'")
        return {**_document(connection, ends, earliest), "at": at.isoformat()}


def _document(
    connection: Connection, ends: Mapping[Partition, int], earliest: Mapping[Partition, int]
) -> dict[str, Any]:
    revision = check_revision(connection)
    lag = _lag(connection, ends, earliest)
    backfills, releases = _backfills(connection), _releases(connection)
    unpublished, dead_letters_waiting, oldest_age_s = connection.exec_driver_sql(WINDOWS["waiting"]).one()
    newest = connection.execute(
        select(relay_window.c.number, relay_window.c.published, relay_window.c.created_at)
        .order_by(relay_window.c.number.desc())
        .limit(1)
    ).first()
    settled = (
        all(entry["lag"] == 0 for entry in lag)
        and not backfills
        and not releases
        and unpublished == 0
        and (newest is None or bool(newest.published))
    )
    return {
        "settled": settled,
        "lag": lag,
        "outbox": {"unpublished": unpublished, "oldest_age_s": oldest_age_s},
        "backfills": backfills,
        "holds": _holds(connection),
        "releases": releases,
        "dead_letters": {"waiting": dead_letters_waiting, **_dead_letters(connection)},
        "leader": _leader(connection),
        "relay": {
            "window": newest.number if newest else 0,
            "published": bool(newest.published) if newest else True,
            "window_at": newest.created_at.isoformat() if newest else None,
        },
        "workers": _workers(connection),
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
            method.c.name,
            method.c.segment_name,
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
            "name": row.name,
            "segment_name": row.segment_name,
            "version": row.version,
            "done": row.done,
            "total": row.total,
            "since": row.created_at.isoformat(),
        }
        for row in rows
    ]


def _holds(connection: Connection) -> list[dict[str, Any]]:
    """Segments whose removals are held; the index on marked memberships makes counting them cheap."""
    held = (
        select(func.count())
        .where(membership.c.segment_id == removal_hold.c.segment_id, membership.c.hold == removal_hold.c.number)
        .scalar_subquery()
    )
    rows = connection.execute(
        select(
            removal_hold.c.segment_id,
            _segment_name(removal_hold.c.segment_id),
            removal_hold.c.since,
            removal_hold.c.members,
            removal_hold.c.removed,
            held,
        ).order_by(removal_hold.c.since, removal_hold.c.segment_id)
    ).all()
    return [
        {
            "segment_id": str(segment_id),
            "segment_name": segment_name,
            "since": since.isoformat(),
            "members": members,
            "removed": removed,
            "held": waiting,
        }
        for segment_id, segment_name, since, members, removed, waiting in rows
    ]


def _releases(connection: Connection) -> list[dict[str, Any]]:
    rows = connection.execute(
        select(
            hold_release.c.segment_id,
            _segment_name(hold_release.c.segment_id),
            hold_release.c.number,
            hold_release.c.done,
            hold_release.c.total,
            hold_release.c.created_at,
        ).order_by(hold_release.c.created_at, hold_release.c.number)
    ).all()
    return [
        {
            "segment_id": str(segment_id),
            "segment_name": segment_name,
            "number": number,
            "done": done,
            "total": total,
            "since": since.isoformat(),
        }
        for segment_id, segment_name, number, done, total, since in rows
    ]


def _segment_name(segment_id: ColumnElement[Any]) -> ScalarSelect[str | None]:
    """What the newest method on a segment calls it: names come with methods alone."""
    return (
        select(method.c.segment_name)
        .where(method.c.segment_id == segment_id, ~method.c.deleted, method.c.segment_name.is_not(None))
        .order_by(method.c.occurred_at.desc())
        .limit(1)
        .scalar_subquery()
    )


def _dead_letters(connection: Connection) -> dict[str, Any]:
    counts = dead_letter_count.c
    rows = connection.execute(
        select(counts.reason, counts.topic, counts.records, counts.last_at).order_by(counts.reason, counts.topic)
    ).all()
    by_reason: Counter[str] = Counter()
    for reason, _, records, _ in rows:
        by_reason[reason] += int(records)
    return {
        "total": by_reason.total(),
        "by_reason": dict(by_reason),
        "last_at": max(last_at for *_, last_at in rows).isoformat() if rows else None,
        "reasons": [
            {"reason": reason, "topic": topic, "records": int(records), "last_at": last_at.isoformat()}
            for reason, topic, records, last_at in rows
        ],
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


def _workers(connection: Connection) -> list[dict[str, Any]]:
    """What each worker last said of itself; one that stopped in order has taken its row away."""
    now = func.clock_timestamp()
    rows = connection.execute(
        select(worker, (worker.c.seen_at > now - _PRESENT_FOR).label("present")).order_by(
            worker.c.since, worker.c.holder
        )
    ).all()
    return [
        {
            "holder": row.holder,
            "version": row.version,
            "since": row.since.isoformat(),
            "seen_at": row.seen_at.isoformat(),
            "present": row.present,
            "partitions": row.partitions,
            "records_per_s": round(row.records_per_s, 1),
            "published_per_s": round(row.published_per_s, 1),
        }
        for row in rows
    ]
