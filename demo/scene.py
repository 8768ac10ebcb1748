"""What a scene is made of: what is put in, and what has to come of it. Plain data; must never do anything itself."""

from base64 import b64encode
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Self
from uuid import uuid4

from demo.cast import Named


@dataclass(frozen=True, slots=True)
class Event:
    """A line as `sync-worker publish` takes it, and how it is shown."""

    line: dict[str, Any]
    shown: str


@dataclass(frozen=True, slots=True)
class Bytes:
    """A record of bytes that are no event, for one of the input topics; `reason` is why it must become a dead letter."""

    topic: str
    value: bytes
    reason: str
    shown: str


@dataclass(frozen=True, slots=True)
class GroupEdit:
    """INSERT or DELETE on `course_group_member`; `refused` is the SQLSTATE it must fail with."""

    verb: Literal["INSERT", "DELETE"]
    course: Named
    group: Named
    person: Named
    refused: str | None = None


Action = Event | Bytes | GroupEdit


class DeadLetter(NamedTuple):
    """Why a record was set aside, and its bytes as base64, as `tail` shows them."""

    reason: str
    value: str


@dataclass(frozen=True, slots=True)
class Row:
    """What the two views show of one person in one course; the groups in `by_hand` are in `groups` too."""

    status: Literal["ACTIVE", "SUSPENDED"]
    roles: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    by_hand: tuple[str, ...] = ()
    suspended_in_course: bool = False


@dataclass(frozen=True, slots=True)
class Effect:
    """What a scene does to one person in one course: the kinds of change in their order, and the row (None: absent)."""

    course: Named
    person: Named
    changes: tuple[str, ...]
    row: Row | None


@dataclass(frozen=True, slots=True)
class Scene:
    """Steps, each settled before the next, and all that may come of them."""

    title: str
    why: str
    steps: tuple[tuple[Action, ...], ...]
    effects: tuple[Effect, ...] = ()

    @property
    def dead_letters(self) -> list[DeadLetter]:
        """What has to be set aside."""
        bad = [action for step in self.steps for action in step if isinstance(action, Bytes)]
        return [DeadLetter(one.reason, b64encode(one.value).decode()) for one in bad]


@dataclass(frozen=True, slots=True)
class Method:
    """An enrollment method in one of its versions."""

    method: Named
    course: Named
    segment: Named
    role: str
    group: Named | None = None
    visible: bool = True
    on_removal: str = "UNENROLL"
    deleted: bool = False
    version: int = 1

    def changed(self, **fields: Any) -> Self:
        """Its next version."""
        return replace(self, version=self.version + 1, **fields)

    def event(self) -> Event:
        """The full state, as a method is always told."""
        words = [f"role {self.role}", f"group {self.group.name}" if self.group else "no group"]
        words.append("eye open" if self.visible else "eye CLOSED")
        if self.on_removal != "UNENROLL":
            words.append(f"on removal {self.on_removal}")
        what = "DELETED" if self.deleted else ", ".join(words)
        return Event(
            {
                "type": "EnrollmentMethodChanged",
                "event_id": str(uuid4()),
                "method_id": self.method.id,
                "version": self.version,
                "course_id": self.course.id,
                "segment_id": self.segment.id,
                "segment_name": self.segment.name,
                "kind": "SEGMENT_SYNC",
                "name": self.method.name,
                "active": True,
                "visible": self.visible,
                "role": self.role,
                "group_id": self.group.id if self.group else None,
                "on_removal": self.on_removal,
                "deleted": self.deleted,
            },
            f"EnrollmentMethodChanged v{self.version}\n{self.segment.name} -> {self.course.name}\n{what}",
        )


@dataclass(slots=True)
class Expected:
    """What the views have to show, carried from scene to scene."""

    rows: dict[tuple[str, str], Row] = field(default_factory=dict)

    def apply(self, scene: Scene) -> None:
        """What the scene does, done."""
        for effect in scene.effects:
            key = (effect.course.name, effect.person.name)
            if effect.row is None:
                del self.rows[key]
            else:
                self.rows[key] = effect.row
