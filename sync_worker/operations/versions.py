"""Lowers the stored version of entities whose publisher once sent an absurdly high one, and that take no event since: `versions`.

Only the version is lowered. What was said under it stays until the next event, so no enrollment changes and nothing is
published. It must never happen off the record (table `intervention`), nor to an entity that has changed since it was looked at.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Column, ColumnElement, Connection, Table, insert, null, select, text, tuple_, update
from sqlalchemy.sql.elements import Null

from sync_worker.database.engine import connection_to
from sync_worker.database.revision import expect_revision
from sync_worker.database.tables import backfill, enrollment, intervention, membership, method, source
from sync_worker.enrollment.apply import SQL as ENROLLMENT
from sync_worker.operations.entities import KEYS, Key, Kind
from sync_worker.operations.operator import operator
from sync_worker.settings import Settings

FOUND_AT_MOST = 100_000
ENTITIES_PER_TRANSACTION = 1000
_DAY_US = 24 * 60 * 60 * 1_000_000

# As a worker's session (database/sessions.py): whoever waits for us, or we for them, waits for a bounded time.
_BOUNDS = """
select set_config('lock_timeout', setting::int * 4 / 5 || 'ms', true), set_config('idle_in_transaction_session_timeout', '2s', true)
from pg_settings where name = 'deadlock_timeout'"""


@dataclass(frozen=True, slots=True)
class _Shape:
    """Where the facts of a kind are kept."""

    table: Table
    version: str = "version"
    origin: bool = True  # has event_id and occurred_at


_SHAPES = {
    Kind.MEMBERSHIP: _Shape(membership),
    Kind.METHOD: _Shape(method),
    Kind.SOURCE: _Shape(source),
    Kind.SUSPENSION: _Shape(enrollment, "suspension_version", origin=False),
}


@dataclass(frozen=True, slots=True)
class Standing:
    """An entity as stored: its newest version, and the event that said it (None: not kept, as for a suspension)."""

    kind: Kind
    key: Key
    version: int
    event_id: UUID | None
    occurred_at: datetime | None

    @property
    def ids(self) -> dict[str, str]:
        return {name: str(part) for name, part in zip(KEYS[self.kind], self.key, strict=True)}


def absurd_from(now: datetime) -> int:
    """Versions above this can't be meant: publishers count up from 1, or take the time in microseconds (contract §2)."""
    return int(now.timestamp() * 1_000_000) + _DAY_US


class Versions:
    """Versions in the settings' database."""

    def __init__(self, settings: Settings) -> None:
        self._url = settings.database_url.get_secret_value()
        expect_revision(self._url, "versions")

    def show(self, kind: Kind, key: Key) -> Standing | None:
        """The entity as it is stored; None where nothing was ever said of it."""
        with connection_to(self._url, "versions") as connection:
            found = _read(connection, kind, _is_any(kind, [key]))
        return found[0] if found and found[0].version > 0 else None

    def find(self, kind: Kind, above: int) -> list[Standing]:
        """Entities of a kind whose version is above this, FOUND_AT_MOST of them. Reads a whole table, without a lock."""
        with connection_to(self._url, "versions") as connection:
            return _read(connection, kind, _version(_SHAPES[kind]) > above)

    def lower(self, standings: Sequence[Standing], to: int) -> Iterator[list[Standing]]:
        """Set the version of each to `to`; yields, for each transaction that committed, those that were lowered.

        The standings are of one kind, as they were found; an entity that says something else by now is left alone.
        """
        ordered = sorted(standings, key=lambda each: [str(part) for part in each.key])
        for start in range(0, len(ordered), ENTITIES_PER_TRANSACTION):
            with connection_to(self._url, "versions") as connection, connection.begin():
                lowered = _lower(connection, ordered[start : start + ENTITIES_PER_TRANSACTION], to)
            yield lowered


def _lower(connection: Connection, standings: Sequence[Standing], to: int) -> list[Standing]:
    kind = standings[0].kind
    shape = _SHAPES[kind]
    connection.execute(text(_BOUNDS))
    # As who applies them does: methods change under the exclusive lock alone, all else under the shared one and its row's.
    connection.exec_driver_sql(ENROLLMENT["lock_exclusive" if kind is Kind.METHOD else "lock_shared"])
    due = _is_any(kind, [each.key for each in standings])
    # A statement of its own locks in key order; what it returns is as the lock found it.
    locked = set(_read(connection, kind, due, lock=True))
    lowered = [each for each in standings if each in locked and each.version > to]
    if not lowered:
        return []
    chosen = _is_any(kind, [each.key for each in lowered])
    connection.execute(update(shape.table).where(chosen).values({shape.version: to}))
    if kind is Kind.METHOD:
        # A backfill is of its method's present version, or nobody takes it.
        waiting = backfill.c.method_id.in_([each.key[0] for each in lowered])
        connection.execute(update(backfill).where(waiting).values(version=to))
    detail = {"kind": str(kind), "to": to, "entities": [_recorded(each) for each in lowered]}
    connection.execute(insert(intervention).values(by=operator(), operation="versions lower", detail=detail))
    return lowered


def _read(connection: Connection, kind: Kind, condition: ColumnElement[bool], *, lock: bool = False) -> list[Standing]:
    shape = _SHAPES[kind]
    columns = shape.table.c
    keys = _key(kind)
    origin: list[Column[Any] | Null] = [columns.event_id, columns.occurred_at] if shape.origin else [null(), null()]
    query = select(*keys, _version(shape), *origin).where(condition).order_by(*keys).limit(FOUND_AT_MOST)
    rows = connection.execute(query.with_for_update() if lock else query).all()
    width = len(keys)
    return [Standing(kind, tuple(row[:width]), *row[width:]) for row in rows]


def _key(kind: Kind) -> list[Column[Any]]:
    return [_SHAPES[kind].table.c[name] for name in KEYS[kind]]


def _version(shape: _Shape) -> Column[Any]:
    column: Column[Any] = shape.table.c[shape.version]
    return column


def _is_any(kind: Kind, keys: Sequence[Key]) -> ColumnElement[bool]:
    return tuple_(*_key(kind)).in_(keys)


def _recorded(standing: Standing) -> dict[str, Any]:
    return {
        **standing.ids,
        "from": standing.version,
        "event_id": None if standing.event_id is None else str(standing.event_id),
        "occurred_at": None if standing.occurred_at is None else standing.occurred_at.isoformat(),
    }
