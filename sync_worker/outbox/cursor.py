"""How far the relay got, as a record in the Kafka transaction that got it there (design §5).

The cursor and the window table check each other: whatever doesn't fit means that the database or Kafka is another one or
went back, and publishing on would lose or repeat events.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from confluent_kafka import Consumer, KafkaError, TopicPartition

from sync_worker.errors import FatalError, RetryableError
from sync_worker.events import Partition
from sync_worker.kafka.broker import Broker
from sync_worker.outbox.windows import NOTHING_SEEN, Window

READ_TIMEOUT_S = 30.0
_FIRST_LOOK_BACK = 100


@dataclass(frozen=True, slots=True)
class Cursor:
    """The last thing published: a window, up to a row's id, and whether that was all of it."""

    window: int
    last_id: int
    complete: bool
    system_identifier: str

    def to_bytes(self) -> bytes:
        return json.dumps(
            {
                "window": self.window,
                "last_id": self.last_id,
                "complete": self.complete,
                "system_identifier": self.system_identifier,
            }
        ).encode()

    @classmethod
    def from_bytes(cls, value: bytes) -> "Cursor":
        fields = json.loads(value)
        return cls(fields["window"], fields["last_id"], fields["complete"], fields["system_identifier"])


@dataclass(frozen=True, slots=True)
class Resume:
    """Where publishing goes on: inside `window` above `after_id`, or, where it is None, with a new window numbered `next_number`."""

    window: Window | None
    after_id: int
    next_number: int
    next_from: str


def read_cursor(
    broker: Broker, config: Mapping[str, Any], topic: str, group: str, *, logger: Any = None
) -> Cursor | None:
    """The last committed cursor of this consumer group, read up to the end as it is now.

    Call it after the former leader was fenced. An open transaction of another group may hide what lies behind it, so this
    waits until everything up to the end is readable.
    """
    partition = Partition(topic, 0)
    low, high = broker.earliest([partition])[partition], broker.end([partition])[partition]
    consumer = Consumer(
        dict(config)
        | {
            "group.id": f"{group}-cursor",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "auto.offset.reset": "error",
        }
        | ({"logger": logger} if logger is not None else {})
    )
    try:
        look_back = _FIRST_LOOK_BACK
        while True:
            start = max(low, high - look_back)
            found = _last_of(consumer, TopicPartition(topic, 0, start), high, group.encode())
            if found is not None or start == low:
                return None if found is None else Cursor.from_bytes(found)
            look_back *= 20
    finally:
        consumer.close()


def _last_of(consumer: Consumer, start: TopicPartition, high: int, key: bytes) -> bytes | None:
    """The last value of a key from an offset up to the end `high`."""
    if start.offset >= high:
        return None
    consumer.assign([start])
    deadline = time.monotonic() + READ_TIMEOUT_S
    found: bytes | None = None
    while time.monotonic() < deadline:
        message = consumer.poll(0.5)
        if message is None:
            continue
        error = message.error()
        if error is None:
            if message.key() == key:
                found = message.value()
            if (message.offset() or 0) + 1 >= high:
                return found
        elif error.code() == KafkaError._PARTITION_EOF:
            if (message.offset() or 0) >= high:
                return found
        elif not error.retriable() and error.code() not in {KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN}:
            raise RetryableError(f"reading the relay's cursor from {start.topic}: {error.str()}")
    raise RetryableError(
        f"reading the relay's cursor: {start.topic} is not readable up to its end {high}, as a transaction in it is open, or was "
        "never ended: if this stays for longer than its timeout, see docs/runbook.md, A transaction that never ends"
    )


def resume(last: Window | None, cursor: Cursor | None, system_identifier: str) -> Resume:
    """Where to go on. Raises FatalError where database and Kafka don't belong together."""
    if last is None:
        if cursor is not None:
            raise _misfit(f"Kafka's cursor stands at window {cursor.window}, the database has published nothing yet")
        return Resume(None, 0, 1, NOTHING_SEEN)
    for name, identifier in (
        ("the last window", last.system_identifier),
        ("Kafka's cursor", cursor.system_identifier if cursor else None),
    ):
        if identifier not in {None, system_identifier}:
            raise _misfit(f"{name} was written for the database system {identifier}, this one is {system_identifier}")
    if cursor is None:
        if last.number > 1 or last.published:
            raise _misfit(f"the database has published up to window {last.number}, but Kafka holds no cursor")
        return Resume(last, 0, 2, last.to)
    if cursor.window == last.number and (cursor.complete or not last.published):
        if cursor.complete:
            return Resume(None, 0, last.number + 1, last.to)
        return Resume(last, cursor.last_id, last.number + 1, last.to)
    if cursor.window == last.number - 1 and cursor.complete and not last.published:
        return Resume(last, 0, last.number + 1, last.to)
    state = "published" if last.published else "begun"
    raise _misfit(f"the database has {state} window {last.number}, Kafka's cursor stands at window {cursor.window}")


def _misfit(what: str) -> FatalError:
    return FatalError(
        f"{what}: this database and this Kafka don't belong together (a restored backup, a failover that lost transactions, a "
        "database moved by dump, a Kafka made anew). Publishing on would lose or repeat events. Look with `sync-worker relay "
        "show`, then choose with `sync-worker relay adopt`; docs/recovery.md says how"
    )
