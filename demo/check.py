"""Compares what came of a scene with what the story says, and EnrollmentChanged with the tables.

Every difference is one sentence that names the person and both sides. Must never wait or ask: it is given what was seen.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from demo.observe import Change, Key, State, Tables, state_of
from demo.scene import DeadLetter, Row, Scene


def scene_differences(
    scene: Scene, rows: Mapping[Key, Row], tables: Tables, changes: Sequence[Change], dead_letters: Sequence[DeadLetter]
) -> list[str]:
    """What differs; `changes` and `dead_letters` are those that came since the scene before."""
    expected = {(effect.course.name, effect.person.name): effect.changes for effect in scene.effects}
    came: dict[Key, tuple[str, ...]] = defaultdict(tuple)
    for change in changes:
        came[change.key] += (change.kind,)
    found = [
        f"{_who(key)}: EnrollmentChanged expected: {_listed(expected.get(key, ()))}; came: {_listed(came.get(key, ()))}"
        for key in sorted({*expected, *came})
        if expected.get(key, ()) != came.get(key, ())
    ]
    found += [
        f"{_who(key)}: row expected: {in_words(state_of(rows.get(key)))}{_hand(rows.get(key))}; "
        f"found: {in_words(state_of(tables.rows.get(key)))}{_hand(tables.rows.get(key))}"
        for key in sorted({*rows, *tables.rows})
        if rows.get(key) != tables.rows.get(key)
    ]
    if scene.dead_letters != list(dead_letters):
        expected_letters, came_letters = (
            _listed(f"{reason} {value}" for reason, value in letters) for letters in (scene.dead_letters, dead_letters)
        )
        found.append(f"dead letters expected: {expected_letters}; came: {came_letters}")
    return found


def history_differences(tables: Tables, changes: Sequence[Change]) -> list[str]:
    """Whether all changes so far make one history per person, without a gap, that ends with what the table shows."""
    last: dict[Key, Change] = {}
    found = []
    for change in changes:
        previous = last.get(change.key)
        version, after = (previous.version, previous.after) if previous else (0, state_of(None))
        if change.version != version + 1:
            found.append(f"{_who(change.key)}: EnrollmentChanged v{change.version} follows v{version}")
        if change.before != after:
            found.append(
                f"{_who(change.key)}: v{change.version} begins at {in_words(change.before)}; "
                f"v{version} ended at {in_words(after)}"
            )
        last[change.key] = change
    for key in sorted({*last, *tables.rows}):
        told = last[key].after if key in last else state_of(None)
        shown = state_of(tables.rows.get(key))
        if told != shown:
            found.append(f"{_who(key)}: told last: {in_words(told)}; the table: {in_words(shown)}")
        if key in tables.rows and key in last and tables.versions[key] != last[key].version:
            found.append(f"{_who(key)}: told last: v{last[key].version}; the table: v{tables.versions[key]}")
    return found


def in_words(state: State) -> str:
    """A state on one line."""
    status = f"{state.status} in course" if state.suspended_in_course else state.status
    groups = f"@ {', '.join(state.groups)}" if state.groups else ""
    return " ".join(part for part in (status, ", ".join(state.roles), groups) if part)


def _hand(row: Row | None) -> str:
    return f" (by hand: {', '.join(row.by_hand)})" if row is not None and row.by_hand else ""


def _who(key: Key) -> str:
    course, person = key
    return f"{person} in {course}"


def _listed(words: Iterable[str]) -> str:
    return ", ".join(words) or "nothing"
