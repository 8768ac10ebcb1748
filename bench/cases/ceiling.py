"""What PostgreSQL could do at most, from memory and in one session: the leanest SQL for the same rows, and the worker's own statements.

Nothing is read from Kafka or published, and what can be prepared is prepared before the clock starts.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import LiteralString

from bench.checking import Expected, check_rows
from bench.errors import expect
from bench.frame import Figures, Ground
from bench.load import PHASES, Load, as_records
from bench.machine import cpu_seconds
from bench.site import BenchSite
from sync_worker.database import arrays
from sync_worker.database.arrays import bools, int8s, timestamps, uuids
from sync_worker.database.sessions import Session, apply_session
from sync_worker.database.statements import load as statements
from sync_worker.enrollment import apply, methods
from sync_worker.enrollment.folding import Facts, fold
from sync_worker.events import Membership, Partition, Record

BATCH = 2000
SQL = statements("bench.cases", "ceiling.sql")

Step = Callable[[], None]
Prepare = Callable[[Session, Sequence[Membership]], list[Step]]


def leanest(session: Session, events: Sequence[Membership]) -> list[Step]:
    return steps(session, events, SQL)


def batches(events: Sequence[Membership]) -> Iterator[list[Membership]]:
    """Each in key order."""
    for start in range(0, len(events), BATCH):
        yield sorted(events[start : start + BATCH])


def steps(session: Session, events: Sequence[Membership], sql: Mapping[str, LiteralString]) -> list[Step]:
    """Additions and removals apart, each by one statement of `sql`."""
    found: list[Step] = []
    for batch in batches(events):
        parts = {
            name: {
                "segments": uuids([event[0] for event in of]), "users": uuids([event[1] for event in of]),
                "members": bools([event[2] for event in of]), "versions": int8s([event[3] for event in of]),
                "events": uuids([event[4] for event in of]), "times": timestamps([event[5] for event in of]),
            }
            for name, is_member in (("added", True), ("removed", False))
            if (of := [event for event in batch if event.is_member is is_member])
        }  # fmt: skip

        def step(parts: Mapping[str, Mapping[str, object]] = parts) -> None:
            with session.transaction():
                for name, columns in parts.items():
                    session.execute(sql[name], columns, prepare=True)

        found.append(step)
    return found


def own(session: Session, events: Sequence[Membership]) -> list[Step]:
    """The worker's statements, with its locks and its judgement of what changed nothing."""
    records = as_records(list(events))
    found: list[Step] = []
    for start in range(0, len(records), BATCH):
        facts = fold(records[start : start + BATCH], {})

        def step(facts: Facts = facts) -> None:
            familiar = apply.survey(session, facts.records).familiar
            with session.transaction():
                apply.apply_people(session, facts, familiar=familiar)

        found.append(step)
    return found


def measure(ground: Ground, load: Load, expected: dict[str, Expected], prepare: Prepare) -> dict[str, Figures]:
    found = {}
    phases = {name: load.phase(name) for name in PHASES}
    phases["replay"] = [event for events in phases.values() for event in events]
    with ground.site() as site, session(site) as opened:
        put_methods(opened, load)
        for phase, events in phases.items():
            found[phase] = timed(site, prepare(opened, events), len(events))
            check_rows(site, expected[phase], phase)
            expect(f"outbox rows after {phase}", site.one("select count(*) from outbox")[0], expected[phase].changes)
    return found


@contextmanager
def session(site: BenchSite) -> Iterator[Session]:
    """One as the worker applies with."""
    with closing(apply_session(site.database_url, "bench")) as opened:
        arrays.register(opened)
        yield opened


def timed(site: BenchSite, work: Sequence[Step], events: int) -> Figures:
    before = cpu_seconds(site.stack, [])
    started = time.perf_counter()
    for step in work:
        step()
    seconds = time.perf_counter() - started
    used = cpu_seconds(site.stack, []).since(before)
    return {"events_per_s": events / seconds, "cpu_us_postgres": used.postgres / events * 1e6}


def put_methods(opened: Session, load: Load) -> None:
    for n, method in enumerate(load.method_events):
        facts = fold([Record(Partition("memory", 1), n, method)], {})
        with opened.transaction():
            methods.apply_methods(opened, facts)
