"""What a million events cost PostgreSQL: WAL, table and index growth, dead rows, and whether the outbox stays small."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psycopg

from bench.cases.throughput import Flow, facts
from bench.checking import check_rows
from bench.frame import Case, Figure, Figures, Ground, Variant
from bench.load import Load
from bench.site import BenchSite, wait_for

_EVERY_S = 0.05
_LOOK_EVERY_S = 0.5
_STILL = 22
_TABLES = "'membership', 'enrollment'"
_SIZES = f"""select coalesce(sum(pg_table_size(oid)), 0)::bigint, coalesce(sum(pg_indexes_size(oid)), 0)::bigint,
 pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint, pg_total_relation_size('outbox')
 from pg_class where relnamespace = 'sync_worker'::regnamespace and relname in ({_TABLES})"""
_ROWS = f"""select sum(n_tup_ins + n_tup_upd + n_tup_del), sum(n_tup_upd), sum(n_tup_hot_upd), sum(n_dead_tup),
  sum(vacuum_count + autovacuum_count)
 from pg_stat_user_tables where schemaname = 'sync_worker' and relname in ({_TABLES}, 'outbox')"""


@dataclass(frozen=True, slots=True)
class Sizes:
    events: int = field(default=100_000, metadata={"help": "per phase"})
    methods: int = field(default=1, metadata={"help": "per segment"})


def variants(ground: Ground, sizes: Sizes) -> list[Variant]:
    def measured(round_: int) -> dict[str, Figures]:
        load, expected, records = facts(Load(sizes.events // sizes.methods, sizes.methods, seed=round_))
        found: dict[str, Figures] = {}
        with ground.site() as site:
            flow = Flow(site, load, 1)
            counted = _settled(site)
            try:
                everything = [record for part in records.values() for record in part]
                for phase, part in {**records, "replay": everything}.items():
                    before = site.one(_SIZES)
                    with _outbox_watched(site) as most:
                        flow.run(part, None if phase == "replay" else expected[phase].changes)
                        wait_for(
                            lambda: not site.one("select exists (select from outbox)")[0], "the outbox is emptied", 60
                        )
                    grown = _difference(site.one(_SIZES), before)
                    now = _settled(site)
                    found[phase] = _figures(len(part), grown, _difference(now, counted), max(most))
                    counted = now
                    check_rows(site, expected[phase], phase)
            finally:
                flow.close()
        return found

    return [Variant("one worker", measured)]


def _difference(now: tuple[int, ...], before: tuple[int, ...]) -> list[int]:
    return [int(after - was) for after, was in zip(now, before, strict=True)]


def _figures(events: int, grown: list[int], counted: list[int], most: int) -> Figures:
    table, index, wal, outbox = grown
    written, updated, hot, dead, vacuums = counted
    return {
        "wal_bytes": wal / events, "table_bytes": table / events, "index_bytes": index / events, "rows_written": written / events,
        "hot_share": 100 * hot / updated if updated else 0.0, "dead_rows": dead / events, "vacuums": float(vacuums),
        "outbox_mb": most / 2**20, "outbox_growth_mb": outbox / 2**20,
    }  # fmt: skip


@contextmanager
def _outbox_watched(site: BenchSite) -> Iterator[list[int]]:
    """Its sizes in bytes while the block lasts."""
    found, done = [0], threading.Event()

    def watch() -> None:
        with psycopg.connect(site.database_url, autocommit=True, options="-c search_path=sync_worker") as session:
            while not done.wait(_EVERY_S):
                found.extend(size for (size,) in session.execute("select pg_total_relation_size('outbox')"))

    thread = threading.Thread(target=watch, name="outbox")
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def _settled(site: BenchSite) -> tuple[int, ...]:
    """The counters once they don't move any more: a session that has nothing to do reports its own ten seconds late."""
    last: tuple[int, ...] = ()
    still = 0

    def same() -> bool:
        nonlocal last, still
        now = site.one(_ROWS)
        still = still + 1 if now == last else 0
        last = now
        return still >= _STILL

    wait_for(same, "statistics that stand still", 120, _LOOK_EVERY_S)
    return last


CASE = Case(
    name="storage",
    title="What events cost PostgreSQL",
    about="Per event, full page images included; autovacuum as it comes. rows written: inserted, updated, deleted, outbox included.",
    sizes=Sizes,
    variants=variants,
    plots=("wal_bytes", "rows_written", "outbox_mb"),
    figures=(
        Figure("wal_bytes", "WAL bytes/event"), Figure("table_bytes", "table bytes/event"), Figure("index_bytes", "index bytes/event"),
        Figure("rows_written", "rows written/event", 2), Figure("hot_share", "HOT % of updates"), Figure("dead_rows", "dead rows/event", 2),
        Figure("vacuums", "vacuums"), Figure("outbox_mb", "outbox MiB at most", 1), Figure("outbox_growth_mb", "outbox growth MiB", 1),
    ),
    rounds=2,
)  # fmt: skip
