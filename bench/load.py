"""What is published: methods, and memberships that each touch every method of one segment, so that what must come of it is known.

The same facts as Kafka records, as decoded records for the bare SQL, and as the sequential model's events. Encoded before any
clock runs; must never depend on the worker's own encoder.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from io import BytesIO
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import fastavro
from fastavro.schema import fingerprint, to_parsing_canonical_form

from sync_worker.events import CourseId, EventId, Membership, Method, MethodId, Partition, Record, SegmentId, UserId
from tests.model.events import MembershipChanged, MethodChanged

SCHEMAS = Path(__file__).resolve().parents[1] / "schemas"
START_US = 1_767_225_600_000_000
PHASES = ("adds", "mixed", "removes")


@dataclass(frozen=True, slots=True)
class Published:
    """A record as a publisher sends it."""

    key: bytes
    value: bytes


@dataclass(frozen=True)
class Load:
    """`users` people, each of them in one of `segments` segments, each of which has `methods` methods in courses of their own.

    zipf: the second segment has half as many people as the first, the third a third, and so on. of_each: how many segments each
    person is in, of as many memberships in total. one_course: all methods are in one.
    """

    users: int
    methods: int
    segments: int = 100
    seed: int = 1
    zipf: bool = False
    of_each: int = 1
    one_course: bool = False
    _random: Random = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_random", Random(self.seed))

    @cached_property
    def segment_ids(self) -> list[bytes]:
        return [self._id() for _ in range(self.segments)]

    @cached_property
    def method_events(self) -> list[Method]:
        course = CourseId(self._id()) if self.one_course else None
        return [
            Method(
                method_id=MethodId(self._id()), version=1, course_id=course or CourseId(self._id()), segment_id=SegmentId(segment),
                segment_name="A segment", kind="SEGMENT_SYNC", name="A method", active=True, visible=True, role="student", group_id=None,
                on_removal="UNENROLL", deleted=False, event_id=EventId(self._id()), occurred_at=START_US, traceparent=None,
            )
            for segment in self.segment_ids
            for _ in range(self.methods)
        ]  # fmt: skip

    @cached_property
    def people(self) -> list[tuple[bytes, bytes]]:
        """(segment, user) of each membership."""
        return self._people()

    @cached_property
    def newcomers(self) -> list[tuple[bytes, bytes]]:
        """Half as many, of whom nobody knew before `mixed`."""
        return self._people()[: self.users // 2]

    # Phases: each of `users` events that touch each their own people, so that what comes of them doesn't depend on how they are cut.

    @cached_property
    def adds(self) -> list[Membership]:
        return self._membership(self.people, 1, is_member=True)

    @cached_property
    def mixed(self) -> list[Membership]:
        """Half of the people leave, and as many newcomers join, in turn."""
        leaving = self._membership(self.people[: self.users // 2], 2, is_member=False)
        joining = self._membership(self.newcomers, 1, is_member=True)
        return list(chain.from_iterable(zip(leaving, joining, strict=True)))

    @cached_property
    def removes(self) -> list[Membership]:
        """Whoever is left leaves."""
        return self._membership([*self.people[self.users // 2 :], *self.newcomers], 2, is_member=False)

    def phase(self, name: str) -> list[Membership]:
        """One of PHASES."""
        return {"adds": lambda: self.adds, "mixed": lambda: self.mixed, "removes": lambda: self.removes}[name]()

    def _people(self) -> list[tuple[bytes, bytes]]:
        if self.zipf:
            weights = [1 / rank for rank in range(1, self.segments + 1)]
            segments = self._random.choices(self.segment_ids, weights, k=self.users)
        else:
            segments = [self.segment_ids[n % self.segments] for n in range(self.users)]
        if self.of_each > 1:
            people = [self._id() for _ in range(-(-self.users // self.of_each))]
            return [(segment, people[n // self.of_each]) for n, segment in enumerate(segments)]
        return [(segment, self._id()) for segment in segments]

    def _membership(self, people: list[tuple[bytes, bytes]], version: int, *, is_member: bool) -> list[Membership]:
        return [
            Membership(
                SegmentId(segment), UserId(user), is_member, version, EventId(self._id()), START_US + version, None
            )
            for segment, user in people
        ]

    def memberships(self, *, is_member: bool, version: int) -> list[Membership]:
        """Everybody's."""
        return self._membership(self.people, version, is_member=is_member)

    def _id(self) -> bytes:
        return UUID(int=self._random.getrandbits(128), version=4).bytes


def as_records(events: list[Membership]) -> list[Record]:
    """As intake hands them over."""
    partition = Partition("memory", 0)
    return [Record(partition, n, event) for n, event in enumerate(events, start=1)]


def as_model(event: Membership | Method) -> MembershipChanged | MethodChanged:
    """As the sequential model takes it."""
    fields = _as_text(event)
    del fields["traceparent"]
    return MethodChanged(**fields) if isinstance(event, Method) else MembershipChanged(**fields)


def as_published(events: list[Membership] | list[Method]) -> list[Published]:
    """As a publisher sends them, in single-object encoding."""
    return list(_published(events))


def _published(events: list[Membership] | list[Method]) -> Iterator[Published]:
    for event in events:
        fields = _as_text(event)
        if isinstance(event, Method):
            name, key = "EnrollmentMethodChanged", fields["method_id"]
        else:
            name, key = ("SegmentMemberAdded" if event.is_member else "SegmentMemberRemoved"), fields["user_id"]
        parsed, prefix = _schema(name)
        buffer = BytesIO(prefix)
        buffer.seek(len(prefix))
        fastavro.schemaless_writer(buffer, parsed, fields)
        yield Published(key.encode(), buffer.getvalue())


def _as_text(event: Membership | Method) -> dict[str, Any]:
    return {
        name: str(UUID(bytes=value)) if isinstance(value, bytes) else value for name, value in event._asdict().items()
    }


@cache
def _schema(name: str) -> tuple[Any, bytes]:
    raw = json.loads((SCHEMAS / f"{name}.avsc").read_text("utf-8"))
    mark = b"\xc3\x01" + bytes.fromhex(fingerprint(to_parsing_canonical_form(raw), "CRC-64-AVRO"))
    return fastavro.parse_schema(raw), mark
