"""What is to be published and typed in, as plain data: records with their time, topic, partition, key and bytes or event.

A record's meaning is known here, before anybody encodes it; the checkers compare what came of it with this. Nothing here
may depend on what the worker makes of a record.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tests.model.events import Event, HandEdit

Topic = Literal["membership", "methods", "sources"]
Framing = Literal["single", "confluent"]
Reason = Literal["undecodable", "unknown_schema", "invalid_event"]
Headers = tuple[tuple[str, bytes | None], ...]


@dataclass(frozen=True, slots=True)
class Garbage:
    """Bytes that can never be an event here, and what the dead letter must say of them."""

    value: bytes
    reason: Reason


@dataclass(frozen=True, slots=True)
class Sending:
    """One record. Its transaction is None where its producer has none."""

    at_s: float
    topic: Topic
    partition: int
    """Modulo the partitions that the topic has by then."""
    key: bytes | None
    content: Event | Garbage | None
    """None: a record without value, which is no event."""
    headers: Headers = ()
    framing: Framing = "single"


@dataclass(frozen=True, slots=True)
class Transaction:
    """What a transactional producer sends as one; an aborted one must never have been."""

    at_s: float
    records: tuple[Sending, ...]
    aborted: bool


@dataclass(frozen=True, slots=True)
class HandWork:
    """A user's transaction on the group view, with a pause after each edit."""

    at_s: float
    edits: tuple[HandEdit, ...]
    pause_s: float
    rolled_back: bool


@dataclass(frozen=True, slots=True)
class Traffic:
    """All input of a run. Each element of `plain` and `transactional` is one producer's, in order of time."""

    plain: tuple[tuple[Sending, ...], ...]
    transactional: tuple[tuple[Transaction, ...], ...]
    by_hand: tuple[HandWork, ...]

    @property
    def records(self) -> int:
        transactions = [each for producer in self.transactional for each in producer]
        return sum(map(len, self.plain)) + sum(len(each.records) for each in transactions if not each.aborted)
