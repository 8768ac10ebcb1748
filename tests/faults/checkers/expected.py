"""What must come of a run's input by the sequential model: the newest facts, and the records that can never be applied.

Which version is newest doesn't depend on the order in which partitions are read, and what contradicts what only on the
order within one: so the model reads them one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.faults.history import History, Input
from tests.faults.sending import Garbage
from tests.model.events import Event, MembershipChanged, MethodChanged
from tests.model.model import Model

Where = tuple[str, int, int]
"""Topic (its short name), partition, offset."""
# Methods first: while they change, nobody is there to whom the model would have to apply each change.
_ORDER = {"methods": 0, "membership": 1, "sources": 2}


@dataclass(slots=True)
class Expected:
    """What follows from the input."""

    model: Model
    dead_letters: dict[Where, tuple[Input, str]] = field(default_factory=dict)
    """Each with its reason."""
    causes: dict[str, Event] = field(default_factory=dict)
    """Every event that may have been applied, by its id."""
    joined: dict[str, set[str]] = field(default_factory=dict)
    """By segment, everybody who ever was a member by some event."""
    pointed: dict[str, set[str]] = field(default_factory=dict)
    """By method, every segment it ever pointed to."""
    roles: dict[str, set[str | None]] = field(default_factory=dict)
    """By method, every role it ever gave."""


def expect(history: History) -> Expected:
    expected = Expected(Model())
    for each in _in_order(history.inputs):
        content = each.content
        where = (each.record.topic, each.record.partition, each.record.offset)
        if content is None:
            continue
        if isinstance(content, Garbage):
            expected.dead_letters[where] = (each, content.reason)
            continue
        rejected = expected.model.apply_batch([content]).dead_letters
        if rejected:
            expected.dead_letters[where] = (each, rejected[0].reason)
            continue
        expected.causes[content.event_id] = content
        _remember(expected, content)
    return expected


def _in_order(inputs: Iterable[Input]) -> list[Input]:
    return sorted(inputs, key=lambda each: (_ORDER[each.record.topic], each.record.partition, each.record.offset))


def _remember(expected: Expected, event: Event) -> None:
    if isinstance(event, MembershipChanged) and event.is_member:
        expected.joined.setdefault(event.segment_id, set()).add(event.user_id)
    if isinstance(event, MethodChanged):
        expected.pointed.setdefault(event.method_id, set()).add(event.segment_id)
        expected.roles.setdefault(event.method_id, {None}).add(event.role)
