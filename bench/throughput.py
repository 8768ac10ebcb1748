"""Events per second: the worker from records waiting in Kafka to EnrollmentChanged committed, and the bare SQL from memory.

Both do the same facts in the same phases. A round's figures are given out only after its end state and every change were
checked.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.errors import expect
from bench.load import Load, Published, as_published, as_records
from bench.machine import CpuSeconds, cpu_seconds
from bench.site import BenchSite, ChangesReader, new_site, wait_for
from devstack import Stack
from sync_worker.database import arrays
from sync_worker.database.sessions import Session, apply_session
from sync_worker.enrollment import apply, methods
from sync_worker.enrollment.folding import fold
from sync_worker.events import Partition, Record

BATCH = 2000
_STATE = """select count(*) filter (where status = 'ACTIVE'), count(*) filter (where status = 'ABSENT'), coalesce(sum(version), 0)::bigint,
 (select count(*) from dead_letter_count), (select count(*) from membership where is_member) from enrollment"""


@dataclass(frozen=True, slots=True)
class Span:
    """One phase of one round."""

    phase: str
    events: int
    seconds: float
    cpu: CpuSeconds

    @property
    def rate(self) -> float:
        """Events per second."""
        return self.events / self.seconds


def end_to_end(stack: Stack, template: str, directory: Path, load: Load, workers: int, **settings: str) -> list[Span]:
    """Adds, removes and a replay of both, each with all its records waiting in Kafka when the clock starts."""
    added = as_published(load.memberships(is_member=True, version=1))
    removed = as_published(load.memberships(is_member=False, version=2))
    with new_site(stack, template, directory, **settings) as site:
        site.publish(site.settings.methods_topic, as_published(load.method_events))
        site.start_workers(workers)
        wait_for(lambda: site.applied() >= len(load.method_events), "the methods are applied")
        reader = site.changes_reader()
        try:
            round_ = _Round(site, load, reader)
            spans = [
                round_.run("adds", [added], lambda: reader.read_up_to(load.pairs, site)),
                round_.run("removes", [removed], lambda: reader.read_up_to(2 * load.pairs, site)),
                round_.run("replay", [added, removed], round_.wait_applied),
            ]
        finally:
            reader.close()
        wait_for(
            lambda: site.one("select count(*) = 0 from relay_window where not published")[0], "the outbox is published"
        )
        _check_topic(site, load)
    return spans


class _Round:
    """What must be known to time and check the phases of one site."""

    def __init__(self, site: BenchSite, load: Load, reader: ChangesReader) -> None:
        self._site = site
        self._load = load
        self._reader = reader
        self._published = len(load.method_events)

    def run(self, phase: str, parts: list[list[Published]], wait: Callable[[], None]) -> Span:
        site = self._site
        events = sum(len(part) for part in parts)
        with site.frozen():
            for part in parts:
                site.publish(site.settings.membership_topic, part)
            self._published += events
            before = cpu_seconds(site.stack, site.pids)
            started = time.perf_counter()
        wait()
        seconds = time.perf_counter() - started
        cpu = cpu_seconds(site.stack, site.pids).since(before)
        self.wait_applied()
        _check_state(site, self._load, phase)
        return Span(phase, events, seconds, cpu)

    def wait_applied(self) -> None:
        wait_for(lambda: self._site.applied() >= self._published, "all records are applied")


def _check_state(site: BenchSite, load: Load, phase: str) -> None:
    pairs = load.pairs
    expected = (pairs, 0, pairs, 0, load.users) if phase == "adds" else (0, pairs, 2 * pairs, 0, 0)
    expect(f"active, absent, sum of versions, dead letters, members after {phase}", site.one(_STATE), expected)


def _check_topic(site: BenchSite, load: Load) -> None:
    """Every change of every pair there once: as many records as versions, and no event id twice. After the clock."""
    reader = site.changes_reader()
    ids: set[object] = set()
    keys: set[object] = set()
    try:
        # Once all are there, a moment more for what must not be.
        while messages := reader.some(5.0 if reader.count < 2 * load.pairs else 0.3):
            for message in messages:
                headers = dict(message.headers() or ())
                ids.add(headers["ce_id"])
                keys.add(message.key())
    finally:
        reader.close()
    expect(
        "changes, event ids, keys in the topic",
        (reader.count, len(ids), len(keys)),
        (2 * load.pairs, 2 * load.pairs, load.pairs),
    )


def ceiling(stack: Stack, template: str, directory: Path, load: Load) -> list[Span]:
    """The same facts from memory: one session, the worker's own statements, outbox included, nothing read or published."""
    added = as_records(load.memberships(is_member=True, version=1))
    removed = as_records(load.memberships(is_member=False, version=2))
    spans = []
    with new_site(stack, template, directory) as site:
        session = apply_session(site.database_url, "bench")
        arrays.register(session)
        try:
            _put_methods(session, load)
            for phase, parts in (("adds", [added]), ("removes", [removed]), ("replay", [added, removed])):
                before = cpu_seconds(stack, [])
                started = time.perf_counter()
                for part in parts:
                    _apply(session, part)
                seconds = time.perf_counter() - started
                spans.append(Span(phase, sum(map(len, parts)), seconds, cpu_seconds(stack, []).since(before)))
                _check_state(site, load, phase)
                expect(
                    "outbox rows",
                    site.one("select count(*) from outbox")[0],
                    (1 if phase == "adds" else 2) * load.pairs,
                )
        finally:
            session.close()
    return spans


def _put_methods(session: Session, load: Load) -> None:
    for n, method in enumerate(load.method_events):
        facts = fold([Record(Partition("memory", 1), n, method)], {})
        with session.transaction():
            methods.apply_methods(session, facts)


def _apply(session: Session, records: list[Record]) -> None:
    for start in range(0, len(records), BATCH):
        facts = fold(records[start : start + BATCH], {})
        with session.transaction():
            apply.apply_people(session, facts)
