"""The outbox as a sequence of numbered windows: what is visible in one snapshot and not in the one before (design §5).

A window is written to the database before anything of it is published, so that a successor finishes the same one. Rows
must never be picked by id alone: a slow transaction commits below ids that were read long ago.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple, cast

import psycopg
from psycopg import sql
from psycopg.adapt import Loader
from psycopg.types.string import TextLoader

from sync_worker.database.sessions import Session, relay_session
from sync_worker.database.statements import load
from sync_worker.errors import RetryableError
from sync_worker.events import new_tuple
from sync_worker.outbox.encoding import OutboxRow

SQL = load("sync_worker.outbox", "statements.sql")

# Holds no transaction at all: what the first window starts from.
NOTHING_SEEN = "3:3:"
CLEAN_STEP_ROWS = 10_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Window:
    """Rows visible in `to` and not in `from_` (pg_snapshot as text)."""

    number: int
    from_: str
    to: str
    system_identifier: str
    published: bool


class Overtaken(RetryableError):
    """Another worker leads: what is left is its to publish."""


class DeadLetter(NamedTuple):
    """An outbox row that stands for a dead letter."""

    id: int
    dead_letter_id: int


class Erased(NamedTuple):
    """An outbox row that stands for the tombstone of an enrollment that was erased."""

    id: int
    key: bytes


Row = OutboxRow | DeadLetter | Erased


class _BytesLoader(Loader):
    def load(self, data: bytes | bytearray | memoryview) -> bytes:
        return bytes(data)


class Windows:
    """The relay's session on the database."""

    def __init__(self, database_url: str) -> None:
        self._session: Session = relay_session(database_url)
        types = self._session.adapters.types
        # The encoder wants the text as PostgreSQL wrote it: parsing it here would cost more than all the rest.
        for name in ("uuid", "timestamptz"):
            self._session.adapters.register_loader(types[name].oid, TextLoader)
        for oid in (types["jsonb"].oid, types["uuid"].array_oid):
            self._session.adapters.register_loader(oid, _BytesLoader)

    def close(self) -> None:
        self._session.close()

    def system_identifier(self) -> str:
        (identifier,) = cast("tuple[str]", self._session.execute(SQL["system_identifier"]).fetchone())
        return identifier

    def last(self) -> Window | None:
        row = self._session.execute(SQL["window_last"]).fetchone()
        return None if row is None else Window(*row)

    def due(self, from_: str) -> bool:
        """Is there anything to publish after this snapshot?"""
        (due,) = cast("tuple[bool]", self._session.execute(SQL["window_due"], {"from": from_}, prepare=True).fetchone())
        return due

    def open_next(self, number: int, from_: str, system_identifier: str) -> Window:
        """Write the next window to the database; that acknowledges the one before. Raises Overtaken."""
        row = self._session.execute(SQL["window_next"], {"number": number, "from": from_}, prepare=True).fetchone()
        if row is None:
            raise Overtaken(f"window {number} was opened by another worker, which leads now")
        return Window(number, from_, row[0], system_identifier, published=False)

    def mark_published(self, window: Window) -> None:
        self._session.execute(SQL["window_published"], {"number": window.number}, prepare=True)

    def chunks(self, window: Window, after_id: int, rows: int) -> Iterator[list[Row]]:
        """The rows of a window above an id, in lists of at most `rows`, at least one list (which may be empty).

        Most windows are small: one statement. A large one is read on through one server-side cursor; it is held over the
        end of its transaction, so that what is written between the lists (a truncated dead letter) stands by itself.
        """
        scope: dict[str, Any] = {"from": window.from_, "to": window.to, "last": after_id}
        limited = sql.SQL(SQL["window_rows"]) + sql.SQL(f" limit {rows:d}")
        first = [_row(row) for row in self._session.execute(limited, scope, prepare=True).fetchall()]
        yield first
        if len(first) < rows:
            return
        cursor = self._session.cursor(name="relay_window", withhold=True)
        try:
            cursor.itersize = rows
            cursor.execute(SQL["window_rows"], scope | {"last": first[-1].id})
            while chunk := [_row(row) for row in cursor.fetchmany(rows)]:
                yield chunk
        finally:
            # Whoever gives up in the middle may have lost the session, and the cursor with it.
            with suppress(psycopg.OperationalError):
                cursor.close()
            if not cursor.closed:
                self._session.close()
                cursor.close()

    def clean(self, window: Window) -> int:
        """Delete a step of what was published before this window; how many rows."""
        scope = {"from": window.from_, "n": CLEAN_STEP_ROWS}
        (removed,) = cast("tuple[int]", self._session.execute(SQL["window_clean"], scope, prepare=True).fetchone())
        self._session.execute(SQL["window_forget"], {"number": window.number}, prepare=True)
        return removed

    def dead_letters(self, ids: list[int], most: int) -> dict[int, tuple[Any, ...]]:
        """The rows of these; without the values that are larger than `most`."""
        wanted = {"ids": ids, "most": most}
        return {row[0]: row for row in self._session.execute(SQL["dead_letters"], wanted, binary=True).fetchall()}

    def dead_letter_sizes(self, ids: list[int]) -> dict[int, int]:
        """Bytes of key and value of each."""
        return dict(self._session.execute(SQL["dead_letter_sizes"], {"ids": ids}).fetchall())

    def mark_truncated(self, dead_letter_id: int) -> None:
        self._session.execute(SQL["dead_letter_truncated"], {"id": dead_letter_id})


def waiting(session: Session) -> tuple[int, float | None]:
    """How many rows are not published yet, and the age of the oldest in seconds."""
    unpublished, _, oldest_s = cast("tuple[int, int, float | None]", session.execute(SQL["waiting"]).fetchone())
    return unpublished, oldest_s


def waits_more_than(session: Session, rows: int) -> bool:
    """Are there more rows than this to be published? Bounded, however many there are."""
    (more,) = cast("tuple[bool]", session.execute(SQL["waits_more_than"], {"rows": rows}, prepare=True).fetchone())
    return more


def _row(row: tuple[Any, ...]) -> Row:
    if row[15] is not None:
        return DeadLetter(row[0], row[15])
    if row[3] is None and row[8] is None:  # neither a version nor contributions: only an erasure writes a bare key
        return Erased(row[0], f"{row[1]}:{row[2]}".encode("ascii"))
    return new_tuple(OutboxRow, (*row[:4], _micros(row[4]), *row[5:15]))


@lru_cache(maxsize=64)
def _micros(timestamp: str) -> int:
    """All rows of a transaction carry the same time."""
    return (datetime.fromisoformat(timestamp) - _EPOCH) // _MICROSECOND
