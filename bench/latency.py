"""How long from a publisher's call to a read_committed consumer's receipt of EnrollmentChanged, at a steady rate.

Every event must come out exactly once; one that is missing or doubled makes the run worthless.
"""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import Producer

from bench.errors import WrongResult, expect
from bench.load import Load, Published, as_published
from bench.site import ChangesReader, new_site, wait_for
from devstack import Stack

# A young broker needs more than twice as long for a transaction as a warm one.
WARM_UP_S = 4.0


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds, of the events after the warm-up."""

    rate: int
    achieved: float  # events per second
    p50: float
    p99: float
    max: float


def latency(stack: Stack, template: str, directory: Path, rate: int, seconds: float, **settings: str) -> Latency:
    load = Load(users=int(rate * (seconds + WARM_UP_S)), methods=1)
    records = as_published(load.memberships(is_member=True, version=1))
    with new_site(stack, template, directory, **settings) as site:
        site.publish(site.settings.methods_topic, as_published(load.method_events))
        site.start_workers(1)
        wait_for(lambda: site.applied() >= len(load.method_events), "the methods are applied")
        reader = site.changes_reader()
        stop = threading.Event()
        try:
            with ThreadPoolExecutor(1) as pool:
                receiving = pool.submit(_receive, reader, len(records), stop)
                try:
                    sent, achieved = _send(stack.kafka.bootstrap_servers, site.settings.membership_topic, records, rate)
                    received = receiving.result(60)
                finally:
                    stop.set()
        finally:
            reader.close()
    expect("people whose change came", set(received), set(sent))
    counted = sorted((received[user] - sent[user]) * 1e3 for user in list(sent)[int(rate * WARM_UP_S) :])
    return Latency(rate, achieved, counted[len(counted) // 2], counted[int(len(counted) * 0.99)], counted[-1])


def _send(bootstrap_servers: str, topic: str, records: list[Published], rate: int) -> tuple[dict[bytes, float], float]:
    """When each person's event was handed to the producer, by a fixed timetable; and the rate that came of it."""
    producer = Producer({"bootstrap.servers": bootstrap_servers, "linger.ms": 0})
    producer.list_topics(topic, 10)
    sent: dict[bytes, float] = {}
    started = time.perf_counter()
    for n, record in enumerate(records):
        while (ahead := started + n / rate - time.perf_counter()) > 0:
            producer.poll(min(ahead, 0.001))
        sent[record.key] = time.perf_counter()
        producer.produce(topic, record.value, record.key)
    took = time.perf_counter() - started
    if producer.flush(30):
        raise WrongResult("Kafka did not take all records")
    return sent, len(records) / took


def _receive(reader: ChangesReader, expected: int, stop: threading.Event) -> dict[bytes, float]:
    """When each person's change came."""
    received: dict[bytes, float] = {}
    while reader.count < expected and not stop.is_set():
        messages = reader.some(0.2)
        now = time.perf_counter()
        for message in messages:
            user = message.key()[37:]  # type: ignore[index]  # course:user
            if user in received:
                raise WrongResult(f"two changes of {user!r}")
            received[user] = now
    return received
