"""A steady load for hours, and the check of what came of it in constant memory: people join and leave, methods change their role.

What must be in the end follows from the newest facts alone. Who falls behind, because the broker is away, sends what is
due as soon as that is possible, as a publisher with an outbox of its own does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from random import Random
from uuid import UUID

from confluent_kafka import KafkaException, Producer

from tests.faults.streaming import ChainReader
from tests.model.events import Event, MembershipChanged, MethodChanged, key_of, to_record
from tests.support.site import Site
from tests.support.wire import encode, prefix

START_US = 1_767_225_600_000_000
METHOD_EVERY = 20_000
ROLES = ("student", "teacher", "tutor")
_TURN_S = 0.02
_TIMEOUT_S = 120.0


@dataclass(slots=True)
class World:
    """So many segments with one method each, and people who are members of it or not."""

    random: Random
    segments: int = 50
    people: int = 400
    methods: list[MethodChanged] = field(default_factory=list)
    users: list[list[str]] = field(default_factory=list)
    memberships: dict[tuple[int, int], tuple[bool, int]] = field(default_factory=dict)
    """(segment, person) → (is member, version)."""

    def __post_init__(self) -> None:
        for _ in range(self.segments):
            self.users.append([self._id() for _ in range(self.people)])
            self.methods.append(
                MethodChanged(
                    self._id(), START_US, self._id(), 0, self._id(), self._id(), None, "SEGMENT_SYNC", "M", True, True, "student",
                    self._id(),
                )
            )  # fmt: skip

    def first(self) -> Iterator[Event]:
        """All methods, and everybody once: from then on the tables hold as many rows as they ever will."""
        for number in range(self.segments):
            yield self._method(number)
        for segment in range(self.segments):
            for person in range(self.people):
                yield self._membership(segment, person, is_member=True)

    def next_event(self) -> Event:
        if self.random.random() < 1 / METHOD_EVERY:
            return self._method(self.random.randrange(self.segments))
        segment, person = self.random.randrange(self.segments), self.random.randrange(self.people)
        return self._membership(segment, person, is_member=not self.memberships[segment, person][0])

    def expected(self) -> dict[tuple[str, str], list[str]]:
        """(course, user) → roles, of all who are enrolled in the end."""
        return {
            (self.methods[segment].course_id, self.users[segment][person]): [self.methods[segment].role or ""]
            for (segment, person), (is_member, _) in self.memberships.items()
            if is_member
        }

    def _membership(self, segment: int, person: int, *, is_member: bool) -> Event:
        version = self.memberships.get((segment, person), (False, 0))[1] + 1
        self.memberships[segment, person] = (is_member, version)
        method, user = self.methods[segment], self.users[segment][person]
        return MembershipChanged(self._id(), START_US + version, method.segment_id, user, version, is_member)

    def _method(self, number: int) -> Event:
        method = self.methods[number]
        role = ROLES[method.version % len(ROLES)]
        self.methods[number] = replace(method, event_id=self._id(), version=method.version + 1, role=role)
        return self.methods[number]

    def _id(self) -> str:
        return str(UUID(int=self.random.getrandbits(128), version=4))


class Load:
    """Publishes a world's events at a rate, in a thread of its own, from `start` to `stop`."""

    def __init__(self, site: Site, seed: int = 1, *, segments: int = 50, people: int = 400) -> None:
        self.world = World(Random(f"load {seed}"), segments, people)
        self.sent = 0
        self.schema_ids: dict[str, int] = {}
        """By record name, for Confluent framing; empty for single-object encoding. May be replaced under way."""
        self._topics = {MembershipChanged: site.topic("membership"), MethodChanged: site.topic("methods")}
        self._producer = Producer({
            "bootstrap.servers": site.stack.kafka.bootstrap_servers, "linger.ms": 5, "log_level": 0, "enable.idempotence": True,
            "queue.buffering.max.messages": 20_000, "message.timeout.ms": 0, "reconnect.backoff.max.ms": 500,
        })  # fmt: skip
        self._stop = threading.Event()
        self._failures: list[BaseException] = []
        self._thread: threading.Thread | None = None

    def publish_first(self) -> None:
        """Everybody joins."""
        for event in self.world.first():
            self._send(event)
        self._flush()

    def burst(self, events: int) -> None:
        """So many at once, as fast as they can be sent."""
        for _ in range(events):
            self._send(self.world.next_event())
        self._flush()

    def start(self, rate: float) -> None:
        self._stop.clear()
        self._thread = threading.Thread(target=self._body, args=(rate,), name="load", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """What is due is still sent. Raises what made it fail."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_TIMEOUT_S)
            assert not self._thread.is_alive(), "the load did not end in time"
        if self._failures:
            raise self._failures[0]

    def _body(self, rate: float) -> None:
        try:
            began, due, sent = time.monotonic(), 0, 0
            while not self._stop.is_set() or sent < due:
                if not self._stop.is_set():
                    due = int(rate * (time.monotonic() - began))
                if sent >= due:
                    self._producer.poll(0)
                    self._stop.wait(_TURN_S)
                    continue
                self._send(self.world.next_event())
                sent += 1
            self._flush()
        except BaseException as error:  # noqa: BLE001 - raised again by stop
            self._failures.append(error)

    def _send(self, event: Event) -> None:
        name, fields = to_record(event)
        value = encode(name, fields)
        if self.schema_ids:
            value = b"\0" + self.schema_ids[name].to_bytes(4, "big") + value[len(prefix(name)) :]
        while True:
            try:
                self._producer.produce(self._topics[type(event)], value, key_of(event).encode())
            except BufferError:
                self._producer.poll(0.05)
            else:
                break
        self.sent += 1

    def _flush(self) -> None:
        if self._producer.flush(_TIMEOUT_S):
            raise KafkaException("the broker did not take all records of the load")


def differences(site: Site, world: World, chains: ChainReader) -> Iterator[str]:
    """What is not as the newest facts have it, or not as the events told it."""
    rows = {
        (row["course_id"], row["user_id"]): (row["status"], row["roles"])
        for row in site.query("select course_id::text, user_id::text, status, roles from course_enrollment")
    }
    versions = {
        f"{row['course_id']}:{row['user_id']}": row["version"]
        for row in site.query("select course_id::text, user_id::text, version from enrollment where version > 0")
    }
    yield from compare(world.expected(), rows, versions, chains)


def compare(
    expected: Mapping[tuple[str, str], list[str]],
    rows: Mapping[tuple[str, str], tuple[str, list[str]]],
    versions: Mapping[str, int],
    chains: ChainReader,
) -> Iterator[str]:
    """`rows`: status and roles of who is enrolled; `versions`: of all rows there ever were, by the events' key."""
    for pair in sorted(expected.keys() | rows.keys()):
        should = ("ACTIVE", expected[pair]) if pair in expected else None
        if rows.get(pair) != should:
            yield f"wrong: {pair} is {rows.get(pair)}, should be {should}"
    yield from chains.violations
    told = {key.decode(): version for key, version in chains.versions.items()}
    for key in sorted(versions.keys() | told.keys()):
        if versions.get(key) != told.get(key):
            yield f"lost: {key} is at version {versions.get(key)}, the events told {told.get(key)}"
