"""Sends JSON lines to the input topics: what `sync-worker publish` does around `publishing.LineEncoder`.

A line that can't be sent is named, and the rest goes on. Must never end without knowing of each line whether it
arrived.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from sync_worker.errors import SyncWorkerError
from sync_worker.events import RecordName
from sync_worker.interrupts import Interrupts
from sync_worker.kafka.errors import KafkaFaults
from sync_worker.operations.publishing import InvalidLine, LineEncoder, Publication
from sync_worker.schema.registry import registry_of
from sync_worker.schema.store import load_schemas
from sync_worker.service.logging import kafka_logger
from sync_worker.settings import Settings

_ANSWER_S: Final = 30.0
_DELIVERY_MS: Final = 60_000

OnFault = Callable[[int, str], None]
"""Called with a line's number, from 1, and what is wrong with it."""


class Publisher:
    """Publishes lines and counts them: `published` (acknowledged), `invalid`, `undelivered`."""

    def __init__(self, settings: Settings, on_fault: OnFault) -> None:
        self.published = 0
        self.invalid = 0
        self.undelivered = 0
        self._on_fault = on_fault
        self._interrupts = Interrupts()
        self._faults = KafkaFaults(settings.kafka_bootstrap_servers)
        self._encoder = LineEncoder(load_schemas(settings.schema_dir), _topics(settings), registry_of(settings))
        self._producer = Producer(
            {
                "message.timeout.ms": _DELIVERY_MS,
                "linger.ms": 5,
                **settings.kafka_client_config(),
                **self._faults.config,
                "acks": "all",
                "enable.idempotence": True,
                "partitioner": "murmur2_random",  # contract §1: as Java clients do, for co-partitioning
            },
            logger=kafka_logger(),
        )
        self._existing = self._existing_topics()

    def publish(self, lines: Iterable[bytes]) -> None:
        """Send each line that is not blank; return when every one is acknowledged or named.

        Raises what isn't a line's fault (the registry is away), with the line it stopped at.
        """
        with self._interrupts.installed():
            self._publish(lines)

    def _publish(self, lines: Iterable[bytes]) -> None:
        number = 0
        try:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    self._one(number, line)
        except SyncWorkerError as error:
            raise type(error)(f"stopped at line {number}, the lines before it are done: {error}") from error
        finally:
            try:
                self._flush()
            except BaseException:  # Ctrl-C may come just here; only a second one may cut short what is on its way
                self._flush()
                raise

    def _one(self, number: int, line: bytes) -> None:
        try:
            publication = self._encoder.encode_line(line.removeprefix(b"\xef\xbb\xbf"))
            self._check_topic(publication.topic)
        except InvalidLine as error:
            self.invalid += 1
            self._on_fault(number, str(error))
            return
        self._produce(number, publication)

    def _check_topic(self, topic: str) -> None:
        # Producing would have the broker make it, with settings that are not the contract's.
        if topic not in self._existing:
            raise InvalidLine(f"its topic {topic} does not exist; `sync-worker topics create` makes it")

    def _produce(self, number: int, publication: Publication) -> None:
        with self._interrupts.shield():
            self._enqueue(number, publication)

    def _enqueue(self, number: int, publication: Publication) -> None:
        while True:
            try:
                self._producer.produce(
                    publication.topic,
                    value=publication.value,
                    key=publication.key,
                    headers=list(publication.headers),
                    on_delivery=partial(self._delivered, number),
                )
            except BufferError:  # the queue is full: the broker is slower than the file
                self._producer.poll(0.1)
            except KafkaException as error:
                self._delivered(number, error.args[0], None)
                return
            else:
                self._producer.poll(0)
                return

    def _delivered(self, number: int, error: KafkaError | None, _message: Message | None) -> None:
        if error is None:
            self.published += 1
        else:
            self.undelivered += 1
            self._on_fault(number, str(self._faults.error("not delivered", error)))

    def _flush(self) -> None:
        # Each record ends by itself within its delivery timeout, acknowledged or not. In short waits, as a signal is
        # seen only between them.
        while True:
            with self._interrupts.shield():
                if not self._producer.flush(0.5):
                    return

    def _existing_topics(self) -> frozenset[str]:
        try:
            return frozenset(self._producer.list_topics(timeout=_ANSWER_S).topics)
        except KafkaException as error:
            self._producer.poll(0)  # brings the reason to the error callback
            raise self._faults.error("asking for the topics", error) from error


def _topics(settings: Settings) -> dict[RecordName, str]:
    return {
        RecordName.MEMBER_ADDED: settings.membership_topic,
        RecordName.MEMBER_REMOVED: settings.membership_topic,
        RecordName.METHOD_CHANGED: settings.methods_topic,
        RecordName.SOURCE_CHANGED: settings.sources_topic,
        RecordName.SUSPENSION_CHANGED: settings.sources_topic,
    }
