"""Publishers: send a run's traffic at its times, whatever happens to the broker, and say what the broker acknowledged.

A plain producer retries by itself, one of them without idempotence, so that it repeats records as careless publishers do.
A transactional one repeats a transaction that failed until it is known to be committed. They talk to the broker directly,
not through the proxy.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from tests.faults.framing import Framer
from tests.faults.sending import Sending, Traffic, Transaction

_TIMEOUT_S = 120.0
_QUEUE_FULL_S = 0.05


class Sent(NamedTuple):
    """A record as it was given to Kafka."""

    topic: str
    key: bytes | None
    value: bytes | None


class Book:
    """What the bytes that were sent mean, and what the broker acknowledged; shared by all publishers of a run."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.meaning: dict[tuple[str, bytes | None], Sending] = {}
        self.acknowledged: Counter[Sent] = Counter()
        self.aborted: set[bytes] = set()
        self.transactions = 0

    def note(self, sent: Sent, sending: Sending) -> None:
        with self._lock:
            self.meaning[sent.topic, sent.value] = sending

    def acknowledge(self, records: Sequence[Sent]) -> None:
        with self._lock:
            self.acknowledged.update(records)


class Publishing:
    """All publishers of a run, each in a thread of its own, from `start` to `join`."""

    def __init__(
        self,
        traffic: Traffic,
        bootstrap_servers: str,
        topics: Mapping[str, str],
        framer: Framer,
        began_s: float,
        name: str,
    ) -> None:
        """began_s: the monotonic time from which the traffic's times count. name: of the transactional ids."""
        self.book = Book()
        self._topics = topics
        self._framer = framer
        self._began_s = began_s
        self._bootstrap_servers = bootstrap_servers
        self._failures: list[BaseException] = []
        self._partitions: dict[str, int] = {}
        self._threads = [
            *(
                self._thread(lambda own=own, n=n: self._send_all(own, careless=n == 1))  # type: ignore[misc]  # bound at once
                for n, own in enumerate(traffic.plain)
            ),
            *(
                self._thread(lambda own=own, n=n: self._commit_all(own, f"{name}-{n}"))  # type: ignore[misc]  # bound at once
                for n, own in enumerate(traffic.transactional)
            ),
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self, deadline_s: float) -> None:
        """Until all is sent. Raises what made a publisher fail."""
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        if self._failures:
            raise self._failures[0]
        assert not any(thread.is_alive() for thread in self._threads), "publishers did not end in time"

    def _thread(self, work: Callable[[], None]) -> threading.Thread:
        def body() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - raised again by join
                self._failures.append(error)

        return threading.Thread(target=body, name="publisher", daemon=True)

    # plain

    def _send_all(self, sendings: Sequence[Sending], *, careless: bool) -> None:
        producer = self._producer(**({} if careless else {"enable.idempotence": True}))
        for sending in sendings:
            self._wait_until(sending.at_s, producer)
            sent = self._encode(sending)

            def delivered(error: KafkaError | None, _: Message, sent: Sent = sent) -> None:
                if error is None:
                    self.book.acknowledge([sent])

            self._produce(producer, sending, sent, delivered)
        assert producer.flush(_TIMEOUT_S) == 0, "the broker did not take the records"

    # transactional

    def _commit_all(self, transactions: Sequence[Transaction], transactional_id: str) -> None:
        producer: Producer | None = None
        for transaction in transactions:
            self._wait_until(transaction.at_s, producer)
            deadline = time.monotonic() + _TIMEOUT_S
            while True:
                try:
                    if producer is None:
                        producer = self._producer(**{
                            "transactional.id": transactional_id, "transaction.timeout.ms": 15_000,
                        })  # fmt: skip
                        producer.init_transactions(30.0)
                    self._commit(producer, transaction)
                    if transaction.aborted:
                        # A request that the broker takes after the abort would belong to this producer's next transaction, and be
                        # committed with it (KIP-890; seen once at seed 128). A new producer's epoch shuts it out, as the relay's does.
                        producer = None
                    break
                except KafkaException:
                    # Whether it happened is unknown. A new producer ends what the old one left open.
                    producer = None
                    if transaction.aborted:
                        break
                    if time.monotonic() > deadline:
                        raise

    def _commit(self, producer: Producer, transaction: Transaction) -> None:
        producer.begin_transaction()
        records = []
        for sending in transaction.records:
            sent = self._encode(sending)
            self._produce(producer, sending, sent, None)
            records.append(sent)
        if transaction.aborted:
            self.book.aborted.update(sent.value for sent in records if sent.value)
            producer.flush(10)
            producer.abort_transaction(30.0)
            return
        producer.commit_transaction(30.0)
        self.book.acknowledge(records)
        self.book.transactions += 1

    # both

    def _producer(self, **config: object) -> Producer:
        return Producer({
            "bootstrap.servers": self._bootstrap_servers, "linger.ms": 5, "log_level": 0, "acks": "all",
            "message.timeout.ms": int(_TIMEOUT_S * 1000) if "transactional.id" not in config else 15_000,
            "socket.timeout.ms": 10_000, "reconnect.backoff.max.ms": 500, "message.max.bytes": 2_000_000,
            **config,
        })  # fmt: skip

    def _encode(self, sending: Sending) -> Sent:
        sent = Sent(sending.topic, sending.key, self._framer.encode(sending))
        self.book.note(sent, sending)
        return sent

    def _produce(
        self,
        producer: Producer,
        sending: Sending,
        sent: Sent,
        delivered: Callable[[KafkaError | None, Message], None] | None,
    ) -> None:
        topic = self._topics[sending.topic]
        options: Any = {"headers": list(sending.headers)} | ({"on_delivery": delivered} if delivered else {})
        while True:
            try:
                partition = sending.partition % self._partition_count(producer, topic)
                producer.produce(topic, sent.value, sent.key, partition, **options)
            except BufferError:
                producer.poll(_QUEUE_FULL_S)
            except KafkaException as error:
                # Another producer heard of the new partition first.
                if error.args[0].code() != KafkaError._UNKNOWN_PARTITION:
                    raise
                self._partitions.pop(topic, None)
                producer.poll(_QUEUE_FULL_S)
            else:
                break
        producer.poll(0)

    def _partition_count(self, producer: Producer, topic: str) -> int:
        """How many partitions the topic has, as far as was heard; `partitions_added` says so by forgetting."""
        if topic not in self._partitions:
            while True:
                try:
                    self._partitions[topic] = len(producer.list_topics(topic, 5).topics[topic].partitions)
                    break
                except KafkaException:
                    time.sleep(_QUEUE_FULL_S)
        return self._partitions[topic]

    def forget_partitions(self) -> None:
        """Topics may have more partitions now."""
        self._partitions.clear()

    def _wait_until(self, at_s: float, producer: Producer | None) -> None:
        while (left_s := self._began_s + at_s - time.monotonic()) > 0:
            if producer is None:
                time.sleep(min(left_s, 0.1))
            else:
                producer.poll(min(left_s, 0.1))
