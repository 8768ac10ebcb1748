"""Records that are small on the wire and large when they are unpacked, and floods of headers: memory stays bounded, nothing is lost.

What the broker limits is the packed batch; a megabyte of it may unpack to a gigabyte in any consumer. The client's copy and
Python's can't be avoided, so memory is bounded by twice the largest record, whatever the number of them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from confluent_kafka import KafkaError, Producer
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # re-exported
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from tests.model.events import Event, to_record
from tests.model.model import Model
from tests.support.check import assert_site_equals_model
from tests.support.facts import member, method, new_id
from tests.support.kafka import KafkaRecord
from tests.support.site import Site, WorkerProcess, wait_for
from tests.support.wire import encode

MB = 1 << 20
CODECS = ("gzip", "snappy", "lz4", "zstd")
Headers = list[tuple[str, str | bytes | None]]


class Field:
    """A site with a worker and people who join; records are put between them, in the same partition."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.method = method(new_id(), new_id())
        self.events: list[Event] = []
        self.worker: WorkerProcess = site.start_worker()
        self.publish(self.method)
        self.joins()
        site.wait_settled()

    def publish(self, *events: Event) -> None:
        self.events += events
        self.site.produce(events)

    def joins(self) -> None:
        self.publish(member(self.method.segment_id, new_id(), 1))

    def throw(self, value: bytes, codec: str = "zstd", headers: Headers | None = None) -> KafkaError | None:
        """Publish packed; what the broker says."""
        said: list[KafkaError | None] = []
        producer = Producer({
            "bootstrap.servers": self.site.stack.kafka.bootstrap_servers,
            "compression.type": codec,
            "message.max.bytes": 1_000_000_000,
            "queue.buffering.max.kbytes": 2_000_000,
        })  # fmt: skip
        topic = self.site.topic("membership")
        producer.produce(
            topic, value, b"key", 0, headers=headers or [], on_delivery=lambda error, _: said.append(error)
        )
        assert producer.flush(120) == 0
        return said[0]

    def letters(self) -> list[KafkaRecord]:
        """All dead letters, with everything around them applied and published."""
        self.site.wait_settled(120)
        model = Model()
        model.apply_batch(self.events)
        assert_site_equals_model(self.site, model)
        assert self.worker.process.poll() is None
        return self.site.dead_letters()

    def forget_peak(self) -> int:
        """Begin anew with the worker's peak of resident memory; what it has now, bytes."""
        self._proc("clear_refs").write_text("5", "ascii")
        return self.peak()

    def peak(self) -> int:
        found = re.search(r"VmHWM:\s+(\d+) kB", self._proc("status").read_text("ascii"))
        assert found
        return int(found[1]) * 1024

    def _proc(self, name: str) -> Path:
        return Path("/proc", str(self.worker.process.pid), name)


@pytest.fixture
def field(make_site: Callable[..., Site]) -> Field:
    return Field(make_site(partitions=2))


@pytest.mark.parametrize("codec", CODECS)
def test_what_unpacks_to_more_than_is_kept_is_a_dead_letter_without_its_value(field: Field, codec: str) -> None:
    bomb = b"\x8f" + bytes(40 * MB)
    before = field.forget_peak()
    # Snappy packs a twentieth, which is more than the broker takes.
    said = field.throw(bomb, codec)
    if codec == "snappy":
        assert said is not None
        assert said.code() == KafkaError.MSG_SIZE_TOO_LARGE
        return
    assert said is None
    field.joins()
    (letter,) = field.letters()
    assert field.peak() - before < 2 * 40 * MB + 100 * MB
    assert (letter.key, letter.value, letter.header("dlq_truncated")) == (b"key", None, b"true")
    assert letter.header("dlq_reason") == b"undecodable"
    assert (letter.header("dlq_detail") or b"").endswith(b"; of its 41943044 bytes the value is not kept")
    assert field.site.query("select key, value from dead_letter") == [{"key": b"key", "value": None}]
    shown = field.site.command("dlq", "show", _address(letter))
    assert shown.returncode == 0, shown.stderr


def _address(letter: KafkaRecord) -> str:
    return f"{letter.partition}:{letter.offset}"


def test_many_that_unpack_to_much_are_held_one_after_the_other(field: Field) -> None:
    before = field.forget_peak()
    for _ in range(10):
        assert field.throw(b"\x8f" + bytes(20 * MB), "gzip") is None
        field.joins()
    letters = field.letters()
    assert len(letters) == 10
    assert field.peak() - before < 500 * MB
    kept = field.site.query("select octet_length(value) as n from dead_letter where truncated")
    assert kept == [{"n": 20 * MB + 1}] * 10


def test_a_batch_that_unpacks_to_more_than_the_client_takes_stops_its_partition_alone_and_can_be_passed(
    field: Field,
) -> None:
    before = field.forget_peak()
    first = field.site.query(
        "select next_offset from position where topic = %s and partition = 0", field.site.topic("membership")
    )
    assert field.throw(b"\x8f" + bytes(150 * MB), "zstd") is None
    line = field.worker.wait_for_event("partition_stopped", 120)
    where = f"{field.site.topic('membership')}[0]"
    assert f"what is at position {first[0]['next_offset']} of {where} can't be read" in line["reason"]
    ready = f"http://127.0.0.1:{field.worker.http_port}/readyz"
    wait_for(lambda: "can't be read" in httpx.get(ready, timeout=60).text, what="readiness")
    assert httpx.get(ready.replace("readyz", "livez"), timeout=60).status_code == 200
    # Other partitions go on.
    user, topic = new_id(), field.site.topic("methods")
    there = field.site.query("select sum(next_offset) as n from position where topic = %s", topic)
    renamed = method(field.method.segment_id, field.method.course_id)
    field.publish(renamed)
    wait_for(lambda: field.site.query("select sum(next_offset) as n from position where topic = %s", topic) != there)
    assert field.peak() - before < 300 * MB
    # Of this one alone, though it may be said again after a rebalance.
    assert {each["reason"] for each in field.worker.events("partition_stopped")} == {line["reason"]}
    assert field.worker.terminate() == 0
    behind = str(int(first[0]["next_offset"]) + 1)
    reset = field.site.command(
        "positions", "reset", "--topic", field.site.topic("membership"), "--partition", "0", "--to", behind, "--yes"
    )
    assert reset.returncode == 0, reset.stderr
    field.worker = field.site.start_worker()
    field.publish(member(field.method.segment_id, user, 1))
    assert field.letters() == []


def test_a_topic_that_the_broker_keeps_unpacked_takes_no_bomb(field: Field) -> None:
    resource = ConfigResource(
        ResourceType.TOPIC,
        field.site.topic("membership"),
        incremental_configs=[
            ConfigEntry("compression.type", "uncompressed", incremental_operation=AlterConfigOpType.SET)
        ],
    )
    admin = AdminClient({"bootstrap.servers": field.site.stack.kafka.bootstrap_servers})
    admin.incremental_alter_configs([resource])[resource].result(60)
    wait_for(
        lambda: admin.describe_configs([resource])[resource].result(60)["compression.type"].value == "uncompressed",
        what="the topic to be kept unpacked",
    )
    for codec in CODECS:
        said = field.throw(b"\x8f" + bytes(3 * MB), codec)
        assert said is not None
        assert said.code() == KafkaError.MSG_SIZE_TOO_LARGE
    field.joins()
    assert field.letters() == []


FLOODS: dict[str, Headers] = {
    "thousands of headers": [(f"x-{number}", os.urandom(50)) for number in range(5_000)],
    "one name thousands of times": [("x", b"1")] * 20_000,
    "a name of 100 KB": [("n" * 100_000, b"v")],
    "a value of 500 KB": [("x", os.urandom(500_000))],
    "names of many scripts": [("é𝄞\u202e\x1b", b"\xff\x00")] * 100,
    "thousands of traces": [("traceparent", b"00-" + b"1" * 32 + b"-" + b"2" * 16 + b"-01")] * 10_000,
    "thousands of schema ids": [("__other_schema_id", b"\x01" * 17)] * 10_000,
}


@pytest.mark.parametrize("what", FLOODS)
def test_a_flood_of_headers_harms_neither_an_event_nor_a_dead_letter(field: Field, what: str) -> None:
    flood = FLOODS[what]
    joined = member(field.method.segment_id, new_id(), 1)
    field.events.append(joined)
    assert field.throw(_wire(joined), headers=flood) is None
    assert field.throw(b"\x8fgarbage", headers=flood) is None
    field.joins()
    (letter,) = field.letters()
    assert letter.value == b"\x8fgarbage"
    assert list(letter.headers[: len(flood)]) == flood


def test_headers_that_unpack_to_much_are_bounded_as_values_are(field: Field) -> None:
    before = field.forget_peak()
    flood: Headers = [(f"x-{number}", bytes(MB)) for number in range(40)]
    joined = member(field.method.segment_id, new_id(), 1)
    field.events.append(joined)
    assert field.throw(_wire(joined), headers=flood) is None
    assert field.throw(b"\x8fgarbage", headers=flood) is None
    field.joins()
    (letter,) = field.letters()
    assert field.peak() - before < 400 * MB
    assert letter.header("dlq_truncated") == b"true"
    assert (letter.header("dlq_detail") or b"").endswith(b"the value is not kept, nor key and headers")


def _wire(event: Event) -> bytes:
    return encode(*to_record(event))
