"""Reads what the worker published, as plain documents: EnrollmentChanged, or dead letters (contract §2, `tail`).

Reads committed records only and belongs to no consumer group, so it disturbs nobody. Must never stop at a record
that it can't read: that one is named, and the next is read.
"""

import base64
import time
from collections.abc import Generator, Iterator, Mapping
from typing import Any, Final, NamedTuple

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from sync_worker.errors import FatalError, InvalidRecord, RetryableError
from sync_worker.events import RecordName
from sync_worker.kafka.errors import KafkaFaults
from sync_worker.operations.changes import ChangeDecoder, headers_of
from sync_worker.schema.registry import registry_of
from sync_worker.schema.store import load_schemas
from sync_worker.schema.wire import rfc3339
from sync_worker.service.logging import kafka_logger
from sync_worker.settings import Settings

_ANSWER_S: Final = 30.0
_NO_PROGRESS_S: Final = 60.0
_BATCH: Final = 500
_EOF: Final = KafkaError._PARTITION_EOF
_NUMBERS: Final = frozenset({"dlq_partition", "dlq_offset"})
_log = structlog.get_logger(__name__)


class Fault(NamedTuple):
    """A record that could not be read, where it is, and why."""

    where: str
    why: str


Tailed = dict[str, Any] | Fault


def tail(
    settings: Settings,
    *,
    dead_letters: bool = False,
    from_beginning: bool = False,
    until_end: bool = False,
    last: int = 0,
    decoder: ChangeDecoder | None = None,
) -> Generator[Tailed, None, None]:
    """Each record as it comes: a document, or the fault that kept it from being one.

    Starts at the end unless `from_beginning`, or so many offsets before it in each partition as `last` says; `until_end` stops
    at the end as it was at the start. `decoder`: one that is kept by somebody who reads again and again.

    Partitions that the topic gets later are not read. Raises FatalError where the topic doesn't exist.
    """
    topic = settings.dead_letters_topic if dead_letters else settings.changes_topic
    documents = (
        _DeadLetters()
        if dead_letters
        else _Changes(decoder or ChangeDecoder(load_schemas(settings.schema_dir), registry_of(settings)))
    )
    faults = KafkaFaults(settings.kafka_bootstrap_servers)
    consumer = Consumer(
        {
            **settings.kafka_client_config(),
            **faults.config,
            "group.id": f"{settings.consumer_group}-tail",  # librdkafka wants one; nothing is joined or committed
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
        },
        logger=kafka_logger(),
    )
    try:
        bounds = _bounds(consumer, faults, topic)
        starts = {number: low if from_beginning else max(low, high - last) for number, (low, high) in bounds.items()}
        for message in _messages(consumer, faults, topic, bounds, starts, until_end=until_end):
            yield documents.of(message)
    finally:
        consumer.close()


def _messages(
    consumer: Consumer,
    faults: KafkaFaults,
    topic: str,
    bounds: Mapping[int, tuple[int, int]],
    starts: Mapping[int, int],
    *,
    until_end: bool,
) -> Iterator[Message]:
    consumer.assign([TopicPartition(topic, number, start) for number, start in starts.items()])
    if not until_end:
        # Whoever waits for what comes wants to know from when on nothing is missed.
        _log.info("tail_started", topic=topic, partitions=len(bounds))
    unfinished = {number for number, (_, high) in bounds.items() if starts[number] < high}
    progress = time.monotonic()
    while unfinished or not until_end:
        first = consumer.poll(0.5)
        if first is None:
            if until_end and time.monotonic() - progress > _NO_PROGRESS_S:
                raise RetryableError(
                    f"{topic}: nothing came for {_NO_PROGRESS_S:.0f} s, though its end was not reached"
                )
            continue
        progress = time.monotonic()
        for message in [first, *consumer.consume(_BATCH, timeout=0)]:
            error = message.error()
            if error is not None and error.code() != _EOF:
                raise faults.error(f"reading {topic}", error)
            number, offset = _place(message)
            end = bounds[number][1]
            if until_end and offset >= end:  # an end of partition is one too, and stands after the control records
                unfinished.discard(number)
            elif error is None:
                yield message
                if offset + 1 >= end:
                    unfinished.discard(number)


def _bounds(consumer: Consumer, faults: KafkaFaults, topic: str) -> dict[int, tuple[int, int]]:
    """Of each partition the first offset and the last stable one, below which everything is decided."""
    try:
        found = consumer.list_topics(topic, timeout=_ANSWER_S).topics[topic]
        if found.error is not None and found.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            raise FatalError(f"the topic {topic} does not exist; `sync-worker topics create` makes it")
        if found.error is not None:
            raise faults.error(f"asking for {topic}", found.error)
        bounds = {}
        for number in sorted(found.partitions):
            # A consumer that reads committed records gets the last stable offset here, not the high watermark.
            watermarks = consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=_ANSWER_S)
            if watermarks is None:
                raise RetryableError(f"asking for the end of {topic}[{number}]: no answer in {_ANSWER_S:.0f} s")
            bounds[number] = watermarks
    except KafkaException as error:
        consumer.poll(0)  # brings the reason to the error callback
        raise faults.error(f"asking for {topic}", error) from error
    return bounds


def _place(message: Message) -> tuple[int, int]:
    number, offset = message.partition(), message.offset()
    if number is None or offset is None:  # neither happens to a message of a consumer
        raise FatalError("Kafka delivered a record without its partition and offset")
    return number, offset


class _Changes:
    """EnrollmentChanged by its Avro field names, the time as ISO 8601; a null value as a document of type Tombstone."""

    def __init__(self, decoder: ChangeDecoder) -> None:
        self._decoder = decoder

    def of(self, message: Message) -> Tailed:
        value = message.value()
        if value is None:
            return {"type": "Tombstone", **_ids(message.key())}
        try:
            datum = self._decoder.decode(value, headers_of(message))
        except InvalidRecord as error:
            return Fault(f"{message.topic()}[{message.partition()}] offset {message.offset()}", error.detail)
        occurred_at = datum.get("occurred_at")
        if isinstance(occurred_at, int):
            datum["occurred_at"] = rfc3339(occurred_at)
        return {"type": RecordName.ENROLLMENT_CHANGED.value, **datum}


class _DeadLetters:
    """The `dlq_*` headers by their names, then the record's own headers as text, then key and value as base64."""

    def of(self, message: Message) -> Tailed:
        headers = [(name, _text(value)) for name, value in headers_of(message)]
        reasons = {name: value for name, value in headers if name.startswith("dlq_")}
        numbers = {
            name: int(value) for name, value in reasons.items() if name in _NUMBERS and value and value.isdecimal()
        }
        return {
            "partition": message.partition(),
            "offset": message.offset(),
            **reasons,
            **numbers,
            "headers": [[name, value] for name, value in headers if not name.startswith("dlq_")],
            "key": _base64(message.key()),
            "value": _base64(message.value()),
        }


def _ids(key: bytes | str | None) -> Mapping[str, str | None]:
    text = _text(key)
    course, colon, user = (text or "").partition(":")
    return {"course_id": course, "user_id": user} if colon else {"key": text}


def _text(value: bytes | str | None) -> str | None:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value


def _base64(value: bytes | str | None) -> str | None:
    raw = value.encode() if isinstance(value, str) else value
    return None if raw is None else base64.b64encode(raw).decode("ascii")
