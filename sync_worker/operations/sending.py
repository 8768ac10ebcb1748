"""Produces single records to the input topics, for the commands of operators: `publish`, `members import`, `dlq replay`.

Must never end without knowing of each record whether it arrived, nor have the broker make a topic that isn't there.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from sync_worker.errors import FatalError, SyncWorkerError
from sync_worker.interrupts import Interrupts
from sync_worker.kafka.errors import KafkaFaults
from sync_worker.service.logging import kafka_logger
from sync_worker.settings import Settings

_ANSWER_S: Final = 30.0
_DELIVERY_MS: Final = 60_000
_ANY: Final = -1
# The broker's own limit decides, not the client's: a dead letter may be as large as the topic takes them.
_MAX_RECORD_BYTES: Final = 100_000_000
# What waits for the broker is memory: this much keeps it busy.
_MAX_WAITING: Final = 20_000
_MAX_WAITING_KBYTES: Final = 128 * 1024

Arrived = Callable[[SyncWorkerError | None], None]
"""Called once for each record, when it is acknowledged (None) or when it never will be."""


class Sender:
    """One producer. Interrupts are kept out of librdkafka's calls while it is `open`."""

    def __init__(self, settings: Settings) -> None:
        self._interrupts = Interrupts()
        self._faults = KafkaFaults(settings.kafka_bootstrap_servers)
        self._producer = Producer(
            {
                "message.timeout.ms": _DELIVERY_MS,
                "linger.ms": 5,
                "message.max.bytes": _MAX_RECORD_BYTES,
                "queue.buffering.max.messages": _MAX_WAITING,
                "queue.buffering.max.kbytes": _MAX_WAITING_KBYTES,
                **settings.kafka_client_config(),
                **self._faults.config,
                "acks": "all",
                "enable.idempotence": True,
                "partitioner": "murmur2_random",  # contract §1: as Java clients do, for co-partitioning
            },
            logger=kafka_logger(),
        )
        self.partitions = self._partitions()
        """How many partitions each topic of the broker has."""

    def require(self, topic: str) -> None:
        """Raise FatalError where the topic isn't there: producing would have the broker make it, with its own settings."""
        if topic not in self.partitions:
            raise FatalError(f"the topic {topic} does not exist; `sync-worker topics create` makes it")

    @contextmanager
    def open(self) -> Iterator[None]:
        """Within, records may be sent; at the end each of them has arrived or been given up."""
        with self._interrupts.installed():
            try:
                yield
            finally:
                try:
                    self.flush()
                except BaseException:  # Ctrl-C may come just here; only a second one may cut short what is on its way
                    self.flush()
                    raise

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes | None]],
        arrived: Arrived,
        *,
        partition: int = _ANY,
    ) -> None:
        """Put a record on its way; waits while too many are. The topic must be among `partitions`."""
        with self._interrupts.shield():
            self._enqueue(topic, key, value, headers, arrived, partition)

    def flush(self) -> None:
        """Wait until each record sent so far has arrived, or is given up at its delivery timeout."""
        # In short waits, as a signal is seen only between them.
        while True:
            with self._interrupts.shield():
                if not self._producer.flush(0.5):
                    return

    def _enqueue(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes | None]],
        arrived: Arrived,
        partition: int,
    ) -> None:
        while True:
            try:
                self._producer.produce(
                    topic,
                    key=key,
                    value=value,
                    partition=partition,
                    headers=list(headers),
                    on_delivery=partial(self._delivered, arrived),
                )
            except BufferError:  # the queue is full: the broker is slower than we are
                self._producer.poll(0.1)
            except KafkaException as error:
                self._delivered(arrived, error.args[0], None)
                return
            else:
                self._producer.poll(0)
                return

    def _delivered(self, arrived: Arrived, error: KafkaError | None, _message: Message | None) -> None:
        arrived(None if error is None else self._faults.error("not delivered", error))

    def _partitions(self) -> Mapping[str, int]:
        try:
            found = self._producer.list_topics(timeout=_ANSWER_S).topics
        except KafkaException as error:
            self._producer.poll(0)  # brings the reason to the error callback
            raise self._faults.error("asking for the topics", error) from error
        return {name: len(topic.partitions) for name, topic in found.items()}
