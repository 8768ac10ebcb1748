"""The relay's transactional producer: some records and the cursor that says so, in one Kafka transaction.

After any fault a publisher is of no use: the caller makes a new one and reads the cursor again, which is what tells
whether the last transaction happened (design §5).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import structlog
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from sync_worker.errors import RetryableError
from sync_worker.kafka_errors import KafkaFaults

# A dead relay holds back read_committed consumers for as long as this.
TRANSACTION_TIMEOUT_S = 15.0
_MAX_RECORD_BYTES = 100_000_000
_MAX_BATCH_BYTES = 1_000_000

log = structlog.get_logger(__name__)


class RecordTooLarge(RetryableError):
    """The broker refused a record for its size; `tag` is what the caller called it."""

    def __init__(self, tag: object) -> None:
        super().__init__(f"the broker refused a record for its size ({tag})")
        self.tag = tag


class Publisher:
    """One producer with the group's transactional id. Making it fences whoever had that id before."""

    def __init__(
        self, config: Mapping[str, Any], group: str, address: str, batch_bytes: int, *, logger: Any = None
    ) -> None:
        """batch_bytes: how large a batch of several records may be, which is what the topics' limits are for."""
        self._faults = KafkaFaults(address)
        settings = dict(config) | self._faults.config
        settings |= {
            "transactional.id": f"{group}-relay",
            "transaction.timeout.ms": int(TRANSACTION_TIMEOUT_S * 1000),
            "enable.idempotence": True,
            "acks": "all",
            # As Java's default, so that Java consumers co-partition.
            "partitioner": "murmur2_random",
            # The broker's own limit decides, not the client's.
            "message.max.bytes": _MAX_RECORD_BYTES,
            "batch.size": min(batch_bytes, _MAX_BATCH_BYTES),
            "linger.ms": 5,
            # A transaction right after another waits this long for the coordinator; the default of 100 ms is most of the latency.
            "retry.backoff.ms": 2,
            "retry.backoff.max.ms": 5,
            "delivery.timeout.ms": int(TRANSACTION_TIMEOUT_S * 1000),
        }
        if logger is not None:
            settings["logger"] = logger
        self._producer = Producer(settings)
        self._refused: list[object] = []

    def fence(self) -> None:
        """Wait for, or end, the transactions of whoever led before."""
        try:
            self._producer.init_transactions(TRANSACTION_TIMEOUT_S)
        except KafkaException as error:
            raise self._retryable("becoming the relay", error) from error

    def publish(
        self,
        records: Iterable[tuple[str, bytes | None, bytes | None, Sequence[tuple[str, bytes | None]], object]],
        cursor: tuple[str, bytes, bytes],
    ) -> None:
        """One transaction. records: (topic, key, value, headers, tag or None); cursor: (topic, key, value).

        Raises RetryableError where it is not known to have happened.
        """
        producer = self._producer
        try:
            producer.begin_transaction()
            for topic, key, value, headers, tag in records:
                callback = None if tag is None else self._watch(tag)
                while True:
                    try:
                        producer.produce(topic, value, key, headers=headers, on_delivery=callback)  # type: ignore[arg-type]  # a list
                    except BufferError:
                        producer.poll(0.05)
                        continue
                    break
            topic, key, value = cursor
            producer.produce(topic, value, key, partition=0)
            producer.commit_transaction(TRANSACTION_TIMEOUT_S)
        except KafkaException as error:
            self.abandon()
            if self._refused:
                raise RecordTooLarge(self._refused[0]) from error
            raise self._retryable("publishing", error) from error

    def abandon(self) -> None:
        """End an open transaction, if that is possible; a successor's fencing does it otherwise."""
        try:
            self._producer.abort_transaction(5.0)
        except KafkaException as error:
            log.info("abort_refused", reason=str(error.args[0]))

    def _watch(self, tag: object) -> Any:
        def delivered(error: KafkaError | None, _message: Message) -> None:
            if error is not None and error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
                self._refused.append(tag)

        return delivered

    def _retryable(self, doing: str, error: KafkaException) -> Exception:
        """Whatever went wrong, a new producer and the cursor tell where to go on; only what an operator must mend stops the worker."""
        failure = self._faults.error(doing, error)
        kafka_error = error.args[0]
        if (
            isinstance(failure, RetryableError)
            or kafka_error.txn_requires_abort()
            or kafka_error.fatal()
            or kafka_error.retriable()
        ):
            return failure if isinstance(failure, RetryableError) else RetryableError(str(failure))
        return failure
