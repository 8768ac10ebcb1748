"""What PostgreSQL could do at most, from memory and in one session: the leanest SQL for the same rows, and the worker's own statements.

Nothing is read from Kafka or published, and what can be prepared is prepared before the clock starts.
"""

import time
from collections.abc import Callable, Mapping, Sequence

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
    """Additions and removals apart, each in key order."""
    steps: list[Step] = []
    for start in range(0, len(events), BATCH):
        batch = sorted(events[start : start + BATCH])
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
                    session.execute(SQL[name], columns, prepare=True)

        steps.append(step)
    return steps


def own(session: Session, events: Sequence[Membership]) -> list[Step]:
    """The worker's statements, with its locks and its judgement of what changed nothing."""
    records = as_records(list(events))
    steps: list[Step] = []
    for start in range(0, len(records), BATCH):
        facts = fold(records[start : start + BATCH], {})

        def step(facts: Facts = facts) -> None:
            familiar = apply.survey(session, facts.records).familiar
            with session.transaction():
                apply.apply_people(session, facts, familiar=familiar)

        steps.append(step)
    return steps


def measure(ground: Ground, load: Load, expected: dict[str, Expected], prepare: Prepare) -> dict[str, Figures]:
    found = {}
    phases = {name: load.phase(name) for name in PHASES}
    phases["replay"] = [event for events in phases.values() for event in events]
    with ground.site() as site:
        session = apply_session(site.database_url, "bench")
        arrays.register(session)
        try:
            _put_methods(session, load)
            for phase, events in phases.items():
                steps = prepare(session, events)
                found[phase] = _timed(site, steps, len(events))
                check_rows(site, expected[phase], phase)
                expect(
                    f"outbox rows after {phase}", site.one("select count(*) from outbox")[0], expected[phase].changes
                )
        finally:
            session.close()
    return found


def _timed(site: BenchSite, steps: Sequence[Step], events: int) -> Figures:
    before = cpu_seconds(site.stack, [])
    started = time.perf_counter()
    for step in steps:
        step()
    seconds = time.perf_counter() - started
    used = cpu_seconds(site.stack, []).since(before)
    return {"events_per_s": events / seconds, "cpu_us_postgres": used.postgres / events * 1e6}


def _put_methods(session: Session, load: Load) -> None:
    for n, method in enumerate(load.method_events):
        facts = fold([Record(Partition("memory", 1), n, method)], {})
        with session.transaction():
            methods.apply_methods(session, facts)
