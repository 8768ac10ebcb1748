"""Memberships at a steady rate by a fixed timetable, from a process of their own, and when what came of each was received.

A receiver is a read_committed consumer in a thread of this process; all clocks are the machine's monotonic one. What is missing or
came twice raises WrongResult.
"""

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from typing import Any

from confluent_kafka import Message, Producer

from bench.errors import WrongResult, expect
from bench.frame import Figures
from bench.load import Published
from bench.site import ChangesReader

_SPAWN = multiprocessing.get_context("spawn")
_LAST_S = 60.0


@dataclass(frozen=True, slots=True)
class Route:
    """Where records are sent, and whose they are when something comes of them."""

    bootstrap_servers: str
    topic: str
    person_of: Callable[[Message], bytes]


def user_of_change(message: Message) -> bytes:
    """course:user"""
    return bytes(message.key() or b"")[37:]


class Traffic:
    """Of one person each record. Made once, run once."""

    def __init__(self, route: Route, records: Sequence[Published], rate: float, reader: ChangesReader) -> None:
        self._route = route
        self._records = records
        self._rate = rate
        self._reader = reader
        self._stopped = threading.Event()
        self._failed: BaseException | None = None
        self.sent: dict[bytes, float] = {}
        """When each person's record was handed to the producer; complete after the block."""
        self.received: dict[bytes, float] = {}
        self.others = 0
        """How many records came of something else."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Sends for as long as the block lasts, or the records. Raises WrongResult where something is missing a minute later."""
        ours, theirs = _SPAWN.Pipe()
        stop = _SPAWN.Event()
        arguments = (self._route.bootstrap_servers, self._route.topic, self._records, self._rate, stop, theirs)
        sender = _SPAWN.Process(target=_send, args=arguments, name="sender")
        receiver = threading.Thread(target=self._receive, name="receiver")
        sender.start()
        expect("the sender", ours.recv(), "ready")
        receiver.start()
        try:
            yield
            if self._failed is not None:
                raise self._failed
        finally:
            stop.set()
            times: Sequence[float] = ours.recv()
            sender.join()
            self.sent = dict(zip((record.key for record in self._records), times, strict=False))
            self._stopped.set()
            receiver.join()
        if self._failed is not None:
            raise self._failed

    def wait_sent(self) -> None:
        """Until all records are on their way and what came of them has come."""
        while len(self.received) < len(self._records) and self._failed is None:
            time.sleep(0.01)

    def _receive(self) -> None:
        deadline = None
        people = {record.key for record in self._records}
        try:
            while not (self._stopped.is_set() and len(self.received) >= len(self.sent)):
                if self._stopped.is_set():
                    deadline = deadline or time.monotonic() + _LAST_S
                    if time.monotonic() > deadline:
                        raise WrongResult(f"nothing came of {len(self.sent) - len(self.received)} records")  # noqa: TRY301 - raised again by who waits
                messages = self._reader.some(0.2)
                now = time.monotonic()
                for message in messages:
                    self._take(message, now, people)
        except Exception as error:  # noqa: BLE001 - raised again by whoever waits for the traffic
            self._failed = error

    def _take(self, message: Message, now: float, people: set[bytes]) -> None:
        person = self._route.person_of(message)
        if person not in people:
            self.others += 1
        elif person in self.received:
            raise WrongResult(f"two changes of {person!r}")
        else:
            self.received[person] = now

    def latencies_ms(self, since: float, until: float = float("inf")) -> list[float]:
        """Of what was sent within these times, sorted."""
        taken = [self.received[person] - at for person, at in self.sent.items() if since <= at < until]
        if not taken:
            raise WrongResult("nothing was sent meanwhile: give it more records")
        return sorted(each * 1e3 for each in taken)


def paced(records: Iterable[Published], rate: float, producer: Producer) -> Iterator[Published]:
    """Each when its time has come, `rate` of them a second; the producer is served meanwhile."""
    started = time.monotonic()
    for n, record in enumerate(records):
        # Not by the client's poll: it counts in milliseconds, and for less it comes back at once, again and again.
        if (ahead := started + n / rate - time.monotonic()) > 0:
            time.sleep(ahead)
        producer.poll(0)
        yield record


def percentiles(latencies_ms: Sequence[float]) -> Figures:
    """latencies: sorted."""
    last = len(latencies_ms) - 1
    shares = {"p50_ms": 0.5, "p99_ms": 0.99, "p999_ms": 0.999, "max_ms": 1.0}
    return {name: latencies_ms[min(last, int(len(latencies_ms) * share))] for name, share in shares.items()}


def _send(
    bootstrap_servers: str,
    topic: str,
    records: Sequence[Published],
    rate: float,
    stop: Event,
    pipe: "Connection[Any, Any]",
) -> None:
    """The sender's process: gives back when each record was handed to the producer."""
    # As a publisher's client comes. Sooner sent, nearly each record were a request, and the broker's requests were measured.
    producer = Producer({"bootstrap.servers": bootstrap_servers, "log_level": 0})
    producer.list_topics(topic, 10)
    pipe.send("ready")
    times: list[float] = []
    for record in paced(records, rate, producer):
        if stop.is_set():
            break
        times.append(time.monotonic())
        producer.produce(topic, record.value, record.key)
    if left := producer.flush(30):
        raise WrongResult(f"Kafka did not take {left} records within half a minute")
    pipe.send(times)
