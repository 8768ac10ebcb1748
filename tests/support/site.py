"""A site for one test: a database cloned from the migrated template, topics of its own, and worker processes.

Everything is real and seen from outside: records in Kafka, rows in the public views, EnrollmentChanged in Kafka. It must
never look into the worker's process.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import psycopg
from confluent_kafka import Producer
from psycopg.rows import dict_row

from devstack import Stack
from sync_worker.events import RecordName
from sync_worker.settings import Settings
from tests.model.events import Event, key_of, to_record, topic_of
from tests.support.kafka import KafkaRecord, read_all
from tests.support.wire import decode_change, encode

SETTLE_TIMEOUT_S = 180.0
PROGRAM = (sys.executable, "-m", "sync_worker")
# By setting, as contract §1 has them.
_DEFAULT_TOPICS = {
    "membership": "segments.membership",
    "methods": "enrollment.methods",
    "sources": "enrollment.sources",
    "changes": "enrollment.changes",
    "dead_letters": "sync-worker.dead-letters",
    "cursor": "sync-worker.cursor",
}
_SETTING_OF = {topic: setting for setting, topic in _DEFAULT_TOPICS.items()}
DEFAULT_NAMES = {
    **{f"SYNC_WORKER_{setting.upper()}_TOPIC": topic for setting, topic in _DEFAULT_TOPICS.items()},
    "SYNC_WORKER_CONSUMER_GROUP": "sync-worker",
}
"""Settings of a site that has the names which documents use."""


def wait_for(condition: Callable[[], Any], timeout_s: float = SETTLE_TIMEOUT_S, what: str = "the condition") -> Any:
    """The first true value of a condition; AssertionError after the deadline."""
    deadline = time.monotonic() + timeout_s
    while True:
        # Before the question: whoever stood still for long is to ask once more.
        late = time.monotonic() > deadline
        if value := condition():
            return value
        assert not late, f"{what} did not come true within {timeout_s:g} s"
        time.sleep(0.05)


class Change(NamedTuple):
    """An EnrollmentChanged as a read_committed consumer got it."""

    record: KafkaRecord
    event: dict[str, Any]


class WorkerProcess:
    """`python -m sync_worker run` as an operator starts it."""

    def __init__(
        self, environment: Mapping[str, str], log: Path, *options: str, program: Sequence[str] = PROGRAM
    ) -> None:
        self.log_path = log
        with log.open("ab") as stream:
            self.process = subprocess.Popen(
                [*program, "run", *options],
                # Before it dies of SIGABRT it says where each thread is.
                env={**environment, "PYTHONFAULTHANDLER": "1"},
                stdout=stream,
                stderr=stream,
            )

    def log(self) -> str:
        return self.log_path.read_text("utf-8", "replace")

    def events(self, name: str) -> list[dict[str, Any]]:
        """Log lines of one event so far; the last one may still be being written."""
        whole, _, _ = self.log().rpartition("\n")
        lines = [json.loads(line) for line in whole.splitlines() if line.startswith("{")]
        return [line for line in lines if line.get("event") == name]

    def wait_for_event(self, name: str, timeout_s: float = 90.0) -> dict[str, Any]:
        found: list[dict[str, Any]] = wait_for(lambda: self.events(name), timeout_s, f"the log event {name}")
        return found[-1]

    @property
    def http_port(self) -> int:
        return int(self.wait_for_event("worker_starts")["http_port"])

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, timeout_s: float = 90.0) -> int:
        """The exit code. Of a worker that doesn't end in time: where each of its threads stands."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGABRT)
            self.process.wait(60)
            raise AssertionError(f"the worker did not end within {timeout_s:g} s:\n{self.log()[-20_000:]}") from None

    def terminate(self, timeout_s: float = 90.0) -> int:
        """SIGTERM; the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def kill(self) -> None:
        """SIGKILL, and reaped."""
        self.process.kill()
        self.process.wait(60)


class Site:
    """One database, one set of topics, one consumer group."""

    def __init__(self, stack: Stack, database_url: str, directory: Path, settings: Mapping[str, str]) -> None:
        name = uuid4().hex[:8]
        self.stack = stack
        self.database_url = database_url
        self.directory = directory
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("SYNC_WORKER_")},
            "SYNC_WORKER_KAFKA_BOOTSTRAP_SERVERS": stack.kafka.bootstrap_servers,
            "SYNC_WORKER_DATABASE_URL": database_url,
            "SYNC_WORKER_CONSUMER_GROUP": f"group-{name}",
            "SYNC_WORKER_HTTP_PORT": "0",
            "SYNC_WORKER_HTTP_HOST": "127.0.0.1",
            "SYNC_WORKER_LOG_FORMAT": "json",
            **{f"SYNC_WORKER_{topic.upper()}_TOPIC": f"{name}.{topic}" for topic in _DEFAULT_TOPICS},
            **settings,
        }
        own = {
            name.removeprefix("SYNC_WORKER_").lower(): value
            for name, value in self.environment.items()
            if name.startswith("SYNC_WORKER_")
        }
        self.settings = Settings.model_validate(own)
        self.workers: list[WorkerProcess] = []
        self.program: Sequence[str] = PROGRAM  # another installation's, to test that one
        self._producer: Producer | None = None

    # services

    def create_topics(self, partitions: int = 3) -> None:
        from sync_worker.errors import RetryableError  # noqa: PLC0415 - not for tests without Kafka
        from sync_worker.operations.topics import create_topics  # noqa: PLC0415 - as above

        def made() -> bool:
            try:
                create_topics(self.settings, partitions, 1)
            except RetryableError:  # the broker didn't get to it in time
                return False
            return True

        wait_for(made, what="the topics")

    def start_worker(self, *options: str, failpoints: str = "", **settings: str) -> WorkerProcess:
        """A worker; `options` of `run`, `settings` by the names of contract §4, in lower case.

        `failpoints`: see sync_worker/failpoints.py.
        """
        environment = self.environment | {f"SYNC_WORKER_{name.upper()}": value for name, value in settings.items()}
        if failpoints:
            environment["SYNC_WORKER_TEST_FAILPOINTS"] = failpoints
        worker = WorkerProcess(
            environment, self.directory / f"worker-{len(self.workers)}.log", *options, program=self.program
        )
        self.workers.append(worker)
        return worker

    def close(self) -> None:
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.kill()

    def command(
        self, *arguments: str, stdin: str | None = None, timeout_s: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """`sync-worker …` with this site's settings."""
        return subprocess.run(
            [*self.program, *arguments],
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    # input

    def topic(self, name: str) -> str:
        """The site's topic: membership, methods, sources, changes, dead_letters or cursor."""
        return self.environment[f"SYNC_WORKER_{name.upper()}_TOPIC"]

    @property
    def producer(self) -> Producer:
        if self._producer is None:
            self._producer = Producer(
                {
                    "bootstrap.servers": self.stack.kafka.bootstrap_servers,
                    "partitioner": "murmur2_random",
                    "linger.ms": 5,
                    "message.max.bytes": 20_000_000,
                    "log_level": 0,  # the stack ends before the last of its clients, which is no news
                }
            )
        return self._producer

    def produce(self, events: Iterable[Event]) -> None:
        """Publish events of the model, keyed as contract §1 advises."""
        for event in events:
            name, fields = to_record(event)
            self.produce_raw(
                _SETTING_OF[topic_of(event)],
                encode(RecordName(name), fields),
                key=key_of(event).encode(),
                flush=False,
            )
        self.flush()

    def produce_raw(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: Sequence[tuple[str, bytes | None]] = (),
        partition: int = -1,
        flush: bool = True,
    ) -> None:
        """Publish bytes to the site's topic of that name."""
        while True:
            try:
                self.producer.produce(self.topic(topic), value, key, partition, headers=list(headers))
            except BufferError:
                self.producer.poll(0.1)
                continue
            break
        if flush:
            self.flush()

    def flush(self) -> None:
        assert self.producer.flush(SETTLE_TIMEOUT_S) == 0

    # what came of it

    def status(self) -> dict[str, Any]:
        for _ in range(3):  # it gives a service that stands still ten seconds
            done = self.command("status", "--json")
            if done.returncode == 0:
                break
        assert done.returncode == 0, done.stderr
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def wait_settled(self, timeout_s: float = SETTLE_TIMEOUT_S) -> dict[str, Any]:
        """Until everything published so far is applied and published; the status document."""
        from sync_worker.errors import RetryableError  # noqa: PLC0415 - as above
        from sync_worker.kafka.broker import Broker  # noqa: PLC0415 - as above
        from sync_worker.operations.status import read_status  # noqa: PLC0415 - as above

        broker = Broker(self.settings, logger=logging.getLogger("librdkafka"))
        document: dict[str, Any] = {}

        def settled() -> bool:
            nonlocal document
            try:
                document = read_status(self.settings, broker)
            except RetryableError:
                return False
            return bool(document["settled"])

        try:
            wait_for(settled, timeout_s, "settled")
        except AssertionError as error:
            logs = "\n".join(f"{worker.log_path.name}:\n{worker.log()[-3000:]}" for worker in self.workers)
            raise AssertionError(f"{error}\n{json.dumps(document, indent=1)}\n{logs}") from error
        return document

    def records(self, topic: str, *, committed: bool = True) -> list[KafkaRecord]:
        """All records of the site's topic up to its present end, by partition and offset."""
        return read_all(self.stack.kafka.bootstrap_servers, self.topic(topic), committed=committed)

    def changes(self) -> list[Change]:
        """Every EnrollmentChanged that a read_committed consumer sees."""
        return [
            Change(record, decode_change(record.value))
            for record in self.records("changes")
            if record.value is not None
        ]

    def tombstones(self) -> list[KafkaRecord]:
        """The null values among them: keys that were erased."""
        return [record for record in self.records("changes") if record.value is None]

    def dead_letters(self) -> list[KafkaRecord]:
        return self.records("dead_letters")

    @contextmanager
    def connect(self, **options: Any) -> Iterator[psycopg.Connection[dict[str, Any]]]:
        """A session in autocommit mode, rows as dicts, search_path on the schema."""
        with psycopg.connect(
            self.database_url, autocommit=True, row_factory=dict_row, options="-c search_path=sync_worker", **options
        ) as connection:
            yield connection

    def query(self, statement: str, *parameters: Any) -> list[dict[str, Any]]:
        with self.connect() as connection:
            return connection.execute(statement, parameters).fetchall()

    def enrollments(self) -> dict[tuple[str, str], dict[str, Any]]:
        """The public view course_enrollment by (course, user); ids as text."""
        rows = self.query(
            "select course_id::text, user_id::text, status, roles, groups::text[], suspended_in_course, sources, version "
            "from course_enrollment"
        )
        return {(row.pop("course_id"), row.pop("user_id")): row for row in rows}

    def in_course(self, course: str) -> dict[str, dict[str, Any]]:
        """Its rows of course_enrollment by user."""
        return {user: row for (where, user), row in self.enrollments().items() if where == course}

    def group_members(self) -> set[tuple[str, str, str, bool, tuple[str, ...]]]:
        """The public view course_group_member."""
        rows = self.query(
            "select course_id::text, group_id::text, user_id::text, managed, methods::text[] from course_group_member"
        )
        return {
            (row["course_id"], row["group_id"], row["user_id"], row["managed"], tuple(sorted(row["methods"])))
            for row in rows
        }
