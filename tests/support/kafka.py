"""Reading whole topics, as tests do. Never in a consumer group: what a test looks at must not depend on who looked before."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import NamedTuple
from uuid import uuid4

from confluent_kafka import Consumer, IsolationLevel, KafkaError, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions, OffsetSpec  # type: ignore[attr-defined]  # re-exported

# How long a transaction that is open is waited for: one that was committed just now ends within moments.
OPEN_S = 20.0


class KafkaRecord(NamedTuple):
    """A record as it was read."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]

    def header(self, name: str) -> bytes | None:
        """The last header of that name."""
        found = [value for header, value in self.headers if header == name]
        return found[-1] if found else None


def read_all(bootstrap_servers: str, topic: str, *, committed: bool = True) -> list[KafkaRecord]:
    """Every record of a topic up to its present end, in order of partition and offset."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": f"reader-{uuid4().hex}",
            "enable.auto.commit": False,
            "isolation.level": "read_committed" if committed else "read_uncommitted",
            "enable.partition.eof": True,
            "auto.offset.reset": "error",
        }
    )
    try:
        partitions = sorted(consumer.list_topics(topic, 60).topics[topic].partitions)
        starts = []
        for partition in partitions:
            low, _ = consumer.get_watermark_offsets(TopicPartition(topic, partition), 60)
            starts.append(TopicPartition(topic, partition, low))
        if committed:
            wait_until_ended(bootstrap_servers, topic, partitions)
        consumer.assign(starts)
        records: list[KafkaRecord] = []
        unfinished = set(partitions)
        while unfinished:
            messages = consumer.consume(10_000, 0.2)
            for message in messages:
                error = message.error()
                if error is not None:
                    assert error.code() == KafkaError._PARTITION_EOF, error
                    unfinished.discard(message.partition())
                    continue
                records.append(
                    KafkaRecord(
                        topic,
                        message.partition(),  # type: ignore[arg-type]  # a record has one
                        message.offset(),  # type: ignore[arg-type]  # as above
                        message.key(),
                        message.value(),
                        tuple(message.headers() or ()),  # type: ignore[arg-type]  # as Kafka gave them
                    )
                )
        return sorted(records, key=lambda record: (record.partition, record.offset))
    finally:
        consumer.close()


def add_partitions(bootstrap_servers: str, topic: str, number: int) -> None:
    """So many in all, and the broker tells clients of them: a record for one that it doesn't tell of yet would be lost."""
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    admin.create_partitions([NewPartitions(topic, number)])[topic].result(60)
    deadline = time.monotonic() + 180
    while len(admin.list_topics(topic, 60).topics[topic].partitions) != number:
        assert time.monotonic() < deadline, f"the broker did not tell of the {number} partitions of {topic}"
        time.sleep(0.05)


def wait_until_ended(bootstrap_servers: str, topic: str, partitions: Iterable[int]) -> None:
    """Until the transactions that the partitions hold by now have ended, or OPEN_S are over.

    Whoever commits is answered before the end of the transaction is in the topic, and until then readers see nothing of it.
    """
    asked = {TopicPartition(topic, partition): OffsetSpec.latest() for partition in partitions}  # type: ignore[no-untyped-call]
    admin = AdminClient({"bootstrap.servers": bootstrap_servers, "log_level": 0})

    def ends(isolation: IsolationLevel) -> dict[int, int]:
        answers = admin.list_offsets(asked, isolation_level=isolation, request_timeout=60)
        return {where.partition: answer.result().offset for where, answer in answers.items()}

    held = ends(IsolationLevel.READ_UNCOMMITTED)
    deadline = time.monotonic() + OPEN_S
    while any(end < held[partition] for partition, end in ends(IsolationLevel.READ_COMMITTED).items()):
        if time.monotonic() > deadline:
            return
        time.sleep(0.02)
