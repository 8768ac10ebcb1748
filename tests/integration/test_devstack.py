"""The stack that every other test stands on: real services, tormented and taken down again.

No test here may end a process that it didn't start.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psycopg
import pytest
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from devstack import DevstackError, Kafka, Kind, Stack, fetch, native_postgres, reaper

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with Stack.start() as running:
        yield running


@pytest.fixture
def database(stack: Stack) -> Iterator[str]:
    yield stack.postgres.create_database("devstack_test")
    stack.postgres.drop_database("devstack_test")


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder, on every path to which the server's own user may pass (pytest's are for one user)."""
    with tempfile.TemporaryDirectory(prefix="devstack-test-", dir=native_postgres.default_parent()) as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A download cache of one's own, full, that shares no file with the real one."""
    full = fetch.kafka_directory()
    monkeypatch.setenv("DEVSTACK_CACHE", str(tmp_path / "cache"))
    shutil.copytree(full, tmp_path / "cache" / full.name)
    return tmp_path / "cache"


def until(condition: Callable[[], bool], timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.05)


def commands_running() -> str:
    """The command line of every process of the machine, one a line."""
    return subprocess.run(["ps", "-A", "-ww", "-o", "args="], check=True, capture_output=True, text=True).stdout


def execute(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement.encode())


def fetch_all(url: str, query: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(query.encode()).fetchall()


def make_topic(kafka: Kafka, name: str) -> None:
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    for created in admin.create_topics([NewTopic(name, num_partitions=1)]).values():
        created.result(60)


def produce(kafka: Kafka, topic: str, value: bytes, timeout_s: float = 90) -> KafkaError | None:
    """Deliver one record; returns why it was not."""
    answers: list[KafkaError | None] = []

    def answered(error: KafkaError | None, _message: Message) -> None:
        answers.append(error)

    producer = Producer(
        {
            "bootstrap.servers": kafka.bootstrap_servers,
            "acks": "all",
            "message.timeout.ms": int(timeout_s * 1000),
            "log_level": 0,
        }
    )
    producer.produce(topic, value, on_delivery=answered)
    producer.flush(timeout_s + 60)  # the client looks for what is too late every second, if it gets to
    return answers[0]


def consume(kafka: Kafka, topic: str, count: int) -> list[bytes | None]:
    consumer = Consumer({"bootstrap.servers": kafka.bootstrap_servers, "group.id": "test", "log_level": 0})
    consumer.assign([TopicPartition(topic, 0, 0)])
    try:
        messages: list[Message] = []
        deadline = time.monotonic() + 90
        while len(messages) < count and time.monotonic() < deadline:
            message = consumer.poll(0.5)
            if message is not None and message.error() is None:
                messages.append(message)
        return [message.value() for message in messages]
    finally:
        consumer.close()


def call_registry(url: str, body: dict[str, str] | None = None) -> object:
    with httpx.Client(timeout=60) as client:
        answer = client.get(url) if body is None else client.post(url, json=body)
    answer.raise_for_status()
    return answer.json()


def in_another_process(source: str) -> subprocess.Popen[str]:
    """A Python of its own that runs the source and can be killed."""
    return subprocess.Popen([sys.executable, "-c", source], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_postgres_is_18_durable_and_listens_on_the_loopback_address_only(stack: Stack) -> None:
    settings = {
        str(name): value for name, value in fetch_all(stack.postgres.url(), "SELECT name, setting FROM pg_settings")
    }
    assert str(settings["server_version_num"]).startswith("18")
    durable = ["fsync", "synchronous_commit", "full_page_writes"]
    assert [settings[name] for name in durable] == ["on", "on", "on"]
    assert settings["max_connections"] == "200"
    if stack.kind is Kind.NATIVE:
        assert settings["listen_addresses"] == "127.0.0.1"


def test_a_database_is_copied_from_a_template_and_dropped_under_an_open_session(stack: Stack, database: str) -> None:
    execute(database, "CREATE TABLE fact AS SELECT 7 AS id")
    copy = stack.postgres.create_database('copy of "it"', template="devstack_test")
    with contextlib.closing(psycopg.connect(copy)) as session:
        assert session.execute("SELECT id FROM fact").fetchall() == [(7,)]
        stack.postgres.drop_database('copy of "it"')
    stack.postgres.drop_database('copy of "it"')
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(copy)


def test_another_role_connects_by_its_own_url(stack: Stack) -> None:
    execute(stack.postgres.url(), "CREATE ROLE reader LOGIN")
    assert fetch_all(stack.postgres.url(user="reader"), "SELECT current_user") == [("reader",)]


def test_rows_survive_a_kill_of_postgres_on_the_same_port(stack: Stack, database: str) -> None:
    execute(database, "CREATE TABLE fact AS SELECT generate_series(1, 1000) AS id")
    with psycopg.connect(database) as session:
        session.execute("INSERT INTO fact VALUES (0)")
        before = stack.postgres.pid
        stack.postgres.kill()
        assert not stack.postgres.running
        with pytest.raises(psycopg.OperationalError):
            session.execute("SELECT 1")
    stack.postgres.start()
    assert stack.postgres.pid != before
    assert fetch_all(database, "SELECT count(*) FROM fact") == [(1000,)]


def test_a_kill_leaves_no_backend_of_postgres(stack: Stack, database: str) -> None:
    with psycopg.connect(database) as session:
        backend = session.info.backend_pid
        stack.postgres.kill()
        if stack.kind is Kind.NATIVE:
            assert backend not in reaper.process_table()
    stack.postgres.start()


def test_records_survive_a_kill_of_the_broker(stack: Stack) -> None:
    make_topic(stack.kafka, "killed")
    assert produce(stack.kafka, "killed", b"before") is None
    stack.kafka.kill()
    assert not stack.kafka.running
    stack.kafka.start()
    assert produce(stack.kafka, "killed", b"after") is None
    assert consume(stack.kafka, "killed", 2) == [b"before", b"after"]


def test_topics_are_not_made_by_writing_to_them(stack: Stack) -> None:
    error = produce(stack.kafka, "never-made", b"x", timeout_s=2)
    assert error is not None


def test_a_paused_postgres_is_silent_and_goes_on_with_the_same_session(stack: Stack, database: str) -> None:
    with psycopg.connect(database) as session, ThreadPoolExecutor(1) as pool:
        stack.postgres.pause()
        assert stack.postgres.running
        answer = pool.submit(session.execute, "SELECT 42")
        with pytest.raises(psycopg.OperationalError, match="timeout"):
            psycopg.connect(database, connect_timeout=2)
        assert not answer.done()
        stack.postgres.resume()
        assert answer.result(90).fetchone() == (42,)


def test_a_paused_broker_takes_nothing_and_goes_on_afterwards(stack: Stack) -> None:
    make_topic(stack.kafka, "paused")
    stack.kafka.pause()
    assert stack.kafka.running
    assert produce(stack.kafka, "paused", b"lost", timeout_s=1) is not None
    stack.kafka.resume()
    assert produce(stack.kafka, "paused", b"kept") is None


def test_a_paused_service_can_be_stopped_and_killed(stack: Stack) -> None:
    stack.postgres.pause()
    stack.postgres.stop()
    stack.postgres.start()
    stack.postgres.pause()
    stack.postgres.kill()
    stack.postgres.start()
    assert fetch_all(stack.postgres.url(), "SELECT 1") == [(1,)]


def test_a_smart_shutdown_waits_for_sessions_and_says_so(stack: Stack) -> None:
    def says_so() -> bool:
        with pytest.raises(DevstackError, match=r"still runs 0\.5 s after SIGTERM") as told:
            stack.postgres.stop(mode="smart", timeout_s=0.5)
        return "smart shutdown request" in str(told.value)

    with psycopg.connect(stack.postgres.url()):
        until(says_so)
        stack.postgres.stop(mode="immediate")
    stack.postgres.start()
    stack.postgres.restart()


def test_a_stopped_service_says_that_it_does_not_run(stack: Stack) -> None:
    stack.kafka.stop()
    stack.kafka.stop()
    with pytest.raises(DevstackError, match="kafka: "):
        _ = stack.kafka.pid
    with pytest.raises(DevstackError, match="kafka: ended"):
        stack.check()
    stack.kafka.start()
    stack.check()


def test_schemas_survive_a_kill_of_the_registry(stack: Stack) -> None:
    with pytest.raises(DevstackError, match="start_registry"):
        _ = stack.registry
    url = stack.start_registry().url
    call_registry(f"{url}/subjects/thing/versions", {"schema": '"string"'})
    stack.registry.kill()
    stack.registry.start()
    assert call_registry(f"{url}/subjects") == ["thing"]
    assert stack.environment()["SYNC_WORKER_SCHEMA_REGISTRY_URL"] == url


@pytest.mark.timeout(900)
def test_stacks_run_side_by_side() -> None:
    with (
        ThreadPoolExecutor(2) as pool,
        pool.submit(Stack.start, kind="native", registry=True).result() as one,
        pool.submit(Stack.start, kind="native", registry=True).result() as other,
    ):
        assert set(one.environment().values()).isdisjoint(other.environment().values())
        call_registry(f"{one.registry.url}/subjects/thing/versions", {"schema": '"string"'})
        assert call_registry(f"{other.registry.url}/subjects") == []


def test_a_server_that_cannot_start_is_told_with_its_log_and_leaves_nothing(folder: Path) -> None:
    with pytest.raises(DevstackError, match=r'postgres: ended(?s:.*)unrecognized configuration parameter "nonsense"'):
        Stack.start(kind="native", directory=folder, postgres_parameters={"nonsense": "1"})
    assert str(folder) not in commands_running()


def test_a_given_directory_stays_and_another_stack_goes_on_with_it(folder: Path) -> None:
    (folder / "postgres" / "data.draft").mkdir(parents=True)  # As of a start that was interrupted.
    with Stack.start(kind="native", directory=folder, durable=False, kafka_properties={"num.partitions": "3"}) as first:
        addresses = first.environment()
        execute(first.postgres.url(), "CREATE TABLE fact AS SELECT 7 AS id")
        make_topic(first.kafka, "stays")
        assert produce(first.kafka, "stays", b"here") is None
        assert fetch_all(first.postgres.url(), "SHOW fsync") == [("off",)]
    with Stack.start(kind="native", directory=folder) as second:
        assert second.environment() == addresses
        assert fetch_all(second.postgres.url(), "SELECT id FROM fact") == [(7,)]
        assert consume(second.kafka, "stays", 1) == [b"here"]
    assert "was not properly shut down" not in second.postgres.log_path.read_text()


def test_nothing_is_left_when_the_parent_is_killed() -> None:
    parent = in_another_process(
        "from devstack import Stack\n"
        "stack = Stack.start(kind='native')\n"
        "print(stack.directory, stack.kafka.pid, stack.postgres.pid, flush=True)\n"
        "input()\n"
    )
    assert parent.stdout is not None
    directory, *pids = parent.stdout.readline().split()
    everything = [pid for root in pids for pid in reaper.tree(int(root))]
    assert len(everything) > len(pids)
    with parent:
        parent.send_signal(signal.SIGKILL)
    until(lambda: reaper.process_table().keys().isdisjoint(everything))
    until(lambda: not Path(directory).exists())


@pytest.mark.parametrize("sign", ["pids", "pids/postgres", "pids/kafka", "kafka/data/meta.properties", "kafka.log"])
def test_nothing_is_left_when_the_parent_is_killed_while_it_starts(folder: Path, sign: str) -> None:
    """At several moments of the start: as soon as the file that is the sign of it exists."""
    source = f"import tempfile; tempfile.tempdir = {str(folder)!r}\n"
    parent = in_another_process(f"{source}from devstack import Stack; Stack.start(kind='native'); input()")
    until(lambda: any(folder.glob(f"devstack-*/{sign}")))
    with parent:
        parent.send_signal(signal.SIGKILL)
    until(lambda: not any(folder.iterdir()))
    until(lambda: str(folder) not in commands_running())  # the reaper itself ends after the folder it removed


def test_a_killed_postgres_leaves_no_shared_memory() -> None:
    listing = Path("/proc/sysvipc/shm")

    def segments() -> set[str]:
        return {line.split()[1] for line in listing.read_text().splitlines()[1:]}

    with Stack.start(kind="native") as running:
        identity = (running.directory / "postgres/data/postmaster.pid").read_text().splitlines()[6].split()[1]
        assert identity in segments()
        running.postgres.kill()
        assert identity in segments()
    assert identity not in segments()


def test_services_outlive_the_thread_that_started_them() -> None:
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(Stack.start, kind="native").result()
    with running:
        running.check()
        assert fetch_all(running.postgres.url(), "SELECT 1") == [(1,)]


def test_an_external_stack_is_used_and_not_touched(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEVSTACK", "external")
    with pytest.raises(DevstackError, match="needs DEVSTACK_KAFKA_BOOTSTRAP_SERVERS"):
        Stack.start()
    monkeypatch.setenv("DEVSTACK_KAFKA_BOOTSTRAP_SERVERS", stack.kafka.bootstrap_servers)
    monkeypatch.setenv("DEVSTACK_DATABASE_URL", stack.postgres.url() + "?application_name=external")
    with Stack.start() as external:
        assert external.kind is Kind.EXTERNAL
        url = external.postgres.create_database("made_externally")
        assert fetch_all(url, "SHOW application_name") == [("external",)]
        external.postgres.drop_database("made_externally")
        with pytest.raises(DevstackError, match="cannot kill kafka: the stack is `external`"):
            external.kafka.kill()
    stack.check()


def test_an_unknown_kind_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEVSTACK", "podman")
    with pytest.raises(DevstackError, match="'podman'; it may be native, docker, external"):
        Stack.start()


def test_a_damaged_download_is_found_and_fetched_again(private_cache: Path) -> None:
    (damaged,) = private_cache.rglob("slf4j-api-*.jar")
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-1])
    (private_cache / "fetching-left-over").mkdir()
    fetch.kafka_directory(verify=True)
    assert damaged.read_bytes() == content
    assert sorted(path.name for path in private_cache.iterdir()) == ["fetch.lock", damaged.parent.name]


def test_callers_side_by_side_fetch_once(private_cache: Path) -> None:
    (missing,) = private_cache.rglob("slf4j-api-*.jar")
    missing.unlink()
    command = [sys.executable, "-m", "devstack", "fetch", "--no-registry"]
    with (
        subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as first,
        subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as second,
    ):
        said = [process.communicate(timeout=240)[1] for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0]
    assert sum("fetching Apache Kafka: done" in text for text in said) == 1
    assert missing.exists()


def test_up_keep_leaves_a_stack_that_down_ends(private_cache: Path, tmp_path: Path) -> None:
    assert private_cache.exists()
    environment = {**os.environ, "DEVSTACK": "native"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "devstack", *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    up = run("up", "--keep", "--env-file", str(tmp_path / "env"))
    assert up.returncode == 0, up.stderr
    addresses = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines())
    assert up.stdout == "".join(f"export {name}={value}\n" for name, value in addresses.items())
    assert fetch_all(addresses["SYNC_WORKER_DATABASE_URL"], "SELECT 1") == [(1,)]
    again = run("up", "--keep")
    assert (again.returncode, "is kept already" in again.stderr) == (1, True)
    assert run("down").returncode == 0
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(addresses["SYNC_WORKER_DATABASE_URL"])
    assert "no stack is kept" in run("down").stderr
