"""Consumers of EnrollmentChanged that read during the whole run, through every fault: one read_committed, one that isn't.

What they saw is compared with what the topic holds in the end, so that a reader who was there learns nothing else than
one who comes later.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from tests.support.kafka import KafkaRecord


class Follower:
    """One consumer in a thread of its own, from `start` to `stop`. Not in a group."""

    def __init__(self, bootstrap_servers: str, topic: str, partitions: int, *, committed: bool) -> None:
        self.records: list[KafkaRecord] = []
        self._topic = topic
        self._reached: dict[int, int] = dict.fromkeys(range(partitions), 0)
        self._stop = threading.Event()
        self._failures: list[BaseException] = []
        self._config = {
            "bootstrap.servers": bootstrap_servers,
            "group.id": f"follower-{uuid4().hex}",
            "enable.auto.commit": False,
            "isolation.level": "read_committed" if committed else "read_uncommitted",
            "auto.offset.reset": "earliest",
            "reconnect.backoff.max.ms": 500,
            "log_level": 0,
        }
        self._thread = threading.Thread(target=self._body, name="follower", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, ends: Mapping[int, int], timeout_s: float = 120.0) -> list[KafkaRecord]:
        """All it read, once it has passed the offset of each partition's last record; what it lacks is not waited for for ever."""
        deadline = time.monotonic() + timeout_s
        while any(self._reached[partition] < end for partition, end in ends.items()) and time.monotonic() < deadline:
            time.sleep(0.05)
        self._stop.set()
        self._thread.join(60)
        if self._failures:
            raise self._failures[0]
        return self.records

    def _body(self) -> None:
        try:
            consumer = Consumer(self._config)
            consumer.assign([TopicPartition(self._topic, partition, 0) for partition in self._reached])
            while not self._stop.is_set():
                for message in consumer.consume(5000, 0.2):
                    self._take(message)
            consumer.close()
        except BaseException as error:  # noqa: BLE001 - raised again by stop
            self._failures.append(error)

    def _take(self, message: Message) -> None:
        if (error := message.error()) is not None:
            lost = error.code() in {KafkaError.OFFSET_OUT_OF_RANGE, KafkaError._AUTO_OFFSET_RESET} or error.fatal()
            assert not lost, f"a follower of {self._topic}: {error.str()}"
            return  # the broker is away
        partition, offset = message.partition(), message.offset()
        assert partition is not None
        assert offset is not None
        headers: Any = tuple(message.headers() or ())
        self.records.append(KafkaRecord(self._topic, partition, offset, message.key(), message.value(), headers))
        self._reached[partition] = offset + 1
