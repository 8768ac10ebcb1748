"""`python -m bench.reconcile`: how long a reconcile of many rows takes, and what live traffic feels of it meanwhile.

One site, one steady stream of live events; its latencies are taken apart by what went on beside it: nothing, a dry run, a
repair of some damage, nothing again. Figures of one run are compared with one another only: the machine is shared.
"""

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from bench.report import RESULTS
from bench.site import BenchSite, ChangesReader, new_site, wait_for
from devstack import Stack
from sync_worker.database.migrate import migrate

TEMPLATE: Final = "bench_template"
WARM_UP_S: Final = 5.0
_MAX_S: Final = 1800
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


@dataclass(frozen=True, slots=True)
class Span:
    """Latencies of the events sent while something went on. Milliseconds."""

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

    def during(self, beside: str, began: float, ended: float) -> Span:
        sent = [user for user, at in list(self.sent.items()) if began <= at < ended]
        wait_for(lambda: all(user in self.received for user in sent) or self._failed, "the changes of a span", 60, 0.2)
        taken = sorted((self.received[user] - self.sent[user]) * 1e3 for user in sent)
        return Span(
            beside,
            ended - began,
            len(taken),
            taken[len(taken) // 2],
            taken[int(len(taken) * 0.99)],
            taken[-1],
            os.getloadavg()[0],
        )

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - raised again by whoever waits for the traffic
            self._failed = error
            self._stop.set()

    def _send(self) -> None:
        producer = Producer({"bootstrap.servers": self._site.stack.kafka.bootstrap_servers, "linger.ms": 0})
        topic = self._site.settings.membership_topic
        started = time.perf_counter()
        for n, record in enumerate(self._records):
            while (ahead := started + n / self._rate - time.perf_counter()) > 0:
                producer.poll(min(ahead, 0.001))
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
    parser.add_argument("--quiet", type=float, default=30, help="seconds before and after (default: %(default)s)")
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

    def beside(what: str, *command: str) -> None:
        say.print(what, highlight=False)
        began = time.perf_counter()
        if command:
            summaries.append({"what": what, **_reconcile(site, *command)})
        else:
            time.sleep(chosen.quiet)
        spans.append(traffic.during(what, began, time.perf_counter()))

    with traffic.running():
        time.sleep(WARM_UP_S)
        beside("nothing")
        beside("a dry run", "reconcile", "--dry-run", "--json")
        beside("nothing, again")
        # One row of 256 gets a wrong role.
        _run(site, _DAMAGE % {"below": "'01000000-0000-0000-0000-000000000000'"})
        damaged = int(site.one("select count(*) from enrollment where sources::text like '%janitor%'")[0])
        beside(f"a repair of {damaged:,}", "reconcile", "--json")
    expect("repaired", summaries[-1]["repaired"], {"different": damaged})
    expect("still damaged", site.one("select count(*) from enrollment where sources::text like '%janitor%'"), (0,))
    expect("found by the dry run", summaries[0]["found"], {})
    return spans, summaries


def _reconcile(site: BenchSite, *command: str) -> dict[str, Any]:
    done = site.command(*command)
    if done.returncode:
        raise WrongResult(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return summary


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
        rate = summary["looked_at"] / summary["seconds"]
        console.print(
            f"{summary['what']}: {summary['looked_at']:,} keys in {summary['seconds']:,.0f} s ({rate:,.0f}/s)",
            highlight=False,
        )
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"reconcile-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.json"
    document = {"options": vars(chosen), "spans": [asdict(span) for span in spans], "runs": summaries}
    path.write_text(json.dumps(document, indent=1), "utf-8")
    console.print(f"JSON: {path}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
