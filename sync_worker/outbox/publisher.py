"""The relay's transactional producer: some records and the cursor that says so, in one Kafka transaction.

After any fault a publisher is of no use: the caller makes a new one and reads the cursor again, which is what tells
whether the last transaction happened (design §5).
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import structlog
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from sync_worker.errors import RetryableError
from sync_worker.kafka.errors import KafkaFaults

# A dead relay holds back read_committed consumers for as long as this.
TRANSACTION_TIMEOUT_S = 15.0
_MAX_RECORD_BYTES = 100_000_000
_MAX_BATCH_BYTES = 1_000_000

log = structlog.get_logger(__name__)


class RecordTooLarge(RetryableError):
    """The broker refused a record for its size; `tag` is what the caller called it, None for a change of an enrollment."""

    def __init__(self, tag: object, what: str) -> None:
        super().__init__(f"the broker refused {what} for its size: raise max.message.bytes of its topic")
        self.tag = tag


Record = tuple[str, bytes | None, bytes | None, list[Any], object]
"""Topic, key, value, headers, and what the caller calls it (None: nothing)."""


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
            # Committing sends at once whatever is left. Until then a request for every few records is what the broker's CPU goes into.
            "linger.ms": 50,
            # A transaction right after another waits this long for the coordinator; the default of 100 ms is most of the latency.
            "retry.backoff.ms": 2,
            "retry.backoff.max.ms": 5,
            "delivery.timeout.ms": int(TRANSACTION_TIMEOUT_S * 1000),
            # Without it a Message is made for each record, only to say that nothing is wrong.
            "delivery.report.only.error": True,
        }
        if logger is not None:
            settings["logger"] = logger
        self._producer = Producer(settings)
        self._failures: list[tuple[KafkaError, Message, object]] = []

    def fence(self) -> None:
        """Wait for, or end, the transactions of whoever led before."""
        try:
            self._producer.init_transactions(TRANSACTION_TIMEOUT_S)
        except KafkaException as error:
            raise self._faults.waited_for("becoming the relay", error) from error

    def publish(self, records: Iterable[Record], cursor: tuple[str, bytes, bytes]) -> None:
        """One transaction: the records, then the cursor (topic, key, value).

        Raises RetryableError where it is not known to have happened, FatalError where only an operator can help.
        """
        self._failures.clear()
        try:
            self._producer.begin_transaction()
            produce, report = self._producer.produce, self._report
            for topic, key, value, headers, tag in records:
                if tag is not None:
                    self._produce(topic, key, value, headers, tag)
                    continue
                try:  # nearly all records: spelled out
                    produce(topic, value, key, -1, report, headers=headers)
                except BufferError:
                    self._produce(topic, key, value, headers, tag)
            topic, key, value = cursor
            self._produce(topic, key, value, [], None, partition=0)
            self._producer.commit_transaction(TRANSACTION_TIMEOUT_S)
        except KafkaException as error:
            # Once something failed in the background, the next call says no more than "erroneous state": why is in the delivery
            # reports and in what aborting answers.
            reasons = [error, self.abandon()]
            self._raise_refused()
            raise self._faults.waited_for("publishing", _clearest([*self._failures_as_errors(), *reasons])) from error

    def _produce(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: list[Any],
        tag: object,
        *,
        partition: int = -1,
    ) -> None:
        callback = self._report if tag is None else partial(self._report, tag=tag)
        while True:
            try:
                self._producer.produce(topic, value, key, partition, headers=headers, on_delivery=callback)
            except BufferError:
                self._producer.poll(0.05)
            else:
                return

    def abandon(self) -> KafkaException | None:
        """End an open transaction, if that is possible; a successor's fencing does it otherwise. What was said, if it failed."""
        try:
            self._producer.abort_transaction(5.0)
        except KafkaException as error:
            log.info("abort_refused", reason=str(error.args[0]))
            return error
        return None

    def _report(self, error: KafkaError | None, message: Message, tag: object = None) -> None:
        if error is not None:
            self._failures.append((error, message, tag))

    def _failures_as_errors(self) -> list[KafkaException]:
        return [KafkaException(error) for error, _, _ in self._failures]

    def _raise_refused(self) -> None:
        """A batch of records fails as one: the largest of those refused for their size is the one that is too large."""
        refused = [
            (len(message), message, tag)
            for error, message, tag in self._failures
            if error.code() == KafkaError.MSG_SIZE_TOO_LARGE
        ]
        if refused:
            size, message, tag = max(refused, key=lambda each: each[0])
            raise RecordTooLarge(tag, f"the record {message.key()!r} of {message.topic()}, {size} bytes,")


# Errors that only say that an earlier one was overlooked.
_ECHOES = frozenset({KafkaError._STATE, KafkaError._FATAL, KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT})


def _clearest(errors: Sequence[KafkaException | None]) -> KafkaException:
    """Of several errors of one transaction the first that names a reason."""
    found = [error for error in errors if error is not None]
    named = [error for error in found if error.args[0].code() not in _ECHOES]
    return (named or found)[0]
