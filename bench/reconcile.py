"""`python -m bench.reconcile`: how long a reconcile of many rows takes, and what live traffic feels of it meanwhile.

One site, one steady stream of live events beside a dry run, then beside a repair of some damage. The command is frozen for a moment
every few seconds, so that what traffic feels with it and without it is measured side by side, whatever else the machine has to do.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import psycopg
from confluent_kafka import Producer
from rich.console import Console
from rich.table import Table

from bench.errors import WrongResult, expect
from bench.load import Load, as_published
from bench.results import RESULTS
from bench.site import BenchSite, ChangesReader, new_site, wait_for
from bench.traffic import paced
from devstack import Stack
from sync_worker.database.migrate import migrate
from sync_worker.operations.reconciling import PAUSE_PER_STEP

TEMPLATE: Final = "bench_template"
WARM_UP_S: Final = 5.0
# A frozen command may be in a transaction, which PostgreSQL ends after 2 s.
RUNS_S: Final = 6.0
FROZEN_S: Final = 1.0
# Left out: what was under way when it was frozen, and the rest that the command takes for the time in which it was.
SETTLES_S: Final = 0.2
REST_S: Final = FROZEN_S * PAUSE_PER_STEP + SETTLES_S
_MAX_S: Final = 2700
_FILL: Final = (
    """insert into method (method_id, version, course_id, segment_id, kind, name, active, visible, role, on_removal, deleted, event_id,
                           occurred_at)
    select gen_random_uuid(), 1, gen_random_uuid(), gen_random_uuid(), 'SEGMENT_SYNC', 'A method', true, true, 'student', 'UNENROLL', false,
           gen_random_uuid(), now() from generate_series(1, {methods})""",
    """insert into membership (segment_id, user_id, is_member, version, event_id, occurred_at)
    select segment_id, gen_random_uuid(), true, 1, gen_random_uuid(), now() from method, generate_series(1, {members})""",
    """insert into enrollment (course_id, user_id, version, sources, cause_type)
    select course_id, user_id, 1, active_delta, 'SegmentMemberAdded' from membership join method using (segment_id)""",
    "vacuum analyze membership, method",
    "vacuum analyze enrollment",
    "checkpoint",
)
_DAMAGE: Final = """update enrollment e set sources = jsonb_set(e.sources, array[m.method_id::text, 'role'], '"janitor"')
  from method m where m.course_id = e.course_id and m.name = 'A method' and e.user_id < %(below)s::uuid"""


Intervals = list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Span:
    """Latencies of the events sent within some intervals. Milliseconds; seconds: of the intervals together."""

    beside: str
    seconds: float
    events: int
    p50: float
    p99: float
    max: float
    load: float


class Traffic:
    """Memberships at a steady rate by a fixed timetable, and when the change of each came out."""

    def __init__(self, site: BenchSite, load: Load, rate: int) -> None:
        self._site = site
        self._records = as_published(load.memberships(is_member=True, version=1))
        self._rate = rate
        self._stop = threading.Event()
        self._reader: ChangesReader = site.changes_reader()
        self._failed: BaseException | None = None
        self.sent: dict[bytes, float] = {}
        self.received: dict[bytes, float] = {}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Until the end of the block. Raises WrongResult where a change is missing a minute later."""
        sender, receiver = (
            threading.Thread(target=self._guarded, args=(work,)) for work in (self._send, self._receive)
        )
        sender.start()
        receiver.start()
        try:
            yield
        finally:
            self._stop.set()
            sender.join()
            receiver.join()
            self._reader.close()
        if self._failed is not None:
            raise self._failed

    def during(self, beside: str, intervals: Intervals) -> Span:
        sent = [user for user, at in list(self.sent.items()) if any(began <= at < ended for began, ended in intervals)]
        if not sent:
            raise WrongResult(f"{beside}: no event was sent meanwhile; give it fewer rows or a higher rate")
        wait_for(lambda: all(user in self.received for user in sent) or self._failed, "the changes of a span", 60, 0.2)
        taken = sorted((self.received[user] - self.sent[user]) * 1e3 for user in sent)
        seconds = sum(ended - began for began, ended in intervals)
        p50, p99 = taken[len(taken) // 2], taken[int(len(taken) * 0.99)]
        return Span(beside, seconds, len(taken), p50, p99, taken[-1], os.getloadavg()[0])

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - raised again by whoever waits for the traffic
            self._failed = error
            self._stop.set()

    def _send(self) -> None:
        producer = Producer({"bootstrap.servers": self._site.stack.kafka.bootstrap_servers, "linger.ms": 0})
        topic = self._site.settings.membership_topic
        for record in paced(self._records, self._rate, producer):
            if self._stop.is_set():
                break
            self.sent[record.key] = time.perf_counter()
            producer.produce(topic, record.value, record.key)
        if producer.flush(30):
            raise WrongResult("Kafka did not take all records")

    def _receive(self) -> None:
        deadline = float("inf")
        while not (self._stop.is_set() and len(self.received) >= len(self.sent)):
            if self._stop.is_set():
                deadline = min(deadline, time.monotonic() + 60)
            if time.monotonic() > deadline:
                raise WrongResult(f"{len(self.sent) - len(self.received)} changes never came")
            for message in self._reader.some(0.2):
                user = bytes(message.key() or b"")[37:]
                if user in self.sent:  # else a repair's
                    self.received[user] = time.perf_counter()


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.reconcile", description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000, help="enrollment rows (default: %(default)s)")
    parser.add_argument("--methods", type=int, default=200, help="that give them (default: %(default)s)")
    parser.add_argument("--rate", type=int, default=200, help="live events/s (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="(default: %(default)s)")
    return parser.parse_args()


def main() -> int:
    chosen = options()
    say = Console(stderr=True)
    try:
        with Stack.start(kind="native", durable=True) as stack, tempfile.TemporaryDirectory() as folder:
            migrate(stack.postgres.create_database(TEMPLATE))
            with new_site(stack, TEMPLATE, Path(folder)) as site:
                spans, summaries = _measure(site, chosen, say)
    except WrongResult as wrong:
        say.print(f"[red]wrong result, no figures:[/red] {wrong}", highlight=False)
        return 1
    _report(chosen, spans, summaries)
    return 0


def _measure(site: BenchSite, chosen: argparse.Namespace, say: Console) -> tuple[list[Span], list[dict[str, Any]]]:
    say.print(f"filling {chosen.rows:,} rows", highlight=False)
    _run(site, *(part.format(methods=chosen.methods, members=chosen.rows // chosen.methods) for part in _FILL))
    load = Load(users=chosen.rate * _MAX_S, methods=1, segments=20)
    site.publish(site.settings.methods_topic, as_published(load.method_events))
    site.start_workers(chosen.workers)
    wait_for(lambda: site.applied() >= len(load.method_events), "the methods are applied")
    traffic = Traffic(site, load, chosen.rate)
    spans, summaries = [], []

    def beside(what: str, *arguments: str) -> None:
        say.print(what, highlight=False)
        with_it, without, summary = _reconcile(site, *arguments)
        summaries.append({"what": what, "running_s": sum(ended - began for began, ended in with_it), **summary})
        # A longer interval is one in which this process was held up itself.
        whole = [(began, ended) for began, ended in with_it if RUNS_S <= ended - began < RUNS_S + 0.5]
        settled = [(began + REST_S, ended) for began, ended in whole]
        spans.append(traffic.during(f"{what}, running", settled))
        spans.append(traffic.during(f"{what}, frozen", [(began + SETTLES_S, ended) for began, ended in without]))

    with traffic.running():
        time.sleep(WARM_UP_S)
        beside("a dry run", "--dry-run")
        # One row of 256 gets a wrong role.
        _run(site, _DAMAGE % {"below": "'01000000-0000-0000-0000-000000000000'"})
        damaged = int(site.one("select count(*) from enrollment where sources::text like '%janitor%'")[0])
        beside(f"a repair of {damaged:,}")
    expect("repaired", summaries[-1]["repaired"], {"different": damaged})
    expect("still damaged", site.one("select count(*) from enrollment where sources::text like '%janitor%'"), (0,))
    expect("found by the dry run", summaries[0]["found"], {})
    return spans, summaries


def _reconcile(site: BenchSite, *arguments: str) -> tuple[Intervals, Intervals, dict[str, Any]]:
    """When it ran, when it was frozen, and its summary."""
    with_it: Intervals = []
    without: Intervals = []
    with (
        tempfile.TemporaryFile("w+") as output,
        site.command("reconcile", "--json", *arguments, stdout=output) as process,
    ):
        while process.poll() is None:
            began = time.perf_counter()
            with suppress(subprocess.TimeoutExpired):
                process.wait(RUNS_S)
            with_it.append((began, time.perf_counter()))
            if process.returncode is None:
                process.send_signal(signal.SIGSTOP)
                frozen = time.perf_counter()
                time.sleep(FROZEN_S)
                without.append((frozen, time.perf_counter()))
                process.send_signal(signal.SIGCONT)
        if process.returncode:
            raise WrongResult(f"reconcile {' '.join(arguments)} ended with {process.returncode}")
        output.seek(0)
        *_, last = output
    summary: dict[str, Any] = json.loads(last)
    return with_it, without, summary


def _run(site: BenchSite, *statements: str) -> None:
    with psycopg.connect(site.database_url, autocommit=True, options="-c search_path=sync_worker") as session:
        for statement in statements:
            session.execute(statement.encode())


def _report(chosen: argparse.Namespace, spans: list[Span], summaries: list[dict[str, Any]]) -> None:
    table = Table(
        "beside", "seconds", "events", "p50 ms", "p99 ms", "max ms", "load", title=f"{chosen.rate} events/s live"
    )
    for span in spans:
        table.add_row(span.beside, *(f"{value:,.1f}" for value in list(asdict(span).values())[1:]))
    console = Console()
    console.print(table)
    for summary in summaries:
        looked_at, seconds = summary["looked_at"], summary["running_s"]
        console.print(
            f"{summary['what']}: {looked_at:,} keys in {seconds:,.0f} s ({looked_at / seconds:,.0f}/s)", highlight=False
        )
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"reconcile-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.json"
    document = {"options": vars(chosen), "spans": [asdict(span) for span in spans], "runs": summaries}
    path.write_text(json.dumps(document, indent=1), "utf-8")
    console.print(f"JSON: {path}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
