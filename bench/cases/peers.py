"""The worker beside what a team would otherwise use, on the same stack, the same records and the same machine.

The peers are in bench/peers/, each as its makers' documentation would have it. What a peer doesn't do stands beside its number.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from bench.cases.throughput import end_to_end, facts
from bench.errors import WrongResult, expect
from bench.frame import Case, Figure, Figures, Ground, Variant
from bench.load import Load
from bench.machine import cpu_seconds
from bench.peers.decoding import decode
from bench.site import BenchSite, wait_for

WORKER = "the worker, one process"
PYTHON = Path(sys.prefix) / "bench" / "bin" / "python"
_ROOT = Path(__file__).resolve().parents[2]
_WARM = 200
_KEPT = (
    "select count(*) from peer.outbox",
    "select course_id::text, user_id::text from peer.enrollment where status = 'ACTIVE'",
)


@dataclass(frozen=True, slots=True)
class Sizes:
    worker: int = field(default=60_000, metadata={"help": "additions, for the worker"})
    handwritten: int = field(default=4000, metadata={"help": "additions, for the hand-written consumer"})
    faststream: int = field(default=1500, metadata={"help": "additions, for FastStream with SQLAlchemy"})
    quix: int = field(default=40_000, metadata={"help": "additions, for Quix Streams' PostgreSQL sink"})
    debezium: int = field(default=40_000, metadata={"help": "additions, for Kafka Connect with Debezium's JDBC sink"})


@dataclass(frozen=True, slots=True)
class _Peer:
    """module: of bench/peers. done: how many events have had their effect. rows: what they must have made, as (course, user), user or the
    record's bytes. python: of the environment that it needs."""

    name: str
    module: str
    done: str
    rows: str
    lacks: str
    python: Path = PYTHON


_PEERS = (
    _Peer(
        "hand-written consumer", "handwritten", *_KEPT,
        "nobody publishes its outbox; the simplest rule only: no policies, groups, other sources, suspensions, changed methods",
    ),
    _Peer("FastStream with SQLAlchemy", "faststream_consumer", *_KEPT, "as the hand-written consumer"),
    _Peer(
        "Quix Streams, PostgreSQL sink", "quix_sink", "select peer.raw_rows()",
        "select user_id from peer.raw", "raw rows only: no rule, no enrollment, no version order, no event out; at least once",
    ),
    _Peer(
        "Kafka Connect, Debezium's JDBC sink", "debezium_sink", "select count(*) from peer.raw_bytes", "select value from peer.raw_bytes",
        "raw bytes only: not even decoded, no rule, no enrollment, no version order, no event out; at least once",
        # Nothing but Java, which the stack's Kafka runs on too.
        Path(sys.executable),
    ),
)  # fmt: skip


def variants(ground: Ground, sizes: Sizes) -> list[Variant]:
    numbers = (sizes.handwritten, sizes.faststream, sizes.quix, sizes.debezium)
    return [
        Variant(WORKER, lambda round_: {"adds": end_to_end(ground, Load(sizes.worker, 1, seed=round_), 1)["adds"]}),
        *(Variant(peer.name, _measured(ground, peer, events)) for peer, events in zip(_PEERS, numbers, strict=True)),
    ]


def _measured(ground: Ground, peer: _Peer, events: int) -> Callable[[int], dict[str, Figures]]:
    def measured(round_: int) -> dict[str, Figures]:
        if not peer.python.exists():
            raise WrongResult(f"{peer.python} is missing: `make bench CASE=peers` makes it from requirements/bench.txt")
        load, expected, records = facts(Load(events + _WARM, 1, seed=round_), ("adds",))
        with ground.site() as site:
            _make_tables(site, load)
            with _started(ground, site, peer) as process:
                topic = site.settings.membership_topic
                site.publish(topic, records["adds"][:_WARM])
                _wait(site, process, peer, _WARM)
                process.send_signal(signal.SIGSTOP)
                site.publish(topic, records["adds"][_WARM:])
                before = cpu_seconds(site.stack, [process.pid])
                started = time.perf_counter()
                process.send_signal(signal.SIGCONT)
                _wait(site, process, peer, events + _WARM)
                seconds = time.perf_counter() - started
                used = cpu_seconds(site.stack, [process.pid]).since(before)
            people = sorted(_person(row) for row in site.rows(peer.rows))
            pairs = sorted(expected["adds"].enrollments)
            expect(f"{peer.name}: rows", people == pairs or people == sorted(user for _, user in pairs), True)
        return {
            "adds": {"events_per_s": events / seconds, **{f"cpu_us_{k}": v for k, v in used.us_per(events).items()}}
        }

    return measured


def _person(row: Sequence[Any]) -> Any:
    """(course, user), or the user alone where a peer knows no courses."""
    if len(row) > 1:
        return tuple(row)
    return decode(row[0])["user_id"] if isinstance(row[0], bytes) else row[0]


def _make_tables(site: BenchSite, load: Load) -> None:
    site.execute((_ROOT / "bench" / "peers" / "tables.sql").read_text("utf-8"))
    for method in load.method_events:
        ids = ", ".join(f"'{UUID(bytes=each)}'" for each in (method.method_id, method.course_id, method.segment_id))
        site.execute(f"insert into peer.method values ({ids}, '{method.role}', true)")


@contextmanager
def _started(ground: Ground, site: BenchSite, peer: _Peer) -> "Iterator[subprocess.Popen[bytes]]":
    log = ground.folder / f"{peer.module}-{site.name}.log"
    arguments = (
        site.stack.kafka.bootstrap_servers,
        site.settings.membership_topic,
        f"peer-{site.name}",
        site.database_url,
    )
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [str(peer.python), "-m", f"bench.peers.{peer.module}", *arguments], cwd=ground.folder, stdout=stream, stderr=stream,
            env={**os.environ, "PYTHONPATH": str(_ROOT)},
        )  # fmt: skip
    try:
        yield process
    except WrongResult as wrong:
        raise WrongResult(f"{wrong}; its log ends with {log.read_text('utf-8', 'replace')[-2000:]}") from wrong
    finally:
        # As an unwelcome guest: one that was asked to end may wait for a broker that is gone.
        process.kill()
        process.wait(30)


def _wait(site: BenchSite, process: "subprocess.Popen[bytes]", peer: _Peer, number: int) -> None:
    """Until that many events had their effect."""

    def there() -> bool:
        if process.poll() is not None:
            raise WrongResult(f"{peer.name} ended with {process.returncode}")
        return int(site.one(peer.done)[0]) >= number

    wait_for(there, f"{peer.name} has had {number} events", every_s=0.05)


CASE = Case(
    name="peers",
    title="Beside what a team would otherwise use",
    about="Additions to segments of one method. Everybody gets the same records, waiting in Kafka, and a database on the same server. "
    "Moodle's own event path managed 110 members/s on a like machine, measured earlier.",
    sizes=Sizes,
    variants=variants,
    figures=(
        Figure("events_per_s", "events/s"), Figure("cpu_us_all", "CPU µs/event", 1), Figure("cpu_us_postgres", "PostgreSQL", 1),
        Figure("cpu_us_kafka", "Kafka", 1), Figure("cpu_us_workers", "itself", 1),
    ),
    reference=WORKER,
    plots=("events_per_s", "cpu_us_all"),
    notes={peer.name: peer.lacks for peer in _PEERS},
)  # fmt: skip
