"""`publish` and `tail` as commands on a real broker: bad lines named, good ones sent, only what is committed shown."""

import base64
import json
import os
import pty
import signal
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from fastavro import schemaless_writer

from devstack import Stack
from sync_worker.events import RecordName
from sync_worker.operations.topics import create_topics
from sync_worker.schema.store import load_schemas
from sync_worker.settings import Settings
from tests.support.kafka import read_all, wait_until_ended
from tests.support.site import wait_for

ROOT = Path(__file__).parents[2]
SEGMENT, USER, COURSE = (str(uuid4()) for _ in range(3))
ADDED = {"type": "SegmentMemberAdded", "segment_id": SEGMENT, "user_id": USER}
SCHEMAS = load_schemas()
NOTHING: dict[str, Any] = {
    "status": "ABSENT", "roles": [], "groups": [], "suspended_in_course": False, "sources": [],
}  # fmt: skip


@pytest.fixture(scope="module")
def bootstrap_servers(stack: Stack) -> str:
    return stack.kafka.bootstrap_servers


class Commands:
    """The real commands, on topics of their own."""

    def __init__(self, bootstrap_servers: str) -> None:
        prefix = uuid4().hex[:8]
        self.settings = Settings(
            kafka_bootstrap_servers=bootstrap_servers,
            membership_topic=f"{prefix}.membership",
            methods_topic=f"{prefix}.methods",
            sources_topic=f"{prefix}.sources",
            changes_topic=f"{prefix}.changes",
            dead_letters_topic=f"{prefix}.dead-letters",
            cursor_topic=f"{prefix}.cursor",
        )
        create_topics(self.settings, partitions=2)
        names = (
            "membership_topic",
            "methods_topic",
            "sources_topic",
            "changes_topic",
            "dead_letters_topic",
            "cursor_topic",
        )
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "SYNC_WORKER_KAFKA_BOOTSTRAP_SERVERS": bootstrap_servers,
            **{f"SYNC_WORKER_{name.upper()}": getattr(self.settings, name) for name in names},
        }

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "sync_worker", *arguments],
            env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            # Tests may run in the background, where a shell has its children ignore Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - sets one signal, nothing else
        )  # fmt: skip

    def run(self, *arguments: str, lines: str = "") -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        try:
            out, err = process.communicate(lines, timeout=120)
        finally:
            process.kill()
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def tail(self, *arguments: str) -> list[dict[str, Any]]:
        done = self.run("tail", "--from-beginning", "--until-end", *arguments)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def producer(self, transactional_id: str = "") -> Producer:
        config: dict[str, Any] = {"bootstrap.servers": self.settings.kafka_bootstrap_servers}
        if not transactional_id:
            return Producer(config)
        # The broker ends no transaction that a test has open.
        config |= {"transactional.id": transactional_id + uuid4().hex, "transaction.timeout.ms": 600_000}
        producer = Producer(config)
        producer.init_transactions(60)
        producer.begin_transaction()
        return producer


@pytest.fixture
def commands(bootstrap_servers: str) -> Commands:
    return Commands(bootstrap_servers)


def changed(version: int, change: str = "UPDATED", course: str = COURSE) -> dict[str, Any]:
    return {
        "event_id": str(uuid4()), "occurred_at": 1_700_000_000_000_001, "course_id": course, "user_id": USER,
        "version": version, "change": change, "before": NOTHING, "after": NOTHING,
        "cause": {"type": "SQL", "event_id": None, "method_id": None},
    }  # fmt: skip


def encoded(datum: dict[str, Any], name: RecordName = RecordName.ENROLLMENT_CHANGED) -> bytes:
    schema = SCHEMAS.current[name]
    value = BytesIO()
    schemaless_writer(value, schema.parsed, datum)
    return schema.single_object_prefix + value.getvalue()


def records_of(settings: Settings, topic: str) -> list[tuple[bytes | None, bytes | None]]:
    consumer = Consumer(
        {"bootstrap.servers": settings.kafka_bootstrap_servers, "group.id": "test", "enable.partition.eof": True}
    )
    consumer.assign([TopicPartition(topic, number, 0) for number in range(2)])
    found, ends = [], 0
    while ends < 2:
        message = consumer.poll(60)
        assert message is not None
        if message.error():
            ends += 1
        else:
            found.append((message.key(), message.value()))
    consumer.close()
    return found


def test_lines_are_published_with_what_they_leave_out(commands: Commands) -> None:
    done = commands.run("publish", lines=json.dumps(ADDED) + "\n\n" + json.dumps({**ADDED, "version": 7}))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "2 published\n")
    records = records_of(commands.settings, commands.settings.membership_topic)
    assert [key for key, _ in records] == [USER.encode()] * 2


def test_a_bad_line_is_named_and_nothing_after_it_is_lost(commands: Commands, tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    good = json.dumps(ADDED)
    file.write_text(f'{good}\n{{"type"\n{good}\n{{"type": "SegmentMemberAdded", "segment_id": "x\x7f"}}\n{good}')
    done = commands.run("publish", str(file))
    assert done.returncode == 1
    first, second, last = done.stderr.splitlines()
    assert first.startswith(f"{file}:2: not a JSON object")
    assert second.startswith(f"{file}:4: user_id: is missing")
    assert last == "3 published, 2 invalid"
    assert "Traceback" not in done.stderr
    assert len(records_of(commands.settings, commands.settings.membership_topic)) == 3


def test_an_interrupt_ends_publishing_with_a_true_count(commands: Commands) -> None:
    """Ctrl-C comes while records are on their way, where librdkafka would lose it."""
    process = commands.start("publish")
    assert process.stdin is not None
    line = json.dumps(ADDED | {"version": 1}) + "\n"
    try:
        deadline = time.monotonic() + 60
        while (
            time.monotonic() < deadline and len(records_of(commands.settings, commands.settings.membership_topic)) < 500
        ):
            process.stdin.write(line * 500)
            process.stdin.flush()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 1
    assert "interrupted" in err
    assert "defect" not in err
    published = int(err.split(" published")[0].split()[-1])
    assert published == len(records_of(commands.settings, commands.settings.membership_topic)) >= 500


def test_progress_is_shown_on_a_terminal(commands: Commands, tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    file.write_text((json.dumps(ADDED) + "\n") * 20)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "sync_worker", "publish", str(file)],
        env={**commands.environment, "TERM": "xterm"}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
    except OSError:  # how a terminal ends when its last writer is gone
        pass
    os.close(ours)
    assert process.wait(120) == 0
    assert b"publishing" in shown
    assert b"20 published" in shown


def test_a_killed_run_goes_on_where_it_was_and_sends_the_same_again(commands: Commands, tmp_path: Path) -> None:
    file, progress, hold = tmp_path / "events.jsonl", tmp_path / "progress", tmp_path / "hold"
    file.write_text("".join(json.dumps({**ADDED, "user_id": str(uuid4())}) + "\n" for _ in range(12_000)))
    hold.touch()
    commands.environment["SYNC_WORKER_TEST_FAILPOINTS"] = f"bookmark_moved=hold:{hold}"
    process = commands.start("publish", str(file), "--progress", str(progress))
    try:
        wait_for(Path(f"{hold}.reached").exists, what="the first mark")
    finally:
        process.kill()
        process.communicate()
    del commands.environment["SYNC_WORKER_TEST_FAILPOINTS"]
    done = json.loads(progress.read_text())["lines"]
    assert 0 < done < 12_000
    assert commands.run("publish", str(file), "--progress", str(progress)).stderr == f"{12_000 - done} published\n"
    assert not progress.exists()
    by_key: dict[bytes | None, set[bytes | None]] = {}
    for record in read_all(commands.settings.kafka_bootstrap_servers, commands.settings.membership_topic):
        by_key.setdefault(record.key, set()).add(record.value)
    assert len(by_key) == 12_000
    assert all(len(values) == 1 for values in by_key.values())


def test_a_line_without_a_topic_to_go_to_makes_none(commands: Commands) -> None:
    commands.environment["SYNC_WORKER_MEMBERSHIP_TOPIC"] = missing = f"missing-{uuid4().hex}"
    done = commands.run("publish", lines=json.dumps(ADDED))
    assert done.returncode == 1
    assert done.stderr.startswith(f"stdin:1: its topic {missing} does not exist; `sync-worker topics create` makes it")
    assert missing not in commands.producer().list_topics(timeout=60).topics


def test_a_record_that_the_broker_refuses_is_named(commands: Commands) -> None:
    commands.environment["SYNC_WORKER_KAFKA_PROPERTIES"] = '{"message.max.bytes": 1000}'
    method = {
        "type": "EnrollmentMethodChanged", "method_id": str(uuid4()), "course_id": COURSE, "segment_id": SEGMENT,
        "kind": "SEGMENT_SYNC", "name": "n" * 255, "active": True, "visible": True, "role": "r" * 255,
        "segment_name": "s" * 255, "group_id": None,
    }  # fmt: skip
    done = commands.run("publish", lines=json.dumps(method) + "\n" + json.dumps(ADDED))
    assert done.returncode == 1
    assert done.stderr.startswith("stdin:1: not delivered: ")
    assert done.stderr.endswith("1 published, 1 not delivered\n")


def test_tail_shows_events_by_their_avro_names_and_the_time_as_text(commands: Commands) -> None:
    event = changed(1, "ENROLLED")
    producer = commands.producer()
    producer.produce(commands.settings.changes_topic, encoded(event), f"{COURSE}:{USER}")
    producer.produce(commands.settings.changes_topic, None, f"{COURSE}:{USER}")
    producer.flush(60)
    shown, erased = commands.tail()
    assert shown == {"type": "EnrollmentChanged", **event, "occurred_at": "2023-11-14T22:13:20.000001Z"}
    assert erased == {"type": "Tombstone", "course_id": COURSE, "user_id": USER}


def test_tail_shows_committed_records_only_and_ends_behind_control_records(commands: Commands) -> None:
    topic = commands.settings.changes_topic
    committed, aborted = commands.producer("a"), commands.producer("b")
    committed.produce(topic, encoded(changed(1)), b"k", partition=0)
    committed.commit_transaction(60)
    aborted.produce(topic, encoded(changed(2)), b"k", partition=0)
    aborted.flush(60)
    aborted.abort_transaction(60)
    wait_until_ended(commands.settings.kafka_bootstrap_servers, topic, [0])
    assert [event["version"] for event in commands.tail()] == [1]


def test_tail_ends_before_a_transaction_that_is_still_open(commands: Commands) -> None:
    topic = commands.settings.changes_topic
    opened, committed = commands.producer("a"), commands.producer("b")
    committed.produce(topic, encoded(changed(1)), b"k", partition=0)
    committed.commit_transaction(60)
    opened.produce(topic, encoded(changed(2)), b"k", partition=0)
    opened.flush(60)
    committed.begin_transaction()
    committed.produce(topic, encoded(changed(3)), b"k", partition=0)
    committed.commit_transaction(60)
    assert [event["version"] for event in commands.tail()] == [1]
    opened.commit_transaction(60)
    wait_until_ended(commands.settings.kafka_bootstrap_servers, topic, [0])
    assert [event["version"] for event in commands.tail()] == [1, 2, 3]


def test_tail_names_what_it_cannot_read_and_goes_on(commands: Commands) -> None:
    topic, producer = commands.settings.changes_topic, commands.producer()
    member = {"event_id": "e", "occurred_at": 1, "segment_id": SEGMENT, "user_id": USER, "version": 1}
    values = [b"", b"\xc3\x01unknown!", b"\x00\x00\x00\x00\x01x", encoded(changed(1))[:-1], encoded(changed(2))]
    for value in [*values, encoded(member, RecordName.MEMBER_ADDED)]:
        producer.produce(topic, value, b"k", partition=1)
    producer.flush(60)
    done = commands.run("tail", "--from-beginning", "--until-end")
    assert done.returncode == 1
    assert [json.loads(line)["version"] for line in done.stdout.splitlines()] == [2]
    for offset in (0, 1, 2, 3, 5):
        assert f"\n{topic}[1] offset {offset}: " in f"\n{done.stderr}"
    assert "Traceback" not in done.stderr


def test_tail_starts_at_the_end_and_follows_until_interrupted(commands: Commands) -> None:
    producer = commands.producer()
    producer.produce(commands.settings.changes_topic, encoded(changed(1)), b"k")
    producer.flush(60)
    process = commands.start("tail")
    try:
        assert process.stderr is not None
        assert process.stdout is not None
        assert any('"event": "tail_started"' in line for line in process.stderr), "it ended"
        producer.produce(commands.settings.changes_topic, encoded(changed(2)), b"k")
        producer.flush(60)
        assert json.loads(process.stdout.readline())["version"] == 2
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0
    finally:
        process.kill()
        process.communicate()


def test_tail_until_end_of_nothing_ends_at_once(commands: Commands) -> None:
    started = time.monotonic()
    assert commands.tail() == []
    assert time.monotonic() - started < 60


def test_tail_ends_quietly_when_nobody_reads_it_any_more(commands: Commands) -> None:
    producer = commands.producer()
    for version in range(1, 3001):
        producer.produce(commands.settings.changes_topic, encoded(changed(version)), b"k")
    producer.flush(60)
    process = commands.start("tail", "--from-beginning")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(120) == 0
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()
    assert process.stdin is not None
    process.stdin.close()


def test_tail_shows_dead_letters_with_their_reason_and_bytes(commands: Commands) -> None:
    producer = commands.producer()
    headers: list[tuple[str, str | bytes | None]] = [
        ("ce_id", b"one"), ("odd", b"\xff"), ("none", None), ("dlq_reason", b"undecodable"), ("dlq_detail", b"it is \xe2\x80\xa6"),
        ("dlq_topic", b"segments.membership"), ("dlq_partition", b"3"), ("dlq_offset", b"12"),
    ]  # fmt: skip
    producer.produce(commands.settings.dead_letters_topic, b"\x00\xff", b"key", headers=headers, partition=1)
    producer.flush(60)
    (shown,) = commands.tail("--dead-letters")
    assert shown == {
        "partition": 1, "offset": 0,
        "dlq_reason": "undecodable", "dlq_detail": "it is …", "dlq_topic": "segments.membership",
        "dlq_partition": 3, "dlq_offset": 12,
        "headers": [["ce_id", "one"], ["odd", "\\xff"], ["none", None]],
        "key": base64.b64encode(b"key").decode(), "value": base64.b64encode(b"\x00\xff").decode(),
    }  # fmt: skip


def test_a_topic_that_does_not_exist_is_an_error_that_says_what_to_do(commands: Commands) -> None:
    commands.environment["SYNC_WORKER_CHANGES_TOPIC"] = missing = f"missing-{uuid4().hex}"
    done = commands.run("tail", "--until-end")
    assert done.returncode == 1
    assert done.stderr == f"error: the topic {missing} does not exist; `sync-worker topics create` makes it\n"


def test_topics_create_prints_what_it_did_and_warns_of_differences(commands: Commands) -> None:
    done = commands.run("topics", "create", "--partitions", "4")
    assert done.returncode == 0
    assert f"{commands.settings.cursor_topic}\tSYNC_WORKER_CURSOR_TOPIC\texists\t1\t1" in done.stdout
    assert f"{commands.settings.changes_topic}: partitions is 2, should be 4; left as it is" in done.stderr
