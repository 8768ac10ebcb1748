"""Hypothesis strategies for histories: few people, segments, methods and courses, and all that happens to them.

A history is drawn as moves ("user 2 leaves segment 1, as a stale version") and told as events, so that a failing one
shrinks to the few moves that matter. Ids are the same in every run; nothing here may use other chance.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from uuid import NAMESPACE_DNS, uuid5

from hypothesis import strategies as st

from tests.model.events import (
    Batch,
    Entity,
    Event,
    HandEdit,
    MembershipChanged,
    MethodChanged,
    SourceChanged,
    Step,
    SuspensionChanged,
    entity_of,
)

Order = Literal["next", "stale", "repeated", "conflicting"]

START = 1_767_225_600_000_000
SECOND = 1_000_000


def pool(word: str, size: int) -> tuple[str, ...]:
    return tuple(str(uuid5(NAMESPACE_DNS, f"{word}-{number}")) for number in range(size))


COURSES = pool("course", 2)
SEGMENTS = pool("segment", 3)
USERS = pool("user", 4)
GROUPS = pool("group", 3)
ROLES = ("student", "teacher", "tutor")
SOURCES = ("learning-path", "manual", "self")
METHODS = tuple(
    MethodChanged(
        "",
        0,
        method_id,
        0,
        course_id,
        segment_id,
        "A segment",
        kind,
        "A method",
        True,
        True,
        role,
        group_id,
        on_removal,
    )
    for method_id, course_id, segment_id, kind, role, group_id, on_removal in zip(
        pool("method", 4),
        (COURSES[0], COURSES[0], COURSES[1], COURSES[0]),
        (SEGMENTS[0], SEGMENTS[1], SEGMENTS[0], SEGMENTS[0]),
        ("SEGMENT_SYNC", "SEGMENT_SYNC", "SEGMENT_SYNC", "SEGMENT_GROUP"),
        ("student", "tutor", "student", None),
        (GROUPS[0], GROUPS[0], None, GROUPS[1]),
        ("UNENROLL", "SUSPEND", "SUSPEND_WITHOUT_ROLES", "UNENROLL"),
        strict=True,
    )
)


@dataclass(frozen=True, slots=True)
class Move:
    """An event without its id, time and version; `gap` is how far its version is from the last."""

    event: Event
    order: Order = "next"
    gap: int = 1


@dataclass(frozen=True, slots=True)
class MethodMove:
    """What changes in a method, over its state so far. `flaw` changes what no valid event changes."""

    number: int
    changes: dict[str, Any]
    order: Order = "next"
    gap: int = 1
    flaw: dict[str, Any] = field(default_factory=dict)


AnyMove = Move | MethodMove | HandEdit


def _mostly_first(ids: Sequence[str]) -> st.SearchStrategy[str]:
    # Rules meet where several things happen to one person, which evenly spread ids would make rare.
    return st.sampled_from([*ids, *(ids[0] for _ in ids)])


_ids = {
    "course_id": _mostly_first(COURSES),
    "segment_id": _mostly_first(SEGMENTS),
    "user_id": _mostly_first(USERS),
    "group_id": _mostly_first(GROUPS),
}
_memberships = st.builds(
    MembershipChanged, st.just(""), st.just(0), _ids["segment_id"], _ids["user_id"], st.just(1), st.booleans()
)
_sources = st.builds(
    SourceChanged,
    st.just(""),
    st.just(0),
    _ids["course_id"],
    _ids["user_id"],
    st.sampled_from(SOURCES),
    st.just(1),
    st.sampled_from(("ACTIVE", "ABSENT", "SUSPENDED", "ABSENT")),
    st.none() | st.sampled_from(ROLES),
)
_suspensions = st.builds(
    SuspensionChanged, st.just(""), st.just(0), _ids["course_id"], _ids["user_id"], st.just(1), st.booleans()
)
_hand_edits = st.builds(
    HandEdit, st.sampled_from(("insert", "delete")), _ids["course_id"], _ids["group_id"], _ids["user_id"]
)
_switches = st.one_of(
    st.fixed_dictionaries({"active": st.booleans()}),
    st.fixed_dictionaries({"visible": st.booleans()}),
    st.fixed_dictionaries({"on_removal": st.sampled_from(("SUSPEND", "SUSPEND_WITHOUT_ROLES", "UNENROLL"))}),
    st.fixed_dictionaries({"segment_id": _ids["segment_id"]}),
    st.fixed_dictionaries({"role": st.sampled_from(ROLES)}),
    st.fixed_dictionaries({"group_id": st.none() | _ids["group_id"]}),
    st.fixed_dictionaries({"name": st.sampled_from(("Renamed", "Renommé"))}),
    st.fixed_dictionaries({}),
    st.fixed_dictionaries(
        {},
        optional={
            "active": st.booleans(),
            "visible": st.booleans(),
            "segment_id": _ids["segment_id"],
            "segment_name": st.none() | st.just("Another segment"),
            "role": st.sampled_from(ROLES),
            "group_id": st.none() | _ids["group_id"],
            "on_removal": st.sampled_from(("SUSPEND", "SUSPEND_WITHOUT_ROLES", "UNENROLL")),
            "deleted": st.booleans(),
        },
    ),
)
_flaws: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    (
        {"course_id": COURSES[1]},
        {"course_id": COURSES[0]},
        {"kind": "SEGMENT_GROUP", "role": None, "group_id": GROUPS[2]},
        {"kind": "SEGMENT_SYNC", "role": "student"},
        {"kind": "SEGMENT_SYNC", "role": None},
        {"kind": "SEGMENT_GROUP", "group_id": None},
        {"kind": "SEGMENT_GROUP", "role": "student"},
        {"deleted": False},
        {"version": 0},
        {"name": "n" * 256},
        {"name": "a\0b"},
    )
)
_sometimes_flawed: st.SearchStrategy[dict[str, Any]] = st.integers(0, 9).flatmap(
    lambda draw: _flaws if draw == 9 else st.just({})
)
_orders = st.sampled_from(("next",) * 9 + ("stale", "repeated", "conflicting"))
_gaps = st.integers(1, 3)
_method_numbers = st.integers(0, len(METHODS) - 1)
_moves: st.SearchStrategy[AnyMove] = st.one_of(
    st.builds(Move, _memberships, _orders, _gaps),
    st.builds(Move, _memberships, _orders, _gaps),
    st.builds(Move, _memberships, _orders, _gaps),
    st.builds(Move, st.one_of(_sources, _suspensions), _orders, _gaps),
    st.builds(MethodMove, _method_numbers, _switches, _orders, _gaps, _sometimes_flawed),
    st.builds(MethodMove, _method_numbers, _switches, _orders, _gaps, _sometimes_flawed),
    _hand_edits,
)
_clean_moves: st.SearchStrategy[AnyMove] = st.one_of(
    st.builds(Move, _memberships, gap=_gaps),
    st.builds(Move, _memberships, gap=_gaps),
    st.builds(Move, st.one_of(_sources, _suspensions), gap=_gaps),
    st.builds(MethodMove, _method_numbers, _switches, gap=_gaps),
)
# Most histories begin with some methods there, or their first half would pass before anybody is enrolled.
_openings = st.sets(_method_numbers).map(lambda numbers: [MethodMove(number, {}) for number in sorted(numbers)])


def _lists_of(moves: st.SearchStrategy[AnyMove], longest: int) -> st.SearchStrategy[list[AnyMove]]:
    # Of any length alike: by itself hypothesis seldom draws lists long enough for people to leave and come back.
    return st.integers(0, longest).flatmap(lambda size: st.lists(moves, min_size=size, max_size=size))


@dataclass(slots=True)
class _Teller:
    """Turns moves into events; knows the newest valid event of each entity, as its publisher would."""

    steps: list[Step] = field(default_factory=list)
    newest: dict[Entity, Event] = field(default_factory=dict)
    versions: dict[Entity, int] = field(default_factory=dict)

    def tell(self, move: AnyMove) -> None:
        match move:
            case HandEdit():
                self.steps.append(move)
            case Move():
                self._tell_event(move.event, move.order, move.gap, {})
            case MethodMove():
                newest = self.newest.get(entity_of(METHODS[move.number]))
                state = newest if isinstance(newest, MethodChanged) else METHODS[move.number]
                changes = dict(move.changes)
                if state.kind == "SEGMENT_GROUP":
                    changes["role"] = None
                    changes["group_id"] = changes.get("group_id") or state.group_id
                if state.deleted:
                    changes["deleted"] = True
                self._tell_event(replace(state, **changes), move.order, move.gap, move.flaw)

    def _tell_event(self, event: Event, order: Order, gap: int, flaw: dict[str, Any]) -> None:
        entity = entity_of(event)
        last, newest = self.versions.get(entity, 0), self.newest.get(entity)
        if order == "repeated" and newest is not None:
            self.steps.append(newest)
            return
        version = last + gap
        if order == "stale" and last > 1:
            version = max(1, last - gap)
        if order == "conflicting" and last:
            version = last
        number = len(self.steps)
        stamped = {"event_id": str(uuid5(NAMESPACE_DNS, f"event-{number}")), "occurred_at": START + number * SECOND}
        told: Event = replace(event, **{"version": version, **stamped, **flaw})
        self.steps.append(told)
        if version > last:
            # A publisher's counter moves on even when what it sent was no good.
            self.versions[entity] = version
            if not flaw:
                self.newest[entity] = told


def tell(moves: Sequence[AnyMove]) -> list[Step]:
    """The history these moves make; the same moves always make the same one."""
    teller = _Teller()
    for move in moves:
        teller.tell(move)
    return teller.steps


@st.composite
def histories(draw: st.DrawFn, max_moves: int = 40) -> list[Step]:
    """Anything that may arrive: also stale, repeated, conflicting and invalid events, and edits by hand."""
    return tell([*draw(_openings), *draw(_lists_of(_moves, max_moves))])


@st.composite
def batchings(draw: st.DrawFn, steps: Sequence[Step]) -> list[Batch]:
    """A way to cut a history into batches; a hand edit is always a transaction of its own."""
    batches: list[Batch] = []
    together = False
    for step in steps:
        last = batches[-1] if batches else None
        if isinstance(step, HandEdit):
            batches.append(step)
        elif together and isinstance(last, list):
            last.append(step)
        else:
            batches.append([step])
        together = draw(st.booleans())
    return batches


@st.composite
def batched_histories(draw: st.DrawFn, max_moves: int = 40) -> list[Batch]:
    return draw(batchings(draw(histories(max_moves))))


@dataclass(frozen=True, slots=True)
class BeforeMethod:
    """A history, and what comes next: `leaving`, people who leave segments; `begun`, an event of a method that is applied in steps
    and not all of them yet, if any; then `event`, of the same method."""

    batches: list[Batch]
    leaving: list[Batch]
    begun: MethodChanged | None
    event: MethodChanged


_PLACES = [(segment, user) for segment in SEGMENTS for user in USERS]
_crowds = st.sets(st.sampled_from(_PLACES), min_size=3).map(
    lambda pairs: [Move(MembershipChanged("", 0, segment, user, 1, True)) for segment, user in sorted(pairs)]
)


def _turned(method: MethodChanged) -> st.SearchStrategy[dict[str, Any]]:
    """What changes something for whoever is there."""
    turns: list[st.SearchStrategy[dict[str, Any]]] = [
        st.just({"visible": not method.enabled, "active": True}),
        st.sampled_from(SEGMENTS).map(lambda segment: {"segment_id": segment, "active": True, "visible": True}),
        st.sampled_from(ROLES).map(lambda role: {"role": role}),
        (st.none() | st.sampled_from(GROUPS)).map(lambda group: {"group_id": group}),
        st.just({"deleted": True}),
        _switches,
    ]
    return st.one_of(turns)


@st.composite
def histories_before_a_method_event(draw: st.DrawFn, max_moves: int = 30) -> BeforeMethod:
    teller = _Teller()
    for move in [*draw(_openings), *draw(_crowds), *draw(_lists_of(_moves, max_moves))]:
        teller.tell(move)
    for course, user in sorted(draw(st.sets(st.sampled_from([(c, u) for c in COURSES for u in USERS]), max_size=3))):
        teller.tell(Move(SuspensionChanged("", 0, course, user, 1, True)))
    batches = draw(batchings(teller.steps))
    joined = len(teller.steps)
    for segment, user in sorted(draw(st.sets(st.sampled_from(_PLACES), max_size=4))):
        teller.tell(Move(MembershipChanged("", 0, segment, user, 1, False)))
    leaving: list[Batch] = [[step] for step in teller.steps[joined:] if not isinstance(step, HandEdit)]
    number = draw(_method_numbers)

    def tell_one(order: Order, flaw: dict[str, Any]) -> MethodChanged:
        newest = teller.newest.get(entity_of(METHODS[number]))
        method = newest if isinstance(newest, MethodChanged) else METHODS[number]
        renamed = st.just({"name": f"{method.name[:200]}'"})
        teller.tell(MethodMove(number, draw(st.one_of(_turned(method), renamed)), order, draw(_gaps), flaw))
        told = teller.steps[-1]
        assert isinstance(told, MethodChanged)
        return told

    begun = tell_one("next", {}) if draw(st.integers(0, 2)) == 2 else None
    return BeforeMethod(batches, leaving, begun, tell_one(draw(_orders), draw(_sometimes_flawed)))


@st.composite
def settled_histories(draw: st.DrawFn, max_moves: int = 40) -> list[Event]:
    """Events whose end depends on the newest facts alone (semantics §4), in whatever order they are read.

    Every version is unique and valid, nothing is done by hand, and every method ends enabled with UNENROLL, or deleted.
    """
    moves = [*draw(_openings), *draw(_lists_of(_clean_moves, max_moves))]
    numbers = sorted({move.number for move in moves if isinstance(move, MethodMove)})
    enabled = {"active": True, "visible": True, "on_removal": "UNENROLL"}
    closing = [MethodMove(number, {**enabled, "deleted": draw(st.integers(0, 4)) == 4}) for number in numbers]
    return [step for step in tell([*moves, *closing]) if not isinstance(step, HandEdit)]


@st.composite
def interleavings(draw: st.DrawFn, events: Sequence[Event]) -> list[Batch]:
    """The same events in any order across topics, keys and versions, some more than once, cut into batches."""
    again = draw(st.lists(st.sampled_from(events), max_size=5)) if events else []
    return draw(batchings(draw(st.permutations([*events, *again]))))
