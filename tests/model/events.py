"""The input events as plain data, with the record, topic and key under which a publisher would send each of them.

An event may be wrong here (a method without its role, a version of 0): histories need such events, and the model
judges them. Nothing in this module may check or repair what it is given.
"""

from dataclasses import asdict, dataclass, replace
from typing import Literal

MethodKind = Literal["SEGMENT_SYNC", "SEGMENT_GROUP"]
OnRemoval = Literal["UNENROLL", "SUSPEND", "SUSPEND_WITHOUT_ROLES"]
SourceStatus = Literal["ACTIVE", "SUSPENDED", "ABSENT"]

MEMBERSHIP_TOPIC = "segments.membership"
METHODS_TOPIC = "enrollment.methods"
SOURCES_TOPIC = "enrollment.sources"


@dataclass(frozen=True, slots=True)
class MembershipChanged:
    """SegmentMemberAdded or SegmentMemberRemoved, told apart by `is_member`; one entity, so one class."""

    event_id: str
    occurred_at: int
    segment_id: str
    user_id: str
    version: int
    is_member: bool


@dataclass(frozen=True, slots=True)
class MethodChanged:
    event_id: str
    occurred_at: int
    method_id: str
    version: int
    course_id: str
    segment_id: str
    segment_name: str | None
    kind: MethodKind
    name: str
    active: bool
    visible: bool
    role: str | None
    group_id: str | None
    on_removal: OnRemoval = "UNENROLL"
    deleted: bool = False

    @property
    def enabled(self) -> bool:
        return self.active and self.visible


@dataclass(frozen=True, slots=True)
class SourceChanged:
    event_id: str
    occurred_at: int
    course_id: str
    user_id: str
    source: str
    version: int
    status: SourceStatus
    role: str | None


@dataclass(frozen=True, slots=True)
class SuspensionChanged:
    event_id: str
    occurred_at: int
    course_id: str
    user_id: str
    version: int
    suspended: bool


Event = MembershipChanged | MethodChanged | SourceChanged | SuspensionChanged
Entity = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HandEdit:
    """One INSERT or DELETE on the view course_group_member, a transaction of its own."""

    action: Literal["insert", "delete"]
    course_id: str
    group_id: str
    user_id: str


Step = Event | HandEdit
Batch = list[Event] | HandEdit


def record_name(event: Event) -> str:
    match event:
        case MembershipChanged():
            return "SegmentMemberAdded" if event.is_member else "SegmentMemberRemoved"
        case MethodChanged():
            return "EnrollmentMethodChanged"
        case SourceChanged():
            return "EnrollmentSourceChanged"
        case SuspensionChanged():
            return "CourseSuspensionChanged"


def to_record(event: Event) -> tuple[str, dict[str, object]]:
    """The record's name and its fields, named and ordered as in contract §2; `occurred_at` in microseconds."""
    fields: dict[str, object] = asdict(event)
    # Whether somebody is a member is said by the record's name, not by a field.
    fields.pop("is_member", None)
    return record_name(event), fields


def topic_of(event: Event) -> str:
    """The default topic of contract §1."""
    match event:
        case MembershipChanged():
            return MEMBERSHIP_TOPIC
        case MethodChanged():
            return METHODS_TOPIC
        case SourceChanged() | SuspensionChanged():
            return SOURCES_TOPIC


def key_of(event: Event) -> str:
    """The key a well-behaved publisher gives (contract §1); the result must not depend on it."""
    match event:
        case MembershipChanged():
            return event.user_id
        case MethodChanged():
            return event.method_id
        case SourceChanged() | SuspensionChanged():
            return f"{event.course_id}:{event.user_id}"


def entity_of(event: Event) -> Entity:
    """What `version` counts (contract §2), led by a word that keeps entities of different kinds apart."""
    match event:
        case MembershipChanged():
            return ("membership", event.segment_id, event.user_id)
        case MethodChanged():
            return ("method", event.method_id)
        case SourceChanged():
            return ("source", event.course_id, event.user_id, event.source)
        case SuspensionChanged():
            return ("suspension", event.course_id, event.user_id)


def same_content(one: Event, other: Event) -> bool:
    """Whether all fields but event_id and occurred_at are equal (contract §2)."""
    return one == replace(other, event_id=one.event_id, occurred_at=one.occurred_at)
