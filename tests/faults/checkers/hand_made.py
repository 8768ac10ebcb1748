"""Are groups edited by hand what the edits made of them, in the order that the events tell?

Hand-made membership depends on order, and the events of a key are an order: an edit is one event that changes one group,
nothing else changes it, and it ends when the person is absent.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from tests.faults.checkers.changes import by_key, contributions_in, state_of
from tests.faults.checkers.expected import Expected
from tests.faults.checkers.violation import Violation
from tests.faults.editing import Edited
from tests.faults.history import Change, History
from tests.model.rule import ABSENT, visible_state


def check_hand_made(history: History, _expected: Expected) -> Iterator[Violation]:
    made: dict[tuple[str, int], Edited] = {}
    for edited in history.edits:
        if edited.version is not None and edited.outcome == "committed":
            made[f"{edited.edit.course_id}:{edited.edit.user_id}", edited.version] = edited
    possible: defaultdict[tuple[str, str, str], int] = defaultdict(int)
    for edited in history.edits:
        if edited.outcome != "failed":
            possible[f"{edited.edit.course_id}:{edited.edit.user_id}", edited.edit.group_id, edited.edit.action] += 1
    for key, chain in sorted(by_key(history.changes).items()):
        hand: set[str] = set()
        for change in chain:
            yield from _check_change(key, change, hand, made, possible)
        row = history.tables.rows.get(chain[-1].pair)
        if row is not None and set(row["hand"]) != hand:
            yield Violation(
                "hand_made", "wrong", key, f"in groups by hand: {sorted(row['hand'])}, by the events {sorted(hand)}"
            )
    for (key, version), edited in made.items():
        yield Violation(
            "hand_made", "lost", key, f"{edited.edit} was committed as version {version}, and there is no such event"
        )


def _check_change(
    key: str,
    change: Change,
    hand: set[str],
    made: dict[tuple[str, int], Edited],
    possible: defaultdict[tuple[str, str, str], int],
) -> Iterator[Violation]:
    """`hand` becomes what it is after the change; an edit that was found is taken out of `made`."""
    event = change.event
    after = state_of(event["after"])
    own = visible_state(contributions_in(event["after"]), (), event["after"]["suspended_in_course"])
    edited = made.pop((key, event["version"]), None)
    if event["cause"]["type"] == "SQL":
        before = state_of(event["before"])
        changed = set(before.groups) ^ set(after.groups)
        action = "insert" if len(after.groups) > len(before.groups) else "delete"
        if len(changed) != 1 or before.sources != after.sources:
            yield Violation("hand_made", "wrong", key, f"version {event['version']} by hand changes {sorted(changed)}")
        for group in changed:
            (hand.add if action == "insert" else hand.discard)(group)
            possible[key, group, action] -= 1
            if possible[key, group, action] < 0:
                text = f"version {event['version']}: {action} of {group} by hand, which nobody asked for so often"
                yield Violation("hand_made", "repeated", key, text)
    elif edited is not None:
        yield Violation(
            "hand_made",
            "wrong",
            key,
            f"version {event['version']} was made by {edited.edit}, the event says {event['cause']}",
        )
    if after == ABSENT:
        hand.clear()
        return
    if set(after.groups) != set(own.groups) | hand:
        text = f"version {event['version']} shows groups {list(after.groups)}, managed are {list(own.groups)}, by hand {sorted(hand)}"
        yield Violation("hand_made", "wrong", key, text)
    if (after.status, after.roles, after.sources) != (own.status, own.roles, own.sources):
        yield Violation(
            "hand_made", "wrong", key, f"version {event['version']} shows {after}, its sources come to {own}"
        )
