"""`python -m bench profile`: what the time goes into, kept in docs/profiles/ to be looked at and compared.

A flame graph of the worker at full rate (py-spy), CPU by thread of worker and broker, what PostgreSQL counted per statement
(pg_stat_statements), and the plans of the hot statements (EXPLAIN (ANALYZE, BUFFERS, WAL)) with statistics missing, stale and fresh.
Nothing here is a figure of the bench: to be watched costs time.
"""

import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from rich.console import Console

from bench import machine, report
from bench.cases.throughput import Flow, facts, maximum
from bench.errors import WrongResult
from bench.filling import fill_rows
from bench.frame import TEMPLATE, Ground
from bench.load import Load, as_records
from bench.site import BenchSite
from devstack import Stack
from devstack.stack import Kind
from sync_worker.database import arrays
from sync_worker.database.migrate import migrate
from sync_worker.database.sessions import Session, apply_session
from sync_worker.enrollment.apply import apply_people
from sync_worker.enrollment.folding import fold
from sync_worker.enrollment.methods import apply_methods
from sync_worker.events import Partition, Record

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "profiles"
PY_SPY = Path(sys.prefix) / "bench" / "bin" / "py-spy"
_COLUMNS = ("calls", "ms each", "rows each", "buffers hit each", "WAL bytes each", "share of time")
_STATEMENTS = """select calls, mean_exec_time, rows::float8 / calls, shared_blks_hit::float8 / calls, wal_bytes::float8 / calls,
 100 * total_exec_time / sum(total_exec_time) over (), query from public.pg_stat_statements
 where dbid = (select oid from pg_database where datname = current_database()) order by total_exec_time desc limit 15"""
_ABOUT_THREADS = """Python's threads carry the process's own name, librdkafka's begin with `rdk:`, those of Java's compilers with `C`.
With py-spy watching, which costs time, and with the bench's own reading and writing on the broker's side: shares, not figures."""
_BATCH = 2000
_EMPTIED = "truncate membership, enrollment, outbox"
# Where a file lies on this machine is nobody's business.
_FOLDERS = re.compile(
    r"/(?:home|opt|root|tmp|usr|var|work)/(?:[\w.-]+/)*?(?=sync_worker/|site-packages/|lib/python|[\w.-]+(?![\w./-]))"
)
_SPACES = re.compile(r"\s+")
_ARRAYS = re.compile(r"('\\x.{16}|'\{.{16}).*?(?=')")


def main(events: int) -> int:
    say = Console(stderr=True)
    if not PY_SPY.exists():
        say.print(f"{PY_SPY} is missing: `make bench-profile` installs it from requirements/bench.txt")
        return 1
    FOLDER.mkdir(parents=True, exist_ok=True)
    parameters = {
        "shared_preload_libraries": "pg_stat_statements",
        "pg_stat_statements.track": "top",
        "track_io_timing": "on",
    }
    try:
        with (
            Stack.start(kind=Kind.NATIVE, durable=True, postgres_parameters=parameters) as stack,
            tempfile.TemporaryDirectory() as folder,
        ):
            url = stack.postgres.create_database(TEMPLATE)
            migrate(url)
            with psycopg.connect(url, autocommit=True) as session:
                session.execute("create extension pg_stat_statements schema public")
            ground = Ground(stack, Path(folder), lambda text: say.print(text, highlight=False))
            maximum(ground, min(events, 30_000))
            head = f"Of {events:,} events per phase, {datetime.now(UTC):%Y-%m-%d}: {report.machine_text(machine.card(stack))}\n"
            _full_rate(ground, events, head)
            _plans(ground, head)
    except WrongResult as wrong:
        say.print(f"[red]wrong result, nothing kept:[/red] {wrong}", highlight=False)
        return 1
    say.print(f"written: {FOLDER}", soft_wrap=True)
    return 0


def _full_rate(ground: Ground, events: int, head: str) -> None:
    load, expected, records = facts(Load(events, 1))
    tables, threads = [], []
    with ground.site() as site:
        flow = Flow(site, load, 1)
        try:
            for phase, part in records.items():
                site.execute("select public.pg_stat_statements_reset()")
                flame = ground.folder / f"{phase}.svg"
                pids = {"worker": site.pids[0], "Kafka": site.stack.kafka.pid}
                before = {name: machine.thread_seconds(pid) for name, pid in pids.items()}
                with _py_spy(site.pids[0], flame):
                    flow.run(part, expected[phase].changes)
                (FOLDER / f"flame-{phase}.svg").write_text(_FOLDERS.sub("", flame.read_text("utf-8")), "utf-8")
                tables.append(f"## {phase}\n\n{_table(site.rows(_STATEMENTS))}")
                after = {name: machine.thread_seconds(pid) for name, pid in pids.items()}
                threads.append(f"## {phase}\n\n{_thread_table(before, after, len(part))}")
        finally:
            flow.close()
    about = f"# What PostgreSQL counted per statement\n\n{head}\n`python -m bench profile` writes this file.\n\n"
    (FOLDER / "statements.md").write_text(about + "\n".join(tables), "utf-8")
    about = f"# CPU by thread\n\n{head}\n{_ABOUT_THREADS}\n\n`python -m bench profile` writes this file.\n\n"
    (FOLDER / "threads.md").write_text(about + "\n".join(threads), "utf-8")


@contextmanager
def _py_spy(pid: int, path: Path) -> Iterator[None]:
    """Samples a process while the block lasts, thread by thread: who runs, and who holds the interpreter's lock."""
    command = [str(PY_SPY), "record", "--pid", str(pid), "--output", str(path), "--rate", "200", "--threads"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    if process.returncode:
        raise WrongResult(f"py-spy ended with {process.returncode}: {said.decode('utf-8', 'replace')[-500:]}")


def _table(rows: Sequence[tuple[Any, ...]]) -> str:
    lines = [f"| {' | '.join(_COLUMNS)} | statement |", f"|{' --- |' * (len(_COLUMNS) + 1)}"]
    for calls, took, number, hit, written, share, query in rows:
        text = _SPACES.sub(" ", query)[:140].replace("|", "\\|")
        lines.append(
            f"| {calls:,} | {took:.3f} | {number:,.1f} | {hit:,.0f} | {written:,.0f} | {share:.1f} % | `{text}` |"
        )
    return "\n".join(lines) + "\n"


def _thread_table(before: Mapping[str, dict[str, float]], after: Mapping[str, dict[str, float]], events: int) -> str:
    lines = ["| process | threads | CPU µs per event |", "| --- | --- | --- |"]
    for process, seconds in after.items():
        used = {name: (each - before[process].get(name, 0.0)) / events * 1e6 for name, each in seconds.items()}
        most = sorted(used.items(), key=lambda item: -item[1])[:8]
        lines += [f"| {process} | {name} | {each:.1f} |" for name, each in most if each > 0]
    return "\n".join(lines) + "\n"


def _plans(ground: Ground, head: str) -> None:
    """The same kind of batch with statistics that are missing, then stale, then fresh: a look-up must never become a scan."""
    load = Load(3 * _BATCH, 1, segments=20, seed=3)
    batches = [as_records(load.adds)[n * _BATCH : (n + 1) * _BATCH] for n in range(3)]
    about = "`python -m bench profile` writes this file; the plans are those that a session of the worker used."
    parts = [f"# Plans of the hot statements\n\n{head}\n{about}\n"]
    with ground.site() as site:
        grounds: dict[str, Callable[[], None]] = {
            "no statistics, right after TRUNCATE": lambda: site.execute(_EMPTIED),
            "stale statistics: those of empty tables, over 200,000 rows": lambda: _make_stale(site),
            "fresh statistics": lambda: site.execute("analyze membership", "analyze enrollment", "analyze method"),
        }
        session = apply_session(site.database_url, "bench")
        arrays.register(session)
        plans: list[str] = []
        try:
            for n, method in enumerate(load.method_events):
                apply_alone(session, [Record(Partition("memory", 1), n, method)])
            _tell_plans(session, plans)
            site.execute(
                "alter table membership set (autovacuum_enabled = off)",
                "alter table enrollment set (autovacuum_enabled = off)",
            )
            for title, prepare in grounds.items():
                prepare()
                session.execute("discard plans")
                plans.clear()
                apply_alone(session, batches.pop())
                parts += [f"## {title}\n", *(f"```\n{plan}\n```\n" for plan in plans if "insert into" in plan)]
                scans = re.findall(r"Seq Scan on (?:membership|enrollment)\b", "\n".join(plans))
                if scans:
                    raise WrongResult(f"{title}: {scans[0]}")
        finally:
            session.close()
    (FOLDER / "plans.md").write_text("\n".join(parts), "utf-8")


def _make_stale(site: BenchSite) -> None:
    site.execute(_EMPTIED, "analyze membership", "analyze enrollment")
    fill_rows(site, 200_000, analyze=False)


def apply_alone(session: Session, records: Sequence[Record]) -> None:
    """As the worker's transaction does it, without positions."""
    facts_of = fold(records, {})
    with session.transaction():
        (apply_methods if facts_of.methods else apply_people)(session, facts_of)


def _tell_plans(session: Session, plans: list[str]) -> None:
    """Has the server say the plan of each statement of this session, with what it really did."""

    def take(notice: psycopg.errors.Diagnostic) -> None:
        _, _, plan = (notice.message_primary or "").partition("plan:\n")
        if plan:
            plans.append(_ARRAYS.sub(r"\1…", plan))

    session.add_notice_handler(take)
    session.execute("load 'auto_explain'")
    for name in ("analyze", "buffers", "wal", "nested_statements"):
        session.execute(f"set auto_explain.log_{name} = {'off' if name == 'nested_statements' else 'on'}".encode())
    session.execute("set auto_explain.log_timing = off")
    session.execute("set auto_explain.log_parameter_max_length = 0")
    session.execute("set auto_explain.log_min_duration = 0")
    session.execute("set client_min_messages = log")
