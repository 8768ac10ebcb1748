"""What there is to judge of a run, as plain data: input as the topics hold it, rows, output, and what was seen on the way.

Collected by fastavro and psycopg alone. A history can be made by hand, which is how the checkers themselves are tested.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from io import BytesIO
from typing import Any

import fastavro

from tests.faults.editing import Edited
from tests.faults.publishing import Sent
from tests.faults.sending import Garbage
from tests.faults.watching import Seen
from tests.faults.workers import End
from tests.model.events import Event
from tests.support.kafka import KafkaRecord
from tests.support.wire import SCHEMAS, prefix

Pair = tuple[str, str]
CONFLUENT_PREFIX_BYTES = 5


@dataclass(frozen=True, slots=True)
class Input:
    """A committed record of an input topic, and what it means by the plan. `record.topic` is its short name here."""

    record: KafkaRecord
    content: Event | Garbage | None


@dataclass(frozen=True, slots=True)
class Change:
    """An EnrollmentChanged as it was read."""

    record: KafkaRecord
    event: dict[str, Any]

    @property
    def pair(self) -> Pair:
        return self.event["course_id"], self.event["user_id"]


@dataclass(slots=True)
class Tables:
    """The tables and views in the end, ids as text."""

    memberships: dict[tuple[str, str], tuple[bool, int]] = field(default_factory=dict)
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)
    sources: dict[tuple[str, str, str], tuple[str, str | None, int]] = field(default_factory=dict)
    rows: dict[Pair, dict[str, Any]] = field(default_factory=dict)
    """enrollment: sources, hand, suspended, suspension_version, version."""
    enrollments: dict[Pair, dict[str, Any]] = field(default_factory=dict)
    """course_enrollment."""
    members: set[tuple[str, str, str, bool, tuple[str, ...]]] = field(default_factory=set)
    """course_group_member."""
    positions: dict[tuple[str, int], int] = field(default_factory=dict)
    outbox: list[tuple[str, str, int]] = field(default_factory=list)
    """(course, user, version) of the changes that are still there, published or not."""


@dataclass(frozen=True, slots=True)
class Leftovers:
    """What is still there after the workers stopped."""

    sessions: Sequence[str] = ()
    advisory_locks: int = 0
    idle_in_transaction: int = 0
    processes: Sequence[str] = ()


@dataclass(slots=True)
class History:
    """All of it. `settled` is why the site never came to rest, or empty."""

    inputs: list[Input] = field(default_factory=list)
    acknowledged: dict[Sent, int] = field(default_factory=dict)
    aborted: set[bytes] = field(default_factory=set)
    changes: list[Change] = field(default_factory=list)
    followed: list[Change] = field(default_factory=list)
    followed_uncommitted: list[Change] = field(default_factory=list)
    dead_letters: list[KafkaRecord] = field(default_factory=list)
    tables: Tables = field(default_factory=Tables)
    edits: list[Edited] = field(default_factory=list)
    seen: Seen = field(default_factory=Seen)
    ends: list[End] = field(default_factory=list)
    leftovers: Leftovers = field(default_factory=Leftovers)
    topics: dict[str, str] = field(default_factory=dict)
    """The run's topics by their short names."""
    unsettled: str = ""


def changes_of(records: Iterable[KafkaRecord], *, confluent: bool = False) -> list[Change]:
    """Raises AssertionError for bytes that are no EnrollmentChanged, which no reader could use."""
    return [Change(record, _read(record.value or b"", confluent=confluent)) for record in records]


@lru_cache(maxsize=500_000)
def _read(value: bytes, *, confluent: bool) -> dict[str, Any]:
    """Each is read several times over, by several readers; so nobody may change what this gives."""
    if confluent:
        assert value[:1] == b"\0", value[:8]
        start = CONFLUENT_PREFIX_BYTES
    else:
        assert value.startswith(prefix("EnrollmentChanged")), value[:10]
        start = len(prefix("EnrollmentChanged"))
    stream = BytesIO(value)
    stream.seek(start)
    event: Any = fastavro.schemaless_reader(stream, _schema(), None)
    assert stream.tell() == len(value), "bytes after the datum"
    return event  # type: ignore[no-any-return]  # a record


@cache
def _schema() -> Any:
    """Without logical types: ids stay text, times numbers."""
    return fastavro.parse_schema(plain(json.loads((SCHEMAS / "EnrollmentChanged.avsc").read_text("utf-8"))))


def plain(schema: Any) -> Any:
    """A schema without logical types."""
    if isinstance(schema, dict):
        return {name: plain(value) for name, value in schema.items() if name != "logicalType"}
    return [plain(item) for item in schema] if isinstance(schema, list) else schema
