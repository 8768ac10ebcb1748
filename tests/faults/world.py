"""Who and what there is in a run: segments, people, courses, groups and methods, some of them hot, and what may happen next.

Ids and choices come from the one generator that is given. It must never invent a version: what is newest is the teller's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import Any
from uuid import UUID

from tests.model.events import Event, MembershipChanged, MethodChanged, SourceChanged, SourceStatus, SuspensionChanged

START_US = 1_767_225_600_000_000
ROLES = ("student", "teacher", "tutor", "Зрячий 🙂")
SOURCES = ("learning-path", "manual", "self")
STATUSES: tuple[SourceStatus, ...] = ("ACTIVE", "ACTIVE", "SUSPENDED", "ABSENT", "ABSENT")
POLICIES = ("UNENROLL", "UNENROLL", "SUSPEND", "SUSPEND_WITHOUT_ROLES")


@dataclass(frozen=True, slots=True)
class Scale:
    """How large a run's world is."""

    segments: int
    users: int
    courses: int
    methods: int
    crowd: int
    """Further members of the hot segment, who do nothing else."""
    sends_per_s: float
    method_share: float


def draw_scale(random: Random) -> Scale:
    return Scale(
        segments=random.randint(2, 10),
        users=random.choice((8, 40, 150, 300)),
        courses=random.randint(1, 6),
        methods=random.randint(3, 25),
        crowd=random.choice((0, 0, 1500, 3500)),
        sends_per_s=random.choice((10.0, 25.0, 50.0)),
        method_share=random.choice((0.01, 0.03, 0.1)),
    )


class World:
    """Draws events without a version, near to what is: methods change from their present state."""

    def __init__(self, random: Random, scale: Scale) -> None:
        self.random = random
        self.scale = scale
        self.segments = [self.uuid() for _ in range(scale.segments)]
        self.users = [self.uuid() for _ in range(scale.users)]
        self.courses = [self.uuid() for _ in range(scale.courses)]
        # A group belongs to one course.
        self.groups = {course: [self.uuid() for _ in range(3)] for course in self.courses}
        self.methods: dict[str, MethodChanged] = {}

    def uuid(self) -> str:
        return str(UUID(int=self.random.getrandbits(128), version=4))

    def at_us(self, at_s: float) -> int:
        return START_US + int(at_s * 1_000_000)

    def some_seat(self) -> tuple[str, str, str]:
        """(course, group, user), mostly of those to whom much happens."""
        course = self._hot(self.courses, 0.4)
        return course, self.random.choice(self.groups[course]), self._hot(self.users, 0.3)

    def remember(self, event: Event) -> None:
        """This is how its publisher sees it now."""
        if isinstance(event, MethodChanged):
            self.methods[event.method_id] = event

    def next_event(self, at_s: float) -> Event:
        """Something that happens, without version."""
        stamp = (self.uuid(), self.at_us(at_s))
        draw = self.random.random()
        share = self.scale.method_share
        if draw < share or (len(self.methods) < self.scale.methods and draw < share + 0.1):
            return self._method(stamp)
        user = self._hot(self.users, 0.15)
        if draw < 0.85:
            joins = self.random.random() < 0.6
            return MembershipChanged(*stamp, self._hot(self.segments, 0.3), user, 0, joins)
        course = self._hot(self.courses, 0.3)
        if draw < 0.95:
            role = self.random.choice((*ROLES, None))
            return SourceChanged(
                *stamp, course, user, self.random.choice(SOURCES), 0, self.random.choice(STATUSES), role
            )
        return SuspensionChanged(*stamp, course, user, 0, self.random.random() < 0.4)

    def _method(self, stamp: tuple[str, int]) -> MethodChanged:
        if len(self.methods) < self.scale.methods and self.random.random() < 0.6:
            return self._new_method(stamp)
        if not self.methods:
            return self._new_method(stamp)
        method = self.methods[self.random.choice(sorted(self.methods))]
        changes = {} if method.deleted else self._changes(method)
        return replace(method, event_id=stamp[0], occurred_at=stamp[1], **changes)

    def _new_method(self, stamp: tuple[str, int]) -> MethodChanged:
        course = self.random.choice(self.courses)
        is_sync = self.random.random() < 0.8
        group = self.random.choice(self.groups[course])
        return MethodChanged(
            *stamp,
            method_id=self.uuid(),
            version=0,
            course_id=course,
            segment_id=self._hot(self.segments, 0.4),
            segment_name=self.random.choice(("A segment", None)),
            kind="SEGMENT_SYNC" if is_sync else "SEGMENT_GROUP",
            name="A method",
            active=self.random.random() < 0.85,
            visible=self.random.random() < 0.85,
            role=self.random.choice(ROLES) if is_sync else None,
            group_id=group if not is_sync or self.random.random() < 0.7 else None,
            on_removal=self.random.choice(POLICIES),  # type: ignore[arg-type]  # each is one
        )

    def _changes(self, method: MethodChanged) -> dict[str, Any]:
        group = self.random.choice(self.groups[method.course_id])
        is_sync = method.kind == "SEGMENT_SYNC"
        some: tuple[dict[str, Any], ...] = (
            {"active": not method.active},
            {"visible": not method.visible},
            {"active": True, "visible": True},
            {"segment_id": self._hot(self.segments, 0.4)},
            {"role": self.random.choice(ROLES) if is_sync else None},
            {"group_id": group if not is_sync or self.random.random() < 0.7 else None},
            {"on_removal": self.random.choice(POLICIES)},
            {"name": f"{method.name[:200]}'"},
            {"deleted": self.random.random() < 0.3},
        )
        chosen = dict(self.random.choice(some))
        if self.random.random() < 0.2:
            chosen |= self.random.choice(some)
        return chosen

    def _hot(self, among: list[str], share: float) -> str:
        """The first of them more often than chance: rules meet where several things happen to one."""
        return among[0] if self.random.random() < share else self.random.choice(among)
