"""Events for tests that apply them by hand: made in one line, and told to the worker's code as intake would have decoded them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

from sync_worker import events as worker_events
from sync_worker.enrollment.folding import Facts, fold
from sync_worker.events import Partition, Record
from tests.model.events import Event, MembershipChanged, MethodChanged, SourceChanged, SuspensionChanged

ANYWHERE = Partition("anywhere", 0)
AT = 1_767_225_600_000_000


def fact_of(event: Event) -> worker_events.Event:
    """A model's event as intake would have decoded it."""
    rest: tuple[Any, ...] = (event.version, _id(event.event_id), event.occurred_at, None)
    match event:
        case MembershipChanged():
            return worker_events.Membership(_id(event.segment_id), _id(event.user_id), event.is_member, *rest)
        case SourceChanged():
            return worker_events.Source(
                _id(event.course_id), _id(event.user_id), event.source, event.status, event.role, *rest
            )
        case SuspensionChanged():
            return worker_events.Suspension(_id(event.course_id), _id(event.user_id), event.suspended, *rest)
        case MethodChanged():
            return worker_events.Method(
                method_id=_id(event.method_id),
                version=event.version,
                course_id=_id(event.course_id),
                segment_id=_id(event.segment_id),
                segment_name=event.segment_name,
                kind=event.kind,
                name=event.name,
                active=event.active,
                visible=event.visible,
                role=event.role,
                group_id=None if event.group_id is None else _id(event.group_id),
                on_removal=event.on_removal,
                deleted=event.deleted,
                event_id=_id(event.event_id),
                occurred_at=event.occurred_at,
                traceparent=None,
            )


def _id(text: str) -> Any:
    return UUID(text).bytes


def records_of(events: Iterable[Event], partition: Partition = ANYWHERE, first_offset: int = 0) -> list[Record]:
    """Events as the records of one partition, one offset each."""
    return [Record(partition, first_offset + n + 1, fact_of(event)) for n, event in enumerate(events)]


def facts_of(events: Iterable[Event]) -> Facts:
    """Events folded as one transaction; they must not be such that the batch is cut."""
    records = records_of(events)
    facts = fold(records, {})
    assert facts.consumed == len(records), "the batch is cut: give it to several calls"
    return facts


def new_id() -> str:
    return str(uuid4())


def member(segment: str, user: str, version: int, *, is_member: bool = True) -> MembershipChanged:
    return MembershipChanged(new_id(), AT, segment, user, version, is_member)


def method(
    segment: str, course: str, *, method_id: str | None = None, version: int = 1, **fields: Any
) -> MethodChanged:
    """An enabled method with a role, unless fields say otherwise."""
    return MethodChanged(
        **{
            "event_id": new_id(),
            "occurred_at": AT,
            "method_id": method_id or new_id(),
            "version": version,
            "course_id": course,
            "segment_id": segment,
            "segment_name": "A segment",
            "kind": "SEGMENT_SYNC",
            "name": "A method",
            "active": True,
            "visible": True,
            "role": "student",
            "group_id": None,
            **fields,
        }
    )


def changed(before: MethodChanged, version: int, **fields: object) -> MethodChanged:
    """The next event of a method, with other fields."""
    return replace(before, event_id=new_id(), version=version, **fields)  # type: ignore[arg-type]  # a test's own


def source(course: str, user: str, version: int, status: Any = "ACTIVE", role: str | None = "teacher") -> SourceChanged:
    return SourceChanged(new_id(), AT, course, user, "manual", version, status, role)


def suspension(course: str, user: str, version: int, *, suspended: bool = True) -> SuspensionChanged:
    return SuspensionChanged(new_id(), AT, course, user, version, suspended)
