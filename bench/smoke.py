"""`python -m bench smoke`: does a batch still cost what it should? Counts, not times, so that it says the same on any machine.

Statements, round trips, rows written, WAL bytes, Python calls and live objects, of the worker's own code on a real PostgreSQL. It must
never look at a clock: a slow path that comes back is one of these numbers, and noise is none of them.
"""

import gc
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psycopg
from psycopg.pq import Trace
from rich.console import Console
from rich.table import Table

from bench.load import Load, as_published
from devstack import Stack
from devstack.stack import Kind
from sync_worker.database import arrays
from sync_worker.database.migrate import migrate
from sync_worker.database.sessions import Session, apply_session
from sync_worker.enrollment.breaker import Breaker, Limits
from sync_worker.events import Membership, Partition, Record, RecordName
from sync_worker.intake.decoding import Decoder
from sync_worker.loops import checkpoint
from sync_worker.outbox.encoding import ChangeEncoder, OutboxRow
from sync_worker.outbox.windows import NOTHING_SEEN, Windows
from sync_worker.schema.store import load_schemas

BATCH = 2000
_PARTITION = Partition("memberships", 0)
_NOT_DURABLE = {
    # Full page images depend on when the last checkpoint was, vacuum on when it comes, snapshots of running transactions on the clock.
    "full_page_writes": "off", "autovacuum": "off", "wal_level": "minimal", "max_wal_senders": "0", "checkpoint_timeout": "1h",
}  # fmt: skip
_WRITTEN = """select relname, n_tup_ins + n_tup_upd + n_tup_del as written, n_tup_upd, n_tup_hot_upd from pg_stat_user_tables
 where schemaname = 'sync_worker'"""

# Close above what was counted: a figure that goes up by more is a decision to be taken here, not an accident.
LIMITS: Mapping[str, float] = {
    "adds: statements": 7, "adds: round trips": 7, "adds: WAL bytes per event": 1320, "adds: rows written per event": 3.01,
    "adds: updates that aren't HOT, per event": 0.01, "adds: Python calls per event": 4.8,
    "removes: statements": 10, "removes: round trips": 10, "removes: WAL bytes per event": 810, "removes: rows written per event": 3.02,
    "removes: updates that aren't HOT, per event": 0.01, "removes: Python calls per event": 6.4,
    "replay: statements": 6, "replay: round trips": 6, "replay: WAL bytes per event": 7, "replay: rows written per event": 0.01,
    "replay: updates that aren't HOT, per event": 0.01, "replay: Python calls per event": 3.5,
    "one record: statements": 7, "one record: round trips": 7, "one record: WAL bytes per event": 1600,
    "one record: rows written per event": 4, "one record: updates that aren't HOT, per event": 0,
    "one record: Python calls per event": 1300,
    "a window: statements": 5, "a window: round trips": 6,
    "encoding: Python calls per change": 20, "encoding: objects alive per change": 8.5,
    "decoding: Python calls per record": 13, "decoding: objects alive per record": 5.5,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Wire:
    """What a session said to the server: statements run, and how often it waited for an answer."""

    statements: int
    round_trips: int


def main() -> int:
    counts = count()
    table = Table("per batch, change or record", "counted", "at most", title=f"batches of {BATCH}")
    for name, found in counts.items():
        limit = LIMITS.get(name)
        wrong = limit is None or found > limit
        table.add_row(
            name, f"{found:,.2f}", "no limit set" if limit is None else f"{limit:,.2f}", style="red" if wrong else ""
        )
    console = Console()
    console.print(table)
    worse = [name for name, found in counts.items() if found > LIMITS.get(name, -1)]
    gone = LIMITS.keys() - counts.keys()
    if worse or gone:
        console.print(
            f"[red]more than it should be:[/red] {', '.join(worse) or 'nothing'}; no longer counted: {', '.join(gone) or 'nothing'}"
        )
        return 1
    return 0


def count() -> dict[str, float]:
    """Every figure by its name."""
    with Stack.start(kind=Kind.NATIVE, durable=True, postgres_parameters=_NOT_DURABLE) as stack:
        url = stack.postgres.create_database("smoke")
        migrate(url)
        counting = _Counting(url)
        try:
            return dict(counting.everything())
        finally:
            counting.close()


class _Counting:
    """One session that applies and one that watches, over one database."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._load = Load(3 * BATCH, 1, segments=20, seed=7)
        self._session: Session = apply_session(url, "apply")
        arrays.register(self._session)
        self._watch = psycopg.connect(url, autocommit=True, options="-c search_path=sync_worker")
        self._breaker = Breaker(Limits(10**9, 50.0))
        schemas = load_schemas()
        names = frozenset(RecordName) - {RecordName.ENROLLMENT_CHANGED}
        self._decoder = Decoder(schemas, None, {_PARTITION.topic: names})
        changed = schemas.current[RecordName.ENROLLMENT_CHANGED]
        self._encoder = ChangeEncoder(changed.parsed, prefix=changed.single_object_prefix, source="/smoke")
        self._offset = 0

    def close(self) -> None:
        self._session.close()
        self._watch.close()

    def everything(self) -> Iterator[tuple[str, float]]:
        self._watch.execute("insert into position (topic, partition, next_offset) values (%s, %s, 0)", _PARTITION)
        for method in self._load.method_events:
            self._commit([method])
        events = self._load.adds
        leaving = [event._replace(version=2, is_member=False) for event in events[BATCH : 2 * BATCH]]
        # What a session does once is done: statements prepared, plans made, caches filled.
        self._commit(events[:BATCH])
        self._commit([event._replace(version=2, is_member=False) for event in events[: BATCH // 2]])
        self._commit(events[:BATCH])
        yield from self._batch("adds", events[BATCH : 2 * BATCH])
        yield from self._batch("removes", leaving)
        yield from self._batch("replay", leaving)
        yield from self._batch("one record", events[2 * BATCH : 2 * BATCH + 1])
        yield from self._window()
        yield from self._decoding(events)

    def _batch(self, name: str, events: Sequence[Membership]) -> Iterator[tuple[str, float]]:
        before, wal = self._rows(), self._wal()
        with _wire(self._session) as said:
            calls = _calls(lambda: self._commit(events))
        wire, now = said(), self._rows()
        written = {table: now[table][0] - before[table][0] for table in now}
        updated, hot = (sum(now[table][n] - before[table][n] for table in now) for n in (1, 2))
        yield f"{name}: statements", wire.statements
        yield f"{name}: round trips", wire.round_trips
        yield f"{name}: WAL bytes per event", (self._wal() - wal) / len(events)
        yield f"{name}: rows written per event", sum(written.values()) / len(events)
        yield f"{name}: updates that aren't HOT, per event", (updated - hot) / len(events)
        yield f"{name}: Python calls per event", calls / len(events)

    def _window(self) -> Iterator[tuple[str, float]]:
        windows = Windows(self._url)
        try:
            identifier = windows.system_identifier()
            first = windows.open_next(1, NOTHING_SEEN, identifier)
            list(windows.chunks(first, 0, 5 * BATCH))
            windows.clean(first)
            self._commit(self._load.adds[2 * BATCH + 1 :])
            with _wire(windows._session) as said:
                assert windows.due(first.to), "a batch was committed"
                window = windows.open_next(2, first.to, identifier)
                rows: list[Any] = [row for chunk in windows.chunks(window, 0, 5 * BATCH) for row in chunk]
                windows.clean(window)
            wire = said()
            yield "a window: statements", wire.statements
            yield "a window: round trips", wire.round_trips
            changes: list[OutboxRow] = [row for row in rows if isinstance(row, OutboxRow)]
            encode = self._encoder.encode
            for row in changes[:100]:
                encode(row)
            yield "encoding: Python calls per change", _calls(lambda: [encode(row) for row in changes]) / len(changes)
            yield "encoding: objects alive per change", _alive(lambda: [encode(row) for row in changes]) / len(changes)
        finally:
            windows.close()

    def _decoding(self, events: Sequence[Membership]) -> Iterator[tuple[str, float]]:
        values = [record.value for record in as_published(list(events[:BATCH]))]
        topic, decode = _PARTITION.topic, self._decoder.decode
        decode(topic, values[0], None)
        yield (
            "decoding: Python calls per record",
            _calls(lambda: [decode(topic, value, None) for value in values]) / BATCH,
        )
        yield (
            "decoding: objects alive per record",
            _alive(lambda: [decode(topic, value, None) for value in values]) / BATCH,
        )

    def _commit(self, events: Sequence[Any]) -> None:
        records = [Record(_PARTITION, n, event) for n, event in enumerate(events, self._offset + 1)]
        checkpoint.commit(
            self._session, records, {_PARTITION: self._offset}, checkpoint.Outcome(), breaker=self._breaker
        )
        self._offset += len(events)

    def _wal(self) -> int:
        return int(self._one("select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')")[0])

    def _rows(self) -> dict[str, tuple[int, int, int]]:
        """Per table: written, updated, updated in place. The applying session reports what it counted at once."""
        self._session.execute("select pg_stat_force_next_flush()")
        self._session.execute("select 1")
        self._watch.execute("select pg_stat_clear_snapshot()")
        return {table: (written, updated, hot) for table, written, updated, hot in self._watch.execute(_WRITTEN)}

    def _one(self, statement: str) -> tuple[Any, ...]:
        row = self._watch.execute(statement.encode()).fetchone()
        assert row is not None
        return row


@contextmanager
def _wire(session: psycopg.Connection[Any]) -> Iterator[Callable[[], Wire]]:
    """As libpq itself records what it sends and gets."""
    with tempfile.NamedTemporaryFile("w+") as trace:
        session.pgconn.trace(trace.fileno())
        session.pgconn.set_trace_flags(Trace.SUPPRESS_TIMESTAMPS)
        try:
            yield lambda: Wire(said["F Execute"] + said["F Query"], said["B ReadyForQuery"])
        finally:
            session.pgconn.untrace()
            lines = (line.split("\t") for line in Path(trace.name).read_text("utf-8", "replace").splitlines())
            said = Counter(f"{parts[0]} {parts[2]}" for parts in lines if len(parts) > 2)


def _calls(work: Callable[[], object]) -> int:
    """Calls of Python and C functions: what a loop over records costs, whatever the machine."""
    number = 0

    def one(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal number
        number += event in {"call", "c_call"}

    sys.setprofile(one)
    try:
        work()
    finally:
        sys.setprofile(None)
    return number


def _alive(work: Callable[[], object]) -> int:
    """Blocks of memory that the result holds."""
    work()
    gc.collect()
    gc.disable()
    try:
        before = sys.getallocatedblocks()
        kept = work()
        after = sys.getallocatedblocks()
    finally:
        gc.enable()
    del kept
    return after - before
