"""Other ways to make the ceiling's rows and outbox, each beside it in one run: what would be gained by a change of schema or driver.

An idea is the ceiling's own SQL but for the one thing it is about, so that what the worker does around it can't hide the difference.
Whoever wants one of them in the worker still has to carry it through the protocol, and to measure it again.
"""

import re
import struct
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import LiteralString

from bench.cases import ceiling
from bench.cases.throughput import facts
from bench.checking import Expected, check_rows
from bench.errors import expect
from bench.frame import Case, Figure, Figures, Ground, Variant
from bench.load import PHASES, Load
from sync_worker.database.sessions import Session
from sync_worker.database.statements import load as statements
from sync_worker.events import Membership

CEILING = "the ceiling"
TWO = "two batches at once, in two sessions"
DRAINED = "the ceiling, outbox read and deleted"
FOLDED = "outbox rows of a batch and partition as one, read and deleted"
SQL = statements("bench.cases", "ideas.sql")

_COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)
_COPY_ROW = struct.Struct(">hi16si16si?iqi16siq")
_COPY_END = struct.pack(">h", -1)
_EPOCH_US = 946_684_800_000_000  # PostgreSQL counts from 2000-01-01


@dataclass(frozen=True, slots=True)
class Sizes:
    events: int = field(default=50_000, metadata={"help": "per phase; one method per segment"})
    segments: int = field(default=100, metadata={"help": "segments"})


@dataclass(frozen=True, slots=True)
class _Idea:
    """alter: after the methods are there, before the first phase. show: before rows are compared, where they are elsewhere. drained: the
    statements that read and delete the outbox as a relay would, within the clock."""

    name: str
    prepare: ceiling.Prepare = ceiling.leanest
    alter: LiteralString = ""
    show: LiteralString = ""
    outbox: LiteralString = "select count(*) from outbox"
    drained: tuple[LiteralString, LiteralString] | None = None
    sessions: int = 1


def _instead(statement: LiteralString, *replaced: tuple[LiteralString, LiteralString]) -> LiteralString:
    for old, new in replaced:
        if statement.count(old) != 1:
            raise ValueError(f"the ceiling's statement has {old!r} {statement.count(old)} times")
        statement = statement.replace(old, new)
    return statement


def _statements(added: LiteralString, removed: LiteralString) -> ceiling.Prepare:
    """As the ceiling, by other statements of the same columns."""

    def prepare(session: Session, events: Sequence[Membership]) -> list[ceiling.Step]:
        return ceiling.steps(session, events, {"added": added, "removed": removed})

    return prepare


def _arrays(kind: str) -> LiteralString:
    """How the ceiling's statement takes its columns."""
    found = re.search(r"unnest\([^)]*(?:\)s[^)]*)*\)(?:\s+t\([^)]*\))?", ceiling.SQL[kind])
    if found is None:
        raise ValueError(f"the ceiling's statement {kind} takes no arrays")
    return found[0]


_STAGED = {
    "added": _instead(ceiling.SQL["added"], (_arrays("added"), "staged where is_member")),
    "removed": _instead(
        ceiling.SQL["removed"],
        (_arrays("removed"), "staged t"),
        ("where s.segment_id", "where not t.is_member and s.segment_id"),
    ),
}


def _staged(session: Session, events: Sequence[Membership]) -> list[ceiling.Step]:
    """Rows packed before the clock starts, as the ceiling's arrays are."""
    session.execute("drop table if exists pg_temp.staged")
    session.execute(SQL["staging"])
    found: list[ceiling.Step] = []
    for batch in ceiling.batches(events):
        packed = _COPY_HEADER + b"".join(map(_copy_row, batch)) + _COPY_END
        kinds = [
            kind
            for kind, is_member in (("added", True), ("removed", False))
            if any(event.is_member is is_member for event in batch)
        ]

        def step(packed: bytes = packed, kinds: Sequence[str] = kinds) -> None:
            with session.transaction():
                with session.cursor() as cursor, cursor.copy(SQL["stage"]) as copy:
                    copy.write(packed)
                for kind in kinds:
                    session.execute(_STAGED[kind], prepare=True)

        found.append(step)
    return found


def _copy_row(event: Membership) -> bytes:
    segment, user, is_member, version, event_id, at_us, _ = event
    return _COPY_ROW.pack(6, 16, segment, 16, user, 1, is_member, 8, version, 16, event_id, 8, at_us - _EPOCH_US)


def _typed(kind: str) -> LiteralString:
    """The ceiling's facts, and rows of other tables made of them."""
    statement = ceiling.SQL[kind]
    return statement[: statement.index("written as")] + SQL[f"typed_{kind}"]


def _written(kind: str) -> LiteralString:
    statement = ceiling.SQL[kind]
    return _instead(statement, (statement[statement.index("insert into outbox") :], SQL["folded_insert"]))


_READ = (SQL["outbox_read"], SQL["outbox_gone"])
_IDEAS = (
    _Idea(CEILING),
    _Idea("binary COPY into a temporary table", _staged),
    _Idea(
        "contributions as a composite array",
        _statements(_typed("added"), _typed("removed")),
        SQL["typed_tables"], SQL["typed_shown"], "select count(*) from typed_outbox",
    ),
    _Idea("enrollment's pages filled to 100 %", alter=SQL["full_pages"]),
    _Idea("enrollment without the index on users", alter=SQL["no_user_index"]),
    _Idea("enrollment in 8 partitions by hash", alter=SQL["partitioned"], show=SQL["partitioned_shown"]),
    _Idea("wal_compression pglz", alter=SQL["compressed"]),
    _Idea(TWO, sessions=2),
    _Idea(DRAINED, drained=_READ),
    _Idea(
        FOLDED,
        _statements(_written("added"), _written("removed")),
        SQL["folded_outbox"], drained=(SQL["folded_read"], SQL["folded_gone"]),
    ),
)  # fmt: skip


def variants(ground: Ground, sizes: Sizes) -> list[Variant]:
    def measured(idea: _Idea) -> Callable[[int], dict[str, Figures]]:
        def measure(round_: int) -> dict[str, Figures]:
            load, expected, _ = facts(Load(sizes.events, 1, sizes.segments, seed=round_))
            return _measure(ground, load, expected, idea)

        return measure

    return [Variant(idea.name, measured(idea)) for idea in _IDEAS]


def _measure(ground: Ground, load: Load, expected: Mapping[str, Expected], idea: _Idea) -> dict[str, Figures]:
    found, drained = {}, 0
    with ground.site() as site, ExitStack() as opened:
        ceiling.put_methods(opened.enter_context(ceiling.session(site)), load)
        if idea.alter:
            site.execute(idea.alter)
        # Opened only now, as some ideas are settings of the database.
        sessions = [opened.enter_context(ceiling.session(site)) for _ in range(idea.sessions)]
        for phase in PHASES:
            events = load.phase(phase)
            share = -(-len(events) // len(sessions))
            parts = [idea.prepare(each, events[n * share : (n + 1) * share]) for n, each in enumerate(sessions)]
            if idea.drained:
                drain = _Drain(sessions[0], *idea.drained)
                parts[0].append(drain)
            found[phase] = ceiling.timed(site, [partial(_all, parts)], len(events))
            if idea.drained:
                drained += drain.rows
            if idea.show:
                site.execute(idea.show)
            check_rows(site, expected[phase], phase)
            rows = drained if idea.drained else site.one(idea.outbox)[0]
            expect(f"outbox rows after {phase}", rows, expected[phase].changes)
    return found


class _Drain:
    """A step: reads the outbox as a relay needs it, and deletes what was read."""

    def __init__(self, session: Session, read: LiteralString, gone: LiteralString) -> None:
        self._session, self._read, self._gone = session, read, gone
        self.rows = 0

    def __call__(self) -> None:
        with self._session.transaction():
            self.rows = len(self._session.execute(self._read, binary=True).fetchall())
            self._session.execute(self._gone)


def _all(parts: Sequence[Sequence[ceiling.Step]]) -> None:
    """Each part's steps one after another, the parts side by side."""

    def run(steps: Sequence[ceiling.Step]) -> None:
        for step in steps:
            step()

    with ThreadPoolExecutor(len(parts)) as pool:
        for done in [pool.submit(run, steps) for steps in parts]:
            done.result()


CASE = Case(
    name="ideas",
    title="Other ways to make the same rows and outbox, by SQL alone",
    about="What a change of schema or driver would gain at most: the ceiling's statements but for the one thing each idea is about.",
    sizes=Sizes,
    variants=variants,
    figures=(Figure("events_per_s", "events/s"), Figure("cpu_us_postgres", "PostgreSQL, CPU µs/event", 1)),
    reference=CEILING,
    plots=("events_per_s",),
    notes={
        TWO: "on two processors, with nobody else there",
        FOLDED: "ids are drawn once all rows are locked, so each key's order stays; who needs one change reads them all",
    },
)  # fmt: skip
