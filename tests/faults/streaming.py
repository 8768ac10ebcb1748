"""Follows EnrollmentChanged for hours and checks each key's chain as it goes, in constant memory per key.

By fastavro, in parts: equal states are compared as bytes, which is quicker than reading them.
"""

from __future__ import annotations

import json
import threading
import time
from io import BytesIO
from typing import Any
from uuid import uuid4

import fastavro
from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from tests.faults.history import CONFLUENT_PREFIX_BYTES, plain
from tests.support.check import ABSENT
from tests.support.wire import SCHEMAS, prefix

_VIOLATIONS_MAX = 50


class ChainReader:
    """A read_committed consumer of all partitions of a topic, in a thread of its own, from `start` to `stop`."""

    def __init__(self, bootstrap_servers: str, topic: str, partitions: int, *, confluent: bool = False) -> None:
        self.versions: dict[bytes, int] = {}
        self.count = 0
        self.violations: list[str] = []
        self._after: dict[bytes, bytes] = {}
        self._homes: dict[bytes, int] = {}
        self._start = CONFLUENT_PREFIX_BYTES if confluent else len(prefix("EnrollmentChanged"))
        self._head, self._state, self._absent = _parts()
        self._topic, self._partitions = topic, partitions
        self._stop = threading.Event()
        self._failures: list[BaseException] = []
        self._config = {
            "bootstrap.servers": bootstrap_servers, "group.id": f"chains-{uuid4().hex}", "enable.auto.commit": False,
            "isolation.level": "read_committed", "auto.offset.reset": "error", "log_level": 0, "reconnect.backoff.max.ms": 500,
        }  # fmt: skip
        self._thread = threading.Thread(target=self._body, name="chains", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, count: int, timeout_s: float) -> None:
        """Once it has read so many events; a shortage is left for the check to find."""
        deadline = time.monotonic() + timeout_s
        while self.count < count and time.monotonic() < deadline and not self._failures:
            time.sleep(0.1)
        self._stop.set()
        self._thread.join(60)
        if self._failures:
            raise self._failures[0]

    def _body(self) -> None:
        try:
            consumer = Consumer(self._config)
            consumer.assign([TopicPartition(self._topic, partition, 0) for partition in range(self._partitions)])
            while not self._stop.is_set():
                for message in consumer.consume(5000, 0.2):
                    self._take_message(message)
            consumer.close()
        except BaseException as error:  # noqa: BLE001 - raised again by stop
            self._failures.append(error)

    def _take_message(self, message: Message) -> None:
        if (error := message.error()) is not None:
            lost = error.code() in {KafkaError.OFFSET_OUT_OF_RANGE, KafkaError._AUTO_OFFSET_RESET} or error.fatal()
            assert not lost, f"a follower of {self._topic}: {error.str()}"
            return  # the broker is away
        key, value, partition = message.key(), message.value(), message.partition()
        assert isinstance(key, bytes)
        assert isinstance(value, bytes)
        assert partition is not None
        self.take(key, value, partition)

    def take(self, key: bytes, value: bytes, partition: int) -> None:
        """The next event of a partition."""
        self.count += 1
        stream = BytesIO(value)
        stream.seek(self._start)
        head: Any = fastavro.schemaless_reader(stream, self._head, None)
        version = self.versions.get(key, 0)
        if head["version"] != version + 1:
            kind = "repeated" if head["version"] <= version else "lost"
            self._note(f"{kind}: {key!r} has version {head['version']} after version {version}")
        elif self._homes.setdefault(key, partition) != partition:
            self._note(f"reordered: {key!r} is in two partitions")
        before = self._after.get(key, self._absent)
        if not value.startswith(before, stream.tell()) and head["version"] == version + 1:
            self._note(f"wrong: {key!r} version {head['version']}: before is not the previous after")
        fastavro.schemaless_reader(stream, self._state, None)
        start = stream.tell()
        fastavro.schemaless_reader(stream, self._state, None)
        self._after[key] = value[start : stream.tell()]
        self.versions[key] = max(version, head["version"])

    def _note(self, violation: str) -> None:
        if len(self.violations) < _VIOLATIONS_MAX:
            self.violations.append(violation)


def _parts() -> tuple[Any, Any, bytes]:
    """The schema of the fields before `before`, that of a state, and how ABSENT is written."""
    schema = plain(json.loads((SCHEMAS / "EnrollmentChanged.avsc").read_text("utf-8")))
    names = [field["name"] for field in schema["fields"]]
    first = schema["fields"][: names.index("before")]
    head = fastavro.parse_schema({"type": "record", "name": "Head", "fields": first})
    state = fastavro.parse_schema(schema["fields"][names.index("before")]["type"])
    buffer = BytesIO()
    fastavro.schemaless_writer(buffer, state, ABSENT)
    return head, state, buffer.getvalue()
