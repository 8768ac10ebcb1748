"""A method over a large segment: activated, given another role, deactivated, deleted; alone, beside live traffic, and as one statement.

Sizes are too large for the sequential model, so the end of each step is asked of SQL that knows nothing of the worker's: every member
has exactly this contribution and version. Every change is counted once by the ids that the contract gives them.
"""

import json
import threading
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from uuid import UUID

import psycopg
from confluent_kafka import Message

from bench.cases.throughput import maximum
from bench.checking import Chains
from bench.errors import WrongResult, expect
from bench.filling import fill_segment
from bench.frame import Case, Figure, Figures, Ground, Variant
from bench.load import Load, Published, as_published
from bench.site import BenchSite, wait_for
from bench.traffic import Route, Traffic, percentiles, user_of_change
from sync_worker.database import arrays
from sync_worker.database.sessions import apply_session
from sync_worker.database.statements import load as statements
from sync_worker.enrollment.folding import fold
from sync_worker.enrollment.methods import apply_methods
from sync_worker.events import EventId, Method, Partition, Record

STATEMENT = "one statement with outbox"
SQL = statements("bench.cases", "methods.sql")
_HALF = 0.5
_SETTLES_S = 1.0


@dataclass(frozen=True, slots=True)
class Sizes:
    members: int = field(default=200_000, metadata={"help": "of the segment"})
    live_members: int = field(default=60_000, metadata={"help": "of the segment, beside live traffic"})
    live_rate: int = field(default=0, metadata={"help": "events/s of live traffic; 0 = half of the maximum"})
    live_seconds: float = field(default=15.0, metadata={"help": "of live traffic prepared for each step"})


@dataclass(frozen=True, slots=True)
class _Step:
    """One change of the method, and what every member has then."""

    name: str
    changed: Mapping[str, Any]
    status: str
    role: str


_STEPS = (
    _Step("activation", {}, "ACTIVE", "student"),
    _Step("role change", {"role": "tutor"}, "ACTIVE", "tutor"),
    _Step("deactivation", {"role": "tutor", "active": False}, "SUSPENDED", "tutor"),
    _Step("deletion", {"role": "tutor", "active": False, "deleted": True}, "ABSENT", ""),
)


def variants(ground: Ground, sizes: Sizes) -> list[Variant]:
    half = cache(lambda: sizes.live_rate or round(_HALF * maximum(ground, 40_000), -2))
    return [
        Variant(STATEMENT, lambda round_: _as_statement(ground, sizes.members, round_)),
        Variant("worker, alone", lambda round_: _by_worker(ground, sizes.members, round_, 0, 0)),
        Variant("worker, beside live traffic", lambda round_: _by_worker(ground, sizes.live_members, round_, half(), sizes.live_seconds)),
    ]  # fmt: skip


def _method(load: Load, n: int) -> Method:
    return load.method_events[0]._replace(**_STEPS[n].changed, version=n + 1, event_id=EventId(load.people[n][1]))


def _as_statement(ground: Ground, members: int, round_: int) -> dict[str, Figures]:
    load = Load(len(_STEPS), 1, segments=1, seed=round_)
    found = {}
    with ground.site() as site:
        method_id = load.method_events[0].method_id
        session = apply_session(site.database_url, "bench")
        arrays.register(session)
        # Its plan is for once and for all rows.
        with psycopg.connect(site.database_url, options="-c search_path=sync_worker") as plain:
            for n, step in enumerate(_STEPS):
                with session.transaction():
                    apply_methods(session, fold([Record(Partition("memory", 1), n + 1, _method(load, n))], {}))
                if n == 0:
                    # Only now, so that the worker's own code found nobody to enroll.
                    fill_segment(site, load.segment_ids[0], members, enrolled=False)
                site.execute("delete from backfill", "checkpoint")
                started = time.perf_counter()
                plain.execute(SQL["activation" if n == 0 else "change"], {"method": UUID(bytes=method_id)})
                plain.commit()
                found[step.name] = {"members_per_s": members / (time.perf_counter() - started)}
                _check_step(site, load, n, members)
                expect("outbox rows", site.one("select count(*) from outbox")[0], members * (n + 1))
        session.close()
    return found


def _by_worker(ground: Ground, members: int, round_: int, rate: float, seconds: float) -> dict[str, Figures]:
    load = Load(len(_STEPS), 1, segments=1, seed=round_)
    live = Load(int(rate * seconds) * len(_STEPS) or 1, 1, segments=20, seed=500 + round_)
    records = as_published(live.adds) if rate else []
    found = {}
    with ground.site() as site:
        fill_segment(site, load.segment_ids[0], members, enrolled=False)
        site.publish(site.settings.methods_topic, as_published(live.method_events))
        site.start_workers(1)
        wait_for(lambda: site.applied() >= len(live.method_events), "the methods are applied")
        sent = 0
        for n, step in enumerate(_STEPS):
            part = records[len(records) * n // len(_STEPS) : len(records) * (n + 1) // len(_STEPS)]
            figures, was_sent = _take_step(site, load, n, members, part, rate)
            sent += was_sent
            found[step.name] = figures
            _check_step(site, load, n, members)
        others = f"select count(*) from enrollment where course_id <> '{_course(load)}' and status = 'ACTIVE' and version = 1"
        expect("live rows", site.one(others)[0], sent)
        _check_topic(site, load, members, sent)
    return found


def _take_step(
    site: BenchSite, load: Load, n: int, members: int, live: list[Published], rate: float
) -> tuple[Figures, int]:
    """The step's figures, and how many live events were sent beside it."""
    reader = _Counting(site, _course(load), members * (n + 1))
    live_reader = site.changes_reader()
    route = Route(site.stack.kafka.bootstrap_servers, site.settings.membership_topic, user_of_change)
    traffic = Traffic(route, live, rate, live_reader) if live else None
    try:
        with traffic.running() if traffic else nullcontext():
            if traffic:
                time.sleep(_SETTLES_S)
            topic = site.settings.methods_topic
            before = site.one(f"select sum(next_offset) from position where topic = '{topic}'")[0]
            started = time.monotonic()
            site.publish(site.settings.methods_topic, as_published([_method(load, n)]))
            wait_for(lambda: _done(site, before), f"{_STEPS[n].name} is applied", every_s=0.02)
            applied = time.monotonic()
            published = reader.reached()
    finally:
        reader.close()
        live_reader.close()
    figures = {"members_per_s": members / (applied - started), "published_per_s": members / (published - started)}
    if traffic is None:
        return figures, 0
    last = max(traffic.sent.values())
    if last < applied:
        raise WrongResult(f"live traffic ended {applied - last:.1f} s before {_STEPS[n].name} did: more --live-seconds")
    beside = {f"live_{name}": value for name, value in percentiles(traffic.latencies_ms(started, applied)).items()}
    return {**figures, **beside, "live_rate": rate}, len(traffic.sent)


def _done(site: BenchSite, before: int) -> bool:
    topic = site.settings.methods_topic
    return bool(site.one(f"""select (select sum(next_offset) from position where topic = '{topic}') > {before}
      and not exists (select from backfill)""")[0])  # fmt: skip


def _course(load: Load) -> str:
    return str(UUID(bytes=load.method_events[0].course_id))


def _check_step(site: BenchSite, load: Load, n: int, members: int) -> None:
    step, method = _STEPS[n], str(UUID(bytes=load.method_events[0].method_id))
    contribution = {"kind": "SEGMENT_SYNC", "status": step.status, "role": step.role, "member": True}
    sources = json.dumps({} if step.status == "ABSENT" else {method: contribution})
    found = site.one(f"""select count(*), count(distinct user_id), count(*) filter (where status = '{step.status}' and version = {n + 1}
      and sources = '{sources}') from enrollment where course_id = '{_course(load)}'""")  # fmt: skip
    expect(f"rows, people, right ones after {step.name}", found, (members, members, members))


def _check_topic(site: BenchSite, load: Load, members: int, live: int) -> None:
    chains, reader = Chains(), site.changes_reader()
    total = members * len(_STEPS) + live
    try:
        while messages := reader.some(5.0 if reader.count < total else 0.3):
            chains.take(messages, decoded=False)
    finally:
        reader.close()
    ours = _course(load).encode()
    versions = [version for key, version in chains.versions.items() if key.startswith(ours)]
    expect("changes in the topic", reader.count, total)
    expect("people and versions in the topic", (len(versions), set(versions)), (members, {len(_STEPS)}))


class _Counting:
    """When the last of so many changes of a course had come."""

    def __init__(self, site: BenchSite, course: str, number: int) -> None:
        self._reader = site.changes_reader()
        self._course = course.encode()
        self._number = number
        self._at: float | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, name="published")
        self._thread.start()

    def _read(self) -> None:
        count = 0
        while count < self._number and not self._stop.is_set():
            count += sum(self._is_ours(message) for message in self._reader.some(0.2))
        if count >= self._number:
            self._at = time.monotonic()

    def _is_ours(self, message: Message) -> bool:
        return bytes(message.key() or b"").startswith(self._course)

    def reached(self) -> float:
        wait_for(lambda: self._at, "the changes are published")
        assert self._at is not None
        return self._at

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._reader.close()


CASE = Case(
    name="methods",
    title="A method over a large segment",
    about="Until all rows and outbox rows are committed, and until all is published; live: the latency of other people's events.",
    sizes=Sizes,
    variants=variants,
    figures=(
        Figure("members_per_s", "members/s applied"), Figure("published_per_s", "members/s published"), Figure("live_rate", "live ev/s"),
        Figure("live_p50_ms", "live p50 ms", 1), Figure("live_p99_ms", "live p99 ms", 1), Figure("live_max_ms", "live max ms", 1),
    ),
    reference=STATEMENT,
    plots=("members_per_s", "live_p99_ms"),
    rounds=2,
)  # fmt: skip
