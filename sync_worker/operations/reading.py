"""Reads one topic as it is, for the commands that show what is in it: committed records only, in no consumer group.

So it disturbs nobody and leaves nothing behind. Must never end silently before the end that it was given.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Final, Self

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from sync_worker.errors import FatalError, RetryableError
from sync_worker.kafka.errors import KafkaFaults
from sync_worker.service.logging import kafka_logger
from sync_worker.settings import Settings

_ANSWER_S: Final = 30.0
_NO_PROGRESS_S: Final = 60.0
_BATCH: Final = 500
_EOF: Final = KafkaError._PARTITION_EOF

_log = structlog.get_logger(__name__)


class TopicReader:
    """A consumer of one topic. Partitions that the topic gets later are not read."""

    def __init__(self, settings: Settings, topic: str) -> None:
        self._topic = topic
        self._faults = KafkaFaults(settings.kafka_bootstrap_servers)
        self._consumer = Consumer(
            {
                **settings.kafka_client_config(),
                **self._faults.config,
                "group.id": f"{settings.consumer_group}-tail",  # librdkafka wants one; nothing is joined or committed
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "earliest",
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
            },
            logger=kafka_logger(),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._consumer.close()

    def bounds(self) -> dict[int, tuple[int, int]]:
        """Of each partition the first offset and the last stable one, below which everything is decided.

        Raises FatalError where the topic doesn't exist.
        """
        topic, consumer = self._topic, self._consumer
        try:
            found = consumer.list_topics(topic, timeout=_ANSWER_S).topics[topic]
            if found.error is not None and found.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise FatalError(f"the topic {topic} does not exist; `sync-worker topics create` makes it")
            if found.error is not None:
                raise self._faults.error(f"asking for {topic}", found.error)
            bounds = {}
            for number in sorted(found.partitions):
                # A consumer that reads committed records gets the last stable offset here, not the high watermark.
                watermarks = consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=_ANSWER_S)
                if watermarks is None:
                    raise RetryableError(f"asking for the end of {topic}[{number}]: no answer in {_ANSWER_S:.0f} s")
                bounds[number] = watermarks
        except KafkaException as error:
            consumer.poll(0)  # brings the reason to the error callback
            raise self._faults.error(f"asking for {topic}", error) from error
        return bounds

    def at_time(self, partitions: Iterable[int], time_ms: int) -> dict[int, int | None]:
        """The first offset of each whose record isn't older than the time, in ms since 1970; None where there is none."""
        asked = [TopicPartition(self._topic, number, time_ms) for number in partitions]
        try:
            found = self._consumer.offsets_for_times(asked, timeout=_ANSWER_S)
        except KafkaException as error:
            raise self._faults.error(f"asking for a time in {self._topic}", error) from error
        for where in found:
            if where.error is not None:
                raise self._faults.error(f"asking for a time in {self._topic}", where.error)
        return {where.partition: where.offset if where.offset >= 0 else None for where in found}

    def read(self, starts: Mapping[int, int], ends: Mapping[int, int] | None = None) -> Iterator[Message]:
        """The records from the offsets in `starts` on, as they come; below those in `ends`, or for ever."""
        unfinished = set() if ends is None else {number for number in starts if starts[number] < ends[number]}
        if ends is not None and not unfinished:
            return
        self._consumer.assign([TopicPartition(self._topic, number, start) for number, start in starts.items()])
        progress = time.monotonic()
        while unfinished or ends is None:
            first = self._consumer.poll(0.5)
            if first is None:
                if ends is not None and time.monotonic() - progress > _NO_PROGRESS_S:
                    raise RetryableError(
                        f"{self._topic}: nothing came for {_NO_PROGRESS_S:.0f} s, though its end was not reached"
                    )
                continue
            progress = time.monotonic()
            for message in [first, *self._consumer.consume(_BATCH, timeout=0)]:
                error = message.error()
                if error is not None and error.code() != _EOF:
                    raise self._faults.error(f"reading {self._topic}", error)
                number, offset = place_of(message)
                if ends is not None and offset >= ends[number]:
                    # An end of partition is one too, and stands after the control records.
                    unfinished.discard(number)
                elif error is None:
                    yield message
                    if ends is not None and offset + 1 >= ends[number]:
                        unfinished.discard(number)


def place_of(message: Message) -> tuple[int, int]:
    """Partition and offset of a record that was read."""
    number, offset = message.partition(), message.offset()
    if number is None or offset is None:  # neither happens to a message of a consumer
        raise FatalError("Kafka delivered a record without its partition and offset")
    return number, offset
