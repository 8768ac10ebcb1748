"""Reading whole topics, as tests do. Never in a consumer group: what a test looks at must not depend on who looked before."""

from __future__ import annotations

from typing import NamedTuple
from uuid import uuid4

from confluent_kafka import Consumer, KafkaError, TopicPartition


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
        partitions = sorted(consumer.list_topics(topic, 10).topics[topic].partitions)
        starts = []
        for partition in partitions:
            low, _ = consumer.get_watermark_offsets(TopicPartition(topic, partition), 10)
            starts.append(TopicPartition(topic, partition, low))
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
