"""A bare Kafka-to-Kafka transactional echo: what latency Kafka itself costs whoever publishes exactly once.

It does nothing between reading and writing, in a process of its own, with the worker's settings of its clients.
"""

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event

from confluent_kafka import Consumer, Producer

from bench.errors import WrongResult

_SPAWN = multiprocessing.get_context("spawn")
_PARTITIONS_WITHIN_S = 30.0


@contextmanager
def echo(bootstrap_servers: str, source: str, target: str, name: str) -> Iterator[None]:
    """Copies every record while the block lasts; begins when it has its partitions."""
    ready, stop = _SPAWN.Event(), _SPAWN.Event()
    process = _SPAWN.Process(target=_copy, args=(bootstrap_servers, source, target, name, ready, stop), name="echo")
    process.start()
    try:
        if not ready.wait(_PARTITIONS_WITHIN_S):
            raise WrongResult("the echo got no partitions")
        yield
    finally:
        stop.set()
        process.join()
    if process.exitcode:
        raise WrongResult(f"the echo ended with {process.exitcode}")


def _copy(bootstrap_servers: str, source: str, target: str, name: str, ready: Event, stop: Event) -> None:
    common = {"bootstrap.servers": bootstrap_servers, "log_level": 0}
    consumer = Consumer({
        **common, "group.id": name, "auto.offset.reset": "earliest", "enable.auto.commit": False, "isolation.level": "read_committed",
        "fetch.wait.max.ms": 100,
    })  # fmt: skip
    producer = Producer({
        **common, "transactional.id": name, "linger.ms": 50, "retry.backoff.ms": 2, "retry.backoff.max.ms": 5,
    })  # fmt: skip
    producer.init_transactions(30)
    consumer.subscribe([source], on_assign=lambda *_: ready.set())
    while not stop.is_set():
        first = consumer.poll(0.1)
        if first is None:
            continue
        messages = [first, *consumer.consume(2000, 0)]
        producer.begin_transaction()
        for message in messages:
            if message.error() is not None:
                raise WrongResult(f"the echo reads: {message.error()}")
            producer.produce(target, message.value(), message.key())
        producer.send_offsets_to_transaction(
            consumer.position(consumer.assignment()), consumer.consumer_group_metadata()
        )
        producer.commit_transaction()
    consumer.close()
