"""Workers under a steady load, for the tests that take long: one service away for minutes, or an hour of everything.

Like a run of a seed, but with a load that can be checked in constant memory, and with what the workers take measured.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import httpx
import psycopg

from tests.faults.arena import TEMPLATE, Arena
from tests.faults.load import Load, differences
from tests.faults.streaming import ChainReader
from tests.faults.workers import Fleet, Worker
from tests.support.site import Site, wait_for

PARTITIONS = 6
_START_TIMEOUT_S = 120.0
_SHORT_SESSION = {"session.timeout.ms": "3000", "heartbeat.interval.ms": "700"}
_DEFECTS = ("this is a bug", "Traceback (most recent call last)", "stopped_by_defect")


@dataclass(frozen=True, slots=True)
class Stage:
    """What is on it."""

    arena: Arena
    site: Site
    fleet: Fleet
    load: Load
    chains: ChainReader

    def applied(self) -> int:
        """How many records the positions have passed; psycopg.OperationalError while the database is away."""
        (row,) = self.site.query("select coalesce(sum(next_offset), 0)::bigint as n from position")
        return int(row["n"])

    def wait_applied(self, timeout_s: float) -> None:
        """Until all that was sent is applied."""
        wait_for(lambda: _or_none_yet(self.applied) >= self.load.sent, timeout_s, "all that was sent is applied")

    def measure_rate(self, events: int, timeout_s: float = 300.0) -> float:
        """Records applied per second where so many are waiting."""
        self.wait_applied(timeout_s)
        before, began = self.applied(), time.monotonic()
        self.load.burst(events)
        self.wait_applied(timeout_s)
        return (self.applied() - before) / (time.monotonic() - began)

    def probes(self) -> list[tuple[str, bool, bool]]:
        """(worker, is alive, is ready) of each that runs."""
        return [(worker.name, probe(worker, "/livez"), probe(worker, "/readyz")) for worker in self.fleet.running]

    def end(self, timeout_s: float) -> list[str]:
        """Stop load and workers; what is wrong in the end."""
        self.load.stop()
        self.wait_applied(timeout_s)
        self.site.wait_settled(timeout_s)
        (row,) = self.site.query("select coalesce(sum(version), 0)::bigint as n from enrollment")
        self.chains.stop(row["n"], timeout_s)
        self.fleet.terminate_all(60)
        wrong = list(differences(self.site, self.load.world, self.chains))
        for end in self.fleet.ends():
            if end.code != {"killed": -9, "terminated": 0}.get(end.told):
                wrong.append(f"worker: {end.worker} {end.told or 'by itself'} ended with {end.code}: {end.log[-500:]}")
            wrong += [f"worker: {end.worker}'s log has {defect!r}" for defect in _DEFECTS if defect in end.log]
        return wrong


def probe(worker: Worker, path: str) -> bool:
    """Whether it says yes. A worker that doesn't answer within ten seconds says no."""
    port = next((event["http_port"] for event in worker.events("worker_starts")), None)
    try:
        return port is not None and httpx.get(f"http://127.0.0.1:{port}{path}", timeout=10).status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def open_stage(
    arena: Arena, directory: Path, workers: int, *, registry: bool = False, seed: int = 1
) -> Iterator[Stage]:
    """Workers are at work and everybody has joined."""
    directory.mkdir(parents=True, exist_ok=True)
    name = f"stage_{uuid4().hex[:8]}"
    url = arena.stack.postgres.create_database(name, template=TEMPLATE)
    settings = {
        "SYNC_WORKER_KAFKA_BOOTSTRAP_SERVERS": arena.bootstrap_servers,
        "SYNC_WORKER_DATABASE_URL": arena.through_proxy(url),
        "SYNC_WORKER_KAFKA_PROPERTIES": json.dumps(_SHORT_SESSION),
        "SYNC_WORKER_REMOVAL_HOLD_MIN": "0",
        **({"SYNC_WORKER_SCHEMA_REGISTRY_URL": arena.registry_url or ""} if registry else {}),
    }
    site = Site(arena.stack, url, directory, settings)
    site.create_topics(PARTITIONS)
    fleet = Fleet(site.environment, directory)
    chains = ChainReader(arena.stack.kafka.bootstrap_servers, site.topic("changes"), PARTITIONS, confluent=registry)
    stage = Stage(arena, site, fleet, Load(site, seed), chains)
    try:
        for _ in range(workers):
            fleet.start()
        wait_for(
            lambda: all(worker.says("partition_started") for worker in fleet.workers),
            _START_TIMEOUT_S,
            "the workers' start",
        )
        chains.start()
        stage.load.publish_first()
        stage.wait_applied(_START_TIMEOUT_S)
        yield stage
    finally:
        fleet.close()
        site.close()


def _or_none_yet(ask: Callable[[], int]) -> int:
    try:
        return ask()
    except psycopg.OperationalError:
        return -1
