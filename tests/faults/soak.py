"""An hour at half of what the workers can do, with a fault every minute: do memory, threads, connections and tables stay flat?

Everything is sampled into a file beside the plot, and the second half's slopes are said with their confidence.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import psycopg

from tests.faults import ledger
from tests.faults.arena import Arena, open_arena
from tests.faults.kinds import KINDS
from tests.faults.nemesis import Director, Scene
from tests.faults.plan import Fault
from tests.faults.plotting import plot, slopes
from tests.faults.stage import Stage, open_stage
from tests.faults.workers import ROOT

PICTURE = ROOT / "docs" / "images" / "soak.png"
SAMPLE_EVERY_S = 5.0
FAULT_EVERY_S = 60.0
_BURST = 40_000
_TIMEOUT_S = 1800.0
# Not the number of workers: their memory is looked at. Partitions once added stay, and would be a slope.
_LEFT_OUT = {"partitions_added", "worker_added", "worker_taken_away", "worker_clock_jumped"}
_LOOK = """
select (select count(*) from pg_stat_activity where datname = current_database() and application_name like 'sync-worker %%') as connections,
       (select count(*) from outbox) as outbox_rows,
       (select sum(pg_table_size(relid))::bigint from pg_stat_user_tables where relname <> 'outbox') as table_bytes,
       (select sum(pg_indexes_size(relid))::bigint from pg_stat_user_tables where relname <> 'outbox') as index_bytes,
       (select pg_total_relation_size('outbox')) as outbox_bytes,
       (select sum(n_dead_tup)::bigint from pg_stat_user_tables) as dead_tuples,
       (select coalesce(sum(next_offset), 0)::bigint from position) as applied
"""


def add_to(what: Any) -> None:
    """The subcommand."""
    parser: argparse.ArgumentParser = what.add_parser("soak", help="an hour at half rate with a fault every minute")
    parser.add_argument("--minutes", type=float, default=60.0, help="(default: %(default)g)")
    parser.add_argument("--rate", type=float, help="events per second; default: half of what is measured first")
    parser.add_argument("--workers", type=int, default=2, help="(default: %(default)d)")
    parser.add_argument("--seed", type=int, default=1, help="of load and faults (default: %(default)d)")
    parser.add_argument("--picture", type=Path, default=PICTURE, help="(default: %(default)s)")
    parser.add_argument("--no-ledger", action="store_true", help="write nothing down")


def main(chosen: argparse.Namespace) -> int:
    with (
        tempfile.TemporaryDirectory() as logs,
        open_arena(registry=False, small_disk=False) as arena,
        open_stage(arena, Path(logs), chosen.workers, seed=chosen.seed) as stage,
    ):
        measured = stage.measure_rate(_BURST)
        rate = chosen.rate or measured / 2
        _say(f"measured {measured:,.0f} events/s; the soak goes at {rate:,.0f} for {chosen.minutes:g} minutes")
        samples, director = _soak(arena, stage, rate, chosen)
        _say("at rest; checking")
        wrong = stage.end(_TIMEOUT_S)
    found = slopes(samples)
    chosen.picture.parent.mkdir(parents=True, exist_ok=True)
    plot(samples, [entry for entry in director.log if entry.detail is not None], chosen.picture)
    taken = director.taken()
    line = {
        **ledger.head("soak"), "seed": chosen.seed, "minutes": chosen.minutes, "workers": chosen.workers, "rate": round(rate),
        "measured_rate": round(measured), "records": stage.load.sent, "changes": stage.chains.count, "faults": sum(taken.values()),
        "by_kind": dict(taken), "slopes": {name: slope.to_json() for name, slope in found.items()}, "wrong": wrong,
    }  # fmt: skip
    if not chosen.no_ledger:
        ledger.append(line)
    sys.stdout.write(json.dumps(line, indent=1) + "\n")
    return 1 if wrong else 0


def _soak(
    arena: Arena, stage: Stage, rate: float, chosen: argparse.Namespace
) -> tuple[list[dict[str, float]], Director]:
    seconds, began = chosen.minutes * 60, time.monotonic()
    scene = Scene(arena, stage.fleet, stage.site.database_url, {}, lambda: None)
    director = Director(scene, _faults(chosen.seed, seconds), began)
    samples: list[dict[str, float]] = []
    over = threading.Event()
    sampler = threading.Thread(target=_sample, args=(stage, began, samples, over.wait), daemon=True)
    stage.load.start(rate)
    director.start()
    sampler.start()
    time.sleep(seconds)
    over.set()
    director.heal()
    sampler.join(30)
    return samples, director


def _faults(seed: int, seconds: float) -> list[Fault]:
    """One a minute, each kind before any comes again; none in the last two minutes, so that the end is at rest."""
    random = Random(f"soak {seed}")
    kinds = [kind for kind in KINDS if kind.needs == "" and kind.name not in _LEFT_OUT]
    faults: list[Fault] = []
    at_s, order = FAULT_EVERY_S / 2, list(kinds)
    while at_s < seconds - 2 * FAULT_EVERY_S:
        if not order:
            order = list(kinds)
        kind = order.pop(random.randrange(len(order)))
        duration = random.uniform(kind.shortest_s, kind.longest_s)
        faults.append(Fault(at_s, kind.name, round(duration, 2), random.randrange(1_000_000), random.random()))
        at_s += FAULT_EVERY_S
    return [replace(fault, at_s=round(fault.at_s, 2)) for fault in faults]


def _sample(stage: Stage, began: float, samples: list[dict[str, float]], wait: Callable[[float], bool]) -> None:
    """Until it is over; while the database is away there is nothing to see."""
    while not wait(SAMPLE_EVERY_S):
        usages = [usage for worker in stage.fleet.running if (usage := worker.usage()) is not None]
        try:
            (row,) = stage.site.query(_LOOK)
        except psycopg.OperationalError:
            continue
        if usages:
            row["rss_mb"] = sum(usage.rss_bytes for usage in usages) / len(usages) / 1e6
            row["threads"] = sum(usage.threads for usage in usages) / len(usages)
        row["at_s"] = time.monotonic() - began
        samples.append({name: float(value) for name, value in row.items()})


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
