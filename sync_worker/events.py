"""The facts that input events carry, and the records they arrive in: what the rooms hand to one another.

Plain data only. An id is held as its 16 bytes: half of what PostgreSQL receives is ids, and bytes sort, compare and pack
as its `uuid` does. Named tuples, not dataclasses: there is one per input record, and they cost a third as much to make.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, NamedTuple, NewType
from uuid import UUID

from sync_worker.errors import RejectionReason

CourseId = NewType("CourseId", bytes)
UserId = NewType("UserId", bytes)
SegmentId = NewType("SegmentId", bytes)
MethodId = NewType("MethodId", bytes)
GroupId = NewType("GroupId", bytes)
EventId = NewType("EventId", bytes)

NAMESPACE = "user_segment_sync.v1"

new_tuple = tuple.__new__
"""What a named tuple's own __new__ ends in, at a third of its cost, for the few that are made once per event."""


def text_of(id_: bytes) -> str:
    """An id in the canonical 8-4-4-4-12 form."""
    return str(UUID(bytes=id_))


class RecordName(StrEnum):
    """The records of contract §2, without their namespace."""

    MEMBER_ADDED = "SegmentMemberAdded"
    MEMBER_REMOVED = "SegmentMemberRemoved"
    METHOD_CHANGED = "EnrollmentMethodChanged"
    SOURCE_CHANGED = "EnrollmentSourceChanged"
    SUSPENSION_CHANGED = "CourseSuspensionChanged"
    ENROLLMENT_CHANGED = "EnrollmentChanged"


class MethodKind(StrEnum):
    """`SEGMENT_SYNC` enrolls; `SEGMENT_GROUP` only gives a group to those enrolled otherwise (semantics §3)."""

    SEGMENT_SYNC = "SEGMENT_SYNC"
    SEGMENT_GROUP = "SEGMENT_GROUP"


class Membership(NamedTuple):
    """Whether a user is in a segment, from SegmentMemberAdded or SegmentMemberRemoved."""

    segment_id: SegmentId
    user_id: UserId
    is_member: bool
    version: int
    event_id: EventId
    occurred_at: int  # microseconds since 1970, UTC
    traceparent: str | None


class Method(NamedTuple):
    """An enrollment method as EnrollmentMethodChanged describes it: its full state."""

    method_id: MethodId
    version: int
    course_id: CourseId
    segment_id: SegmentId
    segment_name: str | None
    kind: str
    name: str
    active: bool
    visible: bool
    role: str | None
    group_id: GroupId | None
    on_removal: str
    deleted: bool
    event_id: EventId
    occurred_at: int
    traceparent: str | None


class Source(NamedTuple):
    """Another way into a course, from EnrollmentSourceChanged."""

    course_id: CourseId
    user_id: UserId
    source: str
    status: str
    role: str | None
    version: int
    event_id: EventId
    occurred_at: int
    traceparent: str | None


class Suspension(NamedTuple):
    """Whether a user is suspended in a course, from CourseSuspensionChanged."""

    course_id: CourseId
    user_id: UserId
    suspended: bool
    version: int
    event_id: EventId
    occurred_at: int
    traceparent: str | None


Event = Membership | Method | Source | Suspension


class Partition(NamedTuple):
    """One partition of an input topic."""

    topic: str
    number: int

    def __str__(self) -> str:
        return f"{self.topic}[{self.number}]"


class Rejection(NamedTuple):
    """The verdict on a record that can never be applied."""

    reason: RejectionReason
    detail: str


Headers = Sequence[tuple[str, bytes | None]]


class Record:
    """One step of an input partition: an event, a rejected record, or (content None) something that only moves the position.

    `next_offset` is the partition's position once this record is applied. `message` keeps the Kafka message for as long as
    it may still become a dead letter; None where the record is only an end-of-partition mark. `headers` are the message's,
    read once; None where they can't be read at all.
    """

    __slots__ = ("content", "headers", "message", "next_offset", "partition")

    def __init__(
        self,
        partition: Partition,
        next_offset: int,
        content: "Event | Rejection | None",
        message: Any = None,  # a confluent_kafka.Message, which only intake may know
        headers: Headers | None = (),
    ) -> None:
        self.partition = partition
        self.next_offset = next_offset
        self.content = content
        self.message = message
        self.headers = headers
