"""Resident memory of a worker: at rest, at full rate, with a backlog before it, and over a large database."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil

from bench.cases.throughput import Flow, facts
from bench.checking import check_rows, check_topic
from bench.filling import fill_rows
from bench.frame import Case, Figure, Figures, Ground, Variant
from bench.load import Load
from bench.site import BenchSite, wait_for

_EVERY_S = 0.05
_RESTS_S = 5.0


@dataclass(frozen=True, slots=True)
class Sizes:
    events: int = field(default=100_000, metadata={"help": "at full rate"})
    backlog: int = field(default=300_000, metadata={"help": "records that wait for a worker that starts"})
    rows: int = field(default=1_000_000, metadata={"help": "enrollment rows that are there before"})


def variants(ground: Ground, sizes: Sizes) -> list[Variant]:
    def measured(round_: int) -> dict[str, Figures]:
        return (
            _working(ground, sizes.events, round_, 0)
            | _working(ground, sizes.events, round_, sizes.rows)
            | _catching_up(ground, sizes.backlog, round_)
        )

    return [Variant("one worker", measured)]


def _working(ground: Ground, events: int, round_: int, rows: int) -> dict[str, Figures]:
    load, expected, records = facts(Load(events, 1, seed=round_), ("adds",))
    over = f" over {rows:,} rows" if rows else ""
    with ground.site() as site:
        if rows:
            fill_rows(site, rows)
        flow = Flow(site, load, 1)
        try:
            with sampled(site) as rest:
                time.sleep(_RESTS_S)
            with sampled(site) as full:
                flow.run(records["adds"], expected["adds"].changes)
        finally:
            flow.close()
        check_rows(site, expected["adds"], "adds", filled=rows)
    return {f"at rest{over}": rest(), f"at full rate{over}": full()}


def _catching_up(ground: Ground, backlog: int, round_: int) -> dict[str, Figures]:
    load, expected, records = facts(Load(backlog, 1, seed=round_), ("adds",))
    with ground.site() as site:
        flow = Flow(site, load, 1)
        flow.close()
        site.stop_worker()
        site.publish(site.settings.membership_topic, records["adds"])
        site.spawn_worker()
        with sampled(site) as catching_up:
            wait_for(lambda: site.applied() >= len(load.method_events) + backlog, "the backlog is applied")
            check_topic(site, expected["adds"], decoded=False)
        check_rows(site, expected["adds"], "adds")
    return {f"a backlog of {backlog:,} records": catching_up()}


@contextmanager
def sampled(site: BenchSite) -> Iterator[Callable[[], Figures]]:
    """What the workers take while the block lasts; asked after it."""
    (pid,) = site.pids
    process, samples, done = psutil.Process(pid), [], threading.Event()

    def sample() -> None:
        while not done.wait(_EVERY_S):
            samples.append(process.memory_info().rss / 2**20)

    thread = threading.Thread(target=sample, name="samples")
    thread.start()
    try:
        yield lambda: {"peak_mb": max(samples), "last_mb": samples[-1]}
    finally:
        done.set()
        thread.join()


CASE = Case(
    name="memory",
    title="Resident memory of a worker",
    about="As the operating system counts it, looked at twenty times a second.",
    sizes=Sizes,
    variants=variants,
    figures=(Figure("peak_mb", "MiB at most", 1), Figure("last_mb", "MiB at the end", 1)),
    rounds=2,
)
