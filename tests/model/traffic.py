"""Histories at scale, from a seed: hundreds of thousands of events over many segments, people and methods.

The same arguments give the same events, in every process. Nothing here may judge events; the model does that.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any
from uuid import UUID

from tests.model.events import Event, MembershipChanged, MethodChanged, SourceChanged, SourceStatus, SuspensionChanged

START = 1_767_225_600_000_000
MILLISECOND = 1_000
ROLES = ("student", "teacher", "tutor")
SOURCES = ("learning-path", "manual", "self")
STATUSES: tuple[SourceStatus, ...] = ("ACTIVE", "ACTIVE", "SUSPENDED", "ABSENT")
ENABLED: dict[str, Any] = {"active": True, "visible": True, "on_removal": "UNENROLL"}


@dataclass(frozen=True, slots=True)
class Shares:
    """How often each kind of event comes, in proportion to the others."""

    added: float = 0.6
    removed: float = 0.25
    source: float = 0.1
    suspension: float = 0.05
    method: float = 0.0005


@dataclass(frozen=True, slots=True)
class Disorder:
    """Probabilities that an event is an older version, a repetition, or the last version with other content."""

    stale: float = 0.01
    repeated: float = 0.01
    conflicting: float = 0.0


class _Traffic:
    def __init__(self, random: Random, segments: int, users: int, methods_per_segment: int, courses: int) -> None:
        self.random = random
        self.events: list[Event] = []
        self.segments = [self._uuid() for _ in range(segments)]
        self.users = [self._uuid() for _ in range(users)]
        self.courses = [self._uuid() for _ in range(courses)]
        # A group belongs to one course.
        self.groups = {course: [self._uuid() for _ in range(3)] for course in self.courses}
        self.methods: list[MethodChanged] = []
        self.newest: dict[tuple[str, ...], Event] = {}
        self.sent_late: set[tuple[tuple[str, ...], int]] = set()
        for segment in self.segments:
            for _ in range(methods_per_segment):
                self._make_method(segment)

    def _uuid(self) -> str:
        return str(UUID(int=self.random.getrandbits(128), version=4))

    def _stamp(self) -> tuple[str, int]:
        return self._uuid(), START + len(self.events) * MILLISECOND

    def _make_method(self, segment: str) -> None:
        course = self.random.choice(self.courses)
        is_sync = self.random.random() < 0.9
        group = self.random.choice(self.groups[course])
        method = MethodChanged(
            *self._stamp(),
            method_id=self._uuid(),
            version=1,
            course_id=course,
            segment_id=segment,
            segment_name=f"Segment {self.segments.index(segment)}",
            kind="SEGMENT_SYNC" if is_sync else "SEGMENT_GROUP",
            name=f"Method {len(self.methods)}",
            active=True,
            visible=True,
            role=self.random.choice(ROLES) if is_sync else None,
            group_id=group if not is_sync or self.random.random() < 0.7 else None,
        )
        self.methods.append(method)
        self.events.append(method)

    def change_method(self, number: int, changes: dict[str, Any]) -> None:
        method = self.methods[number]
        event_id, occurred_at = self._stamp()
        self.methods[number] = replace(
            method, event_id=event_id, occurred_at=occurred_at, version=method.version + 1, **changes
        )
        self.events.append(self.methods[number])

    def change_some_method(self) -> None:
        number = self.random.randrange(len(self.methods))
        method = self.methods[number]
        group = self.random.choice(self.groups[method.course_id])
        role = self.random.choice(ROLES) if method.kind == "SEGMENT_SYNC" else None
        changes: Sequence[dict[str, Any]] = (
            {"active": not method.active},
            {"visible": not method.visible},
            {"segment_id": self.random.choice(self.segments)},
            {"role": role},
            {"group_id": group},
            {"on_removal": self.random.choice(("UNENROLL", "SUSPEND", "SUSPEND_WITHOUT_ROLES"))},
            {"name": f"{method.name[:200]}'"},
            {"deleted": True},
        )
        self.change_method(number, self.random.choice(changes))

    def change_fact(self, kind: str, disorder: Disorder) -> None:
        user = self.random.choice(self.users)
        draw = self.random.random()
        stamp = self._stamp()
        event: MembershipChanged | SourceChanged | SuspensionChanged
        entity: tuple[str, ...]
        if kind == "source":
            course, source = self.random.choice(self.courses), self.random.choice(SOURCES)
            entity = (course, user, source)
            status = self.random.choice(STATUSES)
            event = SourceChanged(*stamp, course, user, source, 1, status, self.random.choice((*ROLES, None)))
        elif kind == "suspension":
            course = self.random.choice(self.courses)
            entity = ("suspension", course, user)
            event = SuspensionChanged(*stamp, course, user, 1, self.random.random() < 0.4)
        else:
            segment = self.random.choice(self.segments)
            entity = (segment, user)
            event = MembershipChanged(*stamp, segment, user, 1, kind == "added")
        self._send(entity, event, draw, disorder)

    def _send(
        self,
        entity: tuple[str, ...],
        event: MembershipChanged | SourceChanged | SuspensionChanged,
        draw: float,
        disorder: Disorder,
    ) -> None:
        newest = self.newest.get(entity)
        # Publishers here count in twos, so an odd version is one that nobody has seen, once.
        between = (entity, newest.version - 1 if newest else 0)
        if newest is None:
            self.newest[entity] = event = replace(event, version=2)
        elif draw < disorder.repeated:
            self.events.append(newest)
            return
        elif draw < disorder.repeated + disorder.stale:
            if between in self.sent_late:
                return
            self.sent_late.add(between)
            event = replace(event, version=newest.version - 1)
        elif draw < disorder.repeated + disorder.stale + disorder.conflicting:
            event = replace(event, version=newest.version)
        else:
            self.newest[entity] = event = replace(event, version=newest.version + 2)
        self.events.append(event)


def random_history(
    seed: int,
    *,
    events: int = 200_000,
    segments: int = 100,
    users: int = 1_000,
    methods_per_segment: int = 5,
    courses: int = 100,
    shares: Shares = Shares(),
    disorder: Disorder = Disorder(),
) -> list[Event]:
    """`events` events: all methods first, then a mixture; they end with every method enabled with UNENROLL, or deleted.

    So the end is the same in any order and any batching (semantics §4), while `disorder.conflicting` is 0. With
    conflicts, which content stands depends on the order of arrival.
    """
    traffic = _Traffic(Random(seed), segments, users, methods_per_segment, courses)
    kinds = ("added", "removed", "source", "suspension", "method")
    weights = (
        shares.added,
        shares.removed,
        shares.source,
        shares.suspension,
        shares.method if traffic.methods else 0.0,
    )
    # What remains is for the last word on every method.
    while len(traffic.events) < events - len(traffic.methods):
        kind = traffic.random.choices(kinds, weights)[0]
        if kind == "method":
            traffic.change_some_method()
        else:
            traffic.change_fact(kind, disorder)
    for number in range(len(traffic.methods)):
        traffic.change_method(number, ENABLED)
    return traffic.events


def in_batches(events: Iterable[Event], size: int) -> list[list[Event]]:
    together = list(events)
    return [together[start : start + size] for start in range(0, len(together), size)]
