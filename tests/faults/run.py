"""One run of one seed: its own database, topics and workers; traffic, users and faults; then peace, and the judgement.

Whatever happens, nothing of a run is left on the stack but its logs.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from confluent_kafka.admin import AdminClient

from devstack.errors import DevstackError
from sync_worker.errors import SyncWorkerError
from sync_worker.kafka.broker import Broker
from sync_worker.operations.status import read_status
from tests.faults.arena import TEMPLATE, Arena
from tests.faults.checkers import Violation, judge
from tests.faults.collecting import read_inputs, read_leftovers, read_tables
from tests.faults.editing import Editing
from tests.faults.following import Follower
from tests.faults.framing import Framer
from tests.faults.history import Change, History, Leftovers, changes_of
from tests.faults.liveness import Liveness
from tests.faults.nemesis import Director, Entry, Scene
from tests.faults.plan import Plan
from tests.faults.publishing import Publishing
from tests.faults.traffic import make_traffic
from tests.faults.watching import Watcher
from tests.faults.workers import Fleet
from tests.support.kafka import KafkaRecord, read_all
from tests.support.site import Site, wait_for

# A worker that hangs is replaced after two minutes of silence.
SETTLE_TIMEOUT_S = 240.0
PUBLISHING_TIMEOUT_S = 180.0
START_TIMEOUT_S = 120.0
# Much shorter, and a busy machine throws out members that are alive; longer than a session a worker is frozen by most of those faults.
_SHORT_SESSION = {"session.timeout.ms": "3000", "heartbeat.interval.ms": "500"}
_LEFTOVERS_TIMEOUT_S = 60.0
_TERMINATION_S = 90.0


@dataclass(slots=True)
class Result:
    """What became of a run."""

    plan: Plan
    violations: list[Violation]
    faults: list[Entry]
    history: History
    events: int = 0
    seconds: float = 0.0
    settle_s: float = 0.0
    """From the end of the last fault until everything was applied and published."""
    replaced: list[str] = field(default_factory=list)
    """Workers that said of themselves that they hang."""
    directory: Path = field(default_factory=Path)

    @property
    def taken(self) -> Counter[str]:
        """Faults that took effect, by kind."""
        return Counter(entry.kind for entry in self.faults if entry.detail is not None)

    def discard_logs(self) -> None:
        """Nobody will read them."""
        shutil.rmtree(self.directory)


def run(arena: Arena, plan: Plan, directory: Path) -> Result:
    """Raises what went wrong with the harness itself; what went wrong with the workers is in the result."""
    began = time.monotonic()
    if directory.exists():
        shutil.rmtree(directory)  # of an earlier run of this seed
    directory.mkdir(parents=True)
    (directory / "plan.json").write_text(json.dumps(plan.to_json(), indent=1), "utf-8")
    with _site(arena, plan, directory) as site:
        fleet = Fleet(site.environment, directory, clocks=plan.clocks)
        try:
            result = _Run(arena, plan, site, fleet).go()
        finally:
            fleet.close()
    result.directory = directory
    result.seconds = time.monotonic() - began
    return result


class _Run:
    """The parts of a run, from the first worker to the judgement."""

    def __init__(self, arena: Arena, plan: Plan, site: Site, fleet: Fleet) -> None:
        self.arena, self.plan, self.site, self.fleet = arena, plan, site, fleet
        self.topics = {
            name: site.topic(name) for name in ("membership", "methods", "sources", "changes", "dead_letters")
        }
        self.direct = arena.stack.kafka.bootstrap_servers
        duration_s = plan.options.duration_s
        self.traffic = make_traffic(plan.seed, duration_s, plan.partitions, registry=plan.registry)
        url = arena.stack.registry.url if plan.registry else None
        self.framer = Framer(url, uuid4().hex[:8], duration_s)
        for _ in range(plan.workers):
            fleet.start()
        # On a busy machine a worker's start takes long; a run's seconds are for what comes after it.
        wait_for(
            lambda: any(worker.says("partition_started") for worker in fleet.workers),
            START_TIMEOUT_S,
            "a worker's start",
        )
        self.began = time.monotonic()
        self.publishing = Publishing(self.traffic, self.direct, self.topics, self.framer, self.began, uuid4().hex[:8])
        self.editing = Editing(self.traffic.by_hand, site.database_url, self.began)
        self.watcher = Watcher(site.database_url, fleet, self.began)
        self.followers = [
            Follower(self.direct, self.topics["changes"], plan.partitions, committed=committed)
            for committed in (True, False)
        ]
        self.scene = Scene(arena, fleet, site.database_url, self.topics, self.publishing.forget_partitions)
        self.director = Director(self.scene, plan.faults, self.began)
        self.liveness = Liveness(fleet)

    def go(self) -> Result:
        for start in (
            self.watcher.start,
            *(each.start for each in self.followers),
            self.publishing.start,
            self.editing.start,
        ):
            start()
        self.director.start()
        time.sleep(max(0.0, self.began + self.plan.options.duration_s - time.monotonic()))
        self.director.heal()
        healed = time.monotonic()
        while len(self.fleet.running) < self.plan.workers:
            self.fleet.start()
        deadline = healed + PUBLISHING_TIMEOUT_S
        self.publishing.join(deadline)
        self.editing.join(deadline)
        unsettled = self._settle()
        if self.plan.holds and not unsettled:
            unsettled = self._release_holds()
        settle_s = time.monotonic() - healed
        history = self._collect(unsettled)
        violations = judge(history)
        events = self.traffic.records
        return Result(
            self.plan,
            violations,
            self.director.log,
            history,
            events,
            settle_s=round(settle_s, 2),
            replaced=self.liveness.replaced,
        )

    def _settle(self) -> str:
        """Until everything is applied and published; else why not."""
        broker = Broker(self.site.settings, logger=logging.getLogger("librdkafka"))
        deadline = time.monotonic() + SETTLE_TIMEOUT_S
        status: object = None
        while time.monotonic() < deadline:
            try:
                document = read_status(self.site.settings, broker)
                if document["settled"]:
                    return ""
                status = {name: value for name, value in document.items() if name != "lag"}
                lagging = [entry for entry in document["lag"] if entry["lag"]]
                status = {**status, "lag": lagging}
            except SyncWorkerError as error:
                status = str(error)
            self.liveness.look()
            time.sleep(0.3)
        return f"not settled {SETTLE_TIMEOUT_S:g} s after the last fault: {json.dumps(status, default=str)}"

    def _release_holds(self) -> str:
        """What the breaker held is applied in the end, so that the model needn't know when it was held."""
        while held := [row["segment_id"] for row in self.site.query("select segment_id::text from removal_hold")]:
            for segment in held:
                done = self.site.command("holds", "release", segment, "--yes")
                if done.returncode != 0:
                    return f"holds release {segment} ended with {done.returncode}: {done.stderr}"
            if unsettled := self._settle():
                return unsettled
        return ""

    def _collect(self, unsettled: str) -> History:
        changes = read_all(self.direct, self.topics["changes"])
        raw = read_all(self.direct, self.topics["changes"], committed=False)
        ends = {record.partition: record.offset + 1 for record in changes}
        raw_ends = {record.partition: record.offset + 1 for record in raw}
        followed, followed_raw = (
            self._read(follower.stop(end)) for follower, end in zip(self.followers, (ends, raw_ends), strict=True)
        )
        self.fleet.terminate_all(_TERMINATION_S)
        seen = self.watcher.stop()
        return History(
            inputs=read_inputs(self.direct, self.topics, self.publishing.book),
            acknowledged=dict(self.publishing.book.acknowledged),
            aborted=self.publishing.book.aborted,
            changes=self._read(read_all(self.direct, self.topics["changes"])),
            followed=followed,
            followed_uncommitted=followed_raw,
            dead_letters=read_all(self.direct, self.topics["dead_letters"]),
            tables=read_tables(self.site.database_url),
            edits=self.editing.done,
            seen=seen,
            ends=self.fleet.ends(),
            leftovers=self._leftovers(),
            topics=self.topics,
            unsettled=unsettled,
        )

    def _read(self, records: list[KafkaRecord]) -> list[Change]:
        return changes_of(records, confluent=self.plan.registry)

    def _leftovers(self) -> Leftovers:
        """A server notices that a client is gone a moment later: what is left then is left."""
        deadline = time.monotonic() + _LEFTOVERS_TIMEOUT_S
        while (left := read_leftovers(self.site.database_url)) != Leftovers([]) and time.monotonic() < deadline:
            time.sleep(0.2)
        return left


@contextmanager
def _site(arena: Arena, plan: Plan, directory: Path) -> Iterator[Site]:
    """A database and topics of this run's own; workers get the proxies' addresses."""
    name = f"faults_{plan.seed}_{uuid4().hex[:6]}"
    url = arena.stack.postgres.create_database(name, template=TEMPLATE)
    settings = {
        "SYNC_WORKER_KAFKA_BOOTSTRAP_SERVERS": arena.bootstrap_servers,
        "SYNC_WORKER_DATABASE_URL": arena.through_proxy(url),
        **plan.settings(),
    }
    if plan.protocol == "classic":
        settings["SYNC_WORKER_KAFKA_PROPERTIES"] = json.dumps(_SHORT_SESSION)
    if plan.registry and arena.registry_url is not None:
        settings["SYNC_WORKER_SCHEMA_REGISTRY_URL"] = arena.registry_url
    site = Site(arena.stack, url, directory, settings)
    site.create_topics(plan.partitions)
    try:
        yield site
    finally:
        site.close()
        # The services may be the reason why we are here.
        with contextlib.suppress(DevstackError):
            arena.stack.postgres.start()
            arena.stack.postgres.drop_database(name)
        _delete_topics(site)


def _delete_topics(site: Site) -> None:
    admin = AdminClient({"bootstrap.servers": site.stack.kafka.bootstrap_servers, "log_level": 0})
    topics = [site.topic(name) for name in ("membership", "methods", "sources", "changes", "dead_letters", "cursor")]
    for done in admin.delete_topics(topics, request_timeout=20).values():
        done.exception()
