"""One round's own database, topics and workers on the shared services, and who reads what comes out.

Workers are processes as an operator starts them. They are frozen while records are published, so that a clock starts with
records waiting and workers warm; a frozen worker must be woken well within its session's length.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import psycopg
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from bench.errors import WrongResult
from bench.load import Published
from devstack import Stack
from sync_worker.operations.topics import create_topics
from sync_worker.settings import Settings

PARTITIONS = 6
TIMEOUT_S = 300.0
# What a fresh broker says of a group for a moment.
_NOT_YET = {
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.GROUP_ID_NOT_FOUND,
}
_TOPICS = ("membership", "methods", "sources", "changes", "dead_letters", "cursor")


def wait_for(condition: Callable[[], object], what: str, timeout_s: float = TIMEOUT_S, every_s: float = 0.01) -> None:
    """Until it is true; WrongResult after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise WrongResult(f"{what}: not within {timeout_s:g} s")
        time.sleep(every_s)


class BenchSite:
    """Made by `new_site`."""

    def __init__(
        self, stack: Stack, database_url: str, directory: Path, extra: dict[str, str], *, worker_url: str, doctored: str
    ) -> None:
        name = uuid4().hex[:8]
        self.name = name
        self.stack = stack
        self.database_url = database_url
        self._directory = directory
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SYNC_WORKER_")},
            "SYNC_WORKER_KAFKA_BOOTSTRAP_SERVERS": stack.kafka.bootstrap_servers,
            "SYNC_WORKER_DATABASE_URL": worker_url,
            "SYNC_WORKER_CONSUMER_GROUP": f"bench-{name}",
            "SYNC_WORKER_HTTP_PORT": "-1",
            "SYNC_WORKER_LOG_FORMAT": "json",
            # A bench empties segments; the breaker would rightly hold that.
            "SYNC_WORKER_REMOVAL_HOLD_MIN": "1000000000",
            **{f"SYNC_WORKER_{topic.upper()}_TOPIC": f"{name}.{topic}" for topic in _TOPICS},
            **extra,
        }
        own = {
            key.removeprefix("SYNC_WORKER_").lower(): value
            for key, value in self._environment.items()
            if key.startswith("SYNC_WORKER_")
        }
        self.settings = Settings(**own)  # type: ignore[arg-type]  # pydantic reads each from text
        self._program = ["-m", "tests.faults.mutants.run", doctored] if doctored else ["-m", "sync_worker"]
        self._workers: list[tuple[subprocess.Popen[bytes], Path]] = []
        self._session = psycopg.connect(database_url, autocommit=True, options="-c search_path=sync_worker")
        self._producer = Producer(
            {
                "bootstrap.servers": stack.kafka.bootstrap_servers,
                "log_level": 0,
                "linger.ms": 5,
                "queue.buffering.max.messages": 1_000_000,
            }
        )
        self._admin = AdminClient({"bootstrap.servers": stack.kafka.bootstrap_servers, "log_level": 0})
        create_topics(self.settings, PARTITIONS, 1)

    # workers

    @property
    def pids(self) -> list[int]:
        return [process.pid for process, _ in self._workers]

    def start_workers(self, number: int) -> None:
        """Until each of them has partitions whose positions it knows."""
        for _ in range(number):
            self.spawn_worker()
        wait_for(self._shared_out, "the workers share the partitions", 60, 0.1)

    def spawn_worker(self) -> subprocess.Popen[bytes]:
        """One more, not waited for."""
        log = self._directory / f"worker-{uuid4().hex[:6]}.log"
        with log.open("wb") as stream:
            command = [sys.executable, *self._program, "run"]
            process = subprocess.Popen(command, env=self._environment, stdout=stream, stderr=stream)
        self._workers.append((process, log))
        return process

    def stop_worker(self) -> None:
        """The last that was started leaves as an operator lets it: with SIGTERM."""
        process, log = self._workers.pop()
        process.terminate()
        if process.wait(60):
            raise WrongResult(f"a worker ended with {process.returncode}: {log.read_text('utf-8')[-2000:]}")

    def logged(self, event: str) -> list[dict[str, Any]]:
        """The lines of this event in the logs of the workers that run."""
        mark = f'"event": "{event}"'
        lines = (line for _, log in self._workers for line in log.read_text("utf-8").splitlines() if mark in line)
        return [json.loads(line) for line in lines]

    def _shared_out(self) -> bool:
        self.check_workers()
        group = self.settings.consumer_group
        try:
            members = self._admin.describe_consumer_groups([group])[group].result(10).members
        except KafkaException as error:
            if error.args[0].code() in _NOT_YET:
                return False
            raise
        except TimeoutError:  # the broker has too much to do
            return False
        sizes = [len(member.assignment.topic_partitions) for member in members]
        assigned = 3 * PARTITIONS
        started = sum(log.read_text("utf-8").count('"partition_started"') for _, log in self._workers)
        return len(sizes) == len(self._workers) and min(sizes) > 0 and sum(sizes) == assigned and started >= assigned

    def check_workers(self) -> None:
        for process, log in self._workers:
            if process.poll() is not None:
                raise WrongResult(f"a worker ended with {process.returncode}: {log.read_text('utf-8')[-2000:]}")

    def command(self, *arguments: str, stdout: IO[str]) -> subprocess.Popen[bytes]:
        """`sync-worker …` with this site's settings, started."""
        return subprocess.Popen([sys.executable, "-m", "sync_worker", *arguments], env=self._environment, stdout=stdout)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """No worker runs meanwhile."""
        for process, _ in self._workers:
            process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for process, _ in self._workers:
                process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        for process, log in self._workers:
            if process.poll() is None:
                process.terminate()
                process.wait(60)
            if process.returncode:
                raise WrongResult(f"a worker ended with {process.returncode}: {log.read_text('utf-8')[-2000:]}")

    def discard(self) -> None:
        """Whatever became of it."""
        self._session.close()
        for process, _ in self._workers:
            if process.poll() is None:
                process.kill()
                process.wait(10)
        for done in self._admin.delete_topics([getattr(self.settings, f"{topic}_topic") for topic in _TOPICS]).values():
            done.result(30)

    # in

    def publish(self, topic: str, records: Sequence[Published]) -> None:
        for record in records:
            while True:
                try:
                    self._producer.produce(topic, record.value, record.key)
                    break
                except BufferError:
                    self._producer.poll(0.1)
        if self._producer.flush(60):
            raise WrongResult("Kafka did not take all records within a minute")

    # out

    def one(self, statement: str) -> tuple[Any, ...]:
        """The one row of a query."""
        row = self._session.execute(statement.encode()).fetchone()
        assert row is not None
        return row

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        return self._session.execute(statement.encode()).fetchall()

    def execute(self, *statements: str) -> None:
        for statement in statements:
            self._session.execute(statement.encode())

    def applied(self) -> int:
        """How many records the positions have passed."""
        return int(self.one("select coalesce(sum(next_offset), 0) from position")[0])

    def published(self) -> bool:
        """Is nothing left that the relay has begun to publish?"""
        return bool(self.one("select count(*) = 0 from relay_window where not published")[0])

    def changes_reader(self) -> "ChangesReader":
        return ChangesReader(self.stack.kafka.bootstrap_servers, self.settings.changes_topic)


class ChangesReader:
    """A read_committed consumer of EnrollmentChanged, from the beginning."""

    def __init__(self, bootstrap_servers: str, topic: str) -> None:
        self.count = 0
        self._consumer = Consumer({
            "bootstrap.servers": bootstrap_servers, "group.id": f"bench-reader-{uuid4().hex[:8]}", "enable.auto.commit": False,
            "isolation.level": "read_committed", "queued.min.messages": 500_000, "log_level": 0,
        })  # fmt: skip
        self._consumer.assign([TopicPartition(topic, number, 0) for number in range(PARTITIONS)])

    def some(self, timeout_s: float = 0.05) -> list[Message]:
        """What there is; waits for the first for at most `timeout_s`."""
        first = self._consumer.poll(timeout_s)
        if first is None:
            return []
        messages = [first, *self._consumer.consume(50_000, 0)]
        for message in messages:
            error = message.error()
            if error is not None and error.code() != KafkaError._PARTITION_EOF:
                raise WrongResult(f"reading EnrollmentChanged: {error.str()}")
        self.count += len(messages)
        return messages

    def read_up_to(self, count: int, site: BenchSite) -> None:
        """Until `count` changes have come since the beginning."""
        deadline = time.monotonic() + TIMEOUT_S
        while self.count < count:
            if not self.some():
                site.check_workers()
            if time.monotonic() > deadline:
                raise WrongResult(f"{self.count} of {count} changes within {TIMEOUT_S:g} s")

    def close(self) -> None:
        self._consumer.close()


@contextmanager
def new_site(
    stack: Stack,
    template: str,
    directory: Path,
    settings: Mapping[str, str] = {},
    *,
    worker_url: Callable[[str], str] | None = None,
    doctored: str = "",
) -> Iterator[BenchSite]:
    """settings: by the names of contract §4, in lower case. worker_url: by which way workers reach the database, from its URL.

    doctored: one of tests/faults/mutants in the workers' place, which every case must refuse to give figures of.
    """
    name = f"bench_{uuid4().hex[:8]}"
    url = stack.postgres.create_database(name, template)
    try:
        with psycopg.connect(url, autocommit=True) as session:
            session.execute("checkpoint")
        site = BenchSite(
            stack,
            url,
            directory,
            {f"SYNC_WORKER_{key.upper()}": value for key, value in settings.items()},
            worker_url=worker_url(url) if worker_url else url,
            doctored=doctored,
        )
        try:
            yield site
            site.close()
        finally:
            site.discard()
    finally:
        stack.postgres.drop_database(name)
