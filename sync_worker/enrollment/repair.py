"""Repairs what reconcile.py finds, through `converge`, under the locks of a backfill step; every change is an event of cause RECONCILE.

A difference counts once it is seen again under the locks, and is repaired once it is not seen any more. Must never repair
what the facts don't settle.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple
from uuid import UUID

from sync_worker.database.arrays import bools, int4s, int8s, texts, uuids
from sync_worker.database.sessions import Session
from sync_worker.enrollment.converge import RECONCILE, converge
from sync_worker.enrollment.converge import SQL as CONVERGE
from sync_worker.enrollment.reconcile import REPAIRABLE, SQL, Difference, Key, Kind, columns, compare

_METHOD: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(slots=True)
class Repair:
    """What came of differences: those that were still there under the locks, which of them are there no more, by how many changes.

    gone: those whose row is gone, left to `restore`.
    """

    found: list[Difference]
    repaired: set[Key]
    changes: int
    gone: list[Difference] = field(default_factory=list)


class Said(NamedTuple):
    """What was last published of a row, in the forms of its columns; version 0: that the person was erased, or nothing."""

    version: int
    sources: Mapping[str, Any]
    hand: tuple[str, ...]
    suspended: bool


def repair(session: Session, found: Sequence[Difference]) -> Repair:
    """Repair what is still wrong once its facts are locked; rows that are gone are found, but left to `restore`.

    In the caller's transaction, which must have locked nothing yet. found: of REPAIRABLE kinds.
    """
    keys = [each.key for each in found if each.kind is not Kind.HAND_MADE_LEFT]
    malformed = _malformed(session, keys)
    keys = list(dict.fromkeys(keys + malformed))
    _lock(session, keys)
    repaired = _settle(session, keys, malformed)
    repaired.gone = [each for each in compare(session, keys) if each.kind is Kind.ROW_GONE]
    _unlock(session, keys)
    _clear_hand_made(session, [each for each in found if each.kind is Kind.HAND_MADE_LEFT], repaired)
    return repaired


def restore(session: Session, gone: Sequence[Difference], said: Mapping[bytes, Said]) -> Repair:
    """Put rows back that are gone, as they were last published, and apply the rule to them; in the caller's transaction, as `repair`.

    said: by person (`Key.person`), of all that anything was ever published of. A row that somebody made anew meanwhile,
    with a version below the published one, is found and can't be repaired here.
    """
    people = {each.key.person for each in gone}
    known = {person: said[person] for person in sorted(people & said.keys())}
    held = [Key(person[:16], person[16:], source) for person, last in known.items() for source in last.sources]
    malformed = _malformed(session, [each.key for each in gone])
    keys = list(dict.fromkeys([each.key for each in gone] + held + malformed))
    _lock(session, keys)
    still_gone = {each.key.person for each in compare(session, keys) if each.kind is Kind.ROW_GONE}
    _put_back(session, {person: last for person, last in known.items() if person in still_gone})
    settled = _settle(session, keys, malformed, make_rows=True)
    _unlock(session, keys)
    left = {each.key.person for each in settled.found if each.key not in settled.repaired}
    rows = [Key(person[:16], person[16:], "") for person in sorted(still_gone)]
    return Repair(
        [Difference(Kind.ROW_GONE, row) for row in rows] + _behind(session, known),
        {row for row in rows if row.person not in left},
        settled.changes,
    )


def last_in_outbox(session: Session, people: Sequence[bytes]) -> dict[bytes, Said]:
    """What the outbox says last of these people (`Key.person`), where it has them; version 0 of who was erased."""
    rows = session.execute(SQL["last_in_outbox"], _people(people), binary=True).fetchall()
    return {
        course + user: Said(version, sources, tuple(hand), suspended)
        for course, user, version, sources, hand, suspended in rows
    }


def _malformed(session: Session, keys: Sequence[Key]) -> list[Key]:
    """Contributions in the rows of these keys that can't be told to consumers."""
    rows = session.execute(SQL["malformed"], _people([key.person for key in keys]), binary=True).fetchall()
    return [Key(*row) for row in rows]


def _lock(session: Session, keys: Iterable[Key]) -> None:
    """The facts that decide on these contributions, memberships before sources, each in key order (design §3)."""
    session.execute(CONVERGE["lock_shared"], prepare=True)
    pairs, others = _facts_of(keys)
    if pairs:
        session.execute(SQL["lock_memberships"], pairs, prepare=True)
    if others:
        session.execute(SQL["lock_sources"], others, prepare=True)


def _unlock(session: Session, keys: Iterable[Key]) -> None:
    """Take back what was put there to be locked; the locks themselves last until the commit."""
    pairs, others = _facts_of(keys)
    if pairs:
        session.execute(SQL["unlock_memberships"], pairs, prepare=True)
    if others:
        session.execute(SQL["unlock_sources"], others, prepare=True)


def _facts_of(keys: Iterable[Key]) -> tuple[dict[str, Any], dict[str, Any]]:
    """As the statements take them: methods with users, and other sources; empty where there are none."""
    ordered = sorted(keys)
    methods = [key for key in ordered if _METHOD.fullmatch(key.source)]
    others = [key for key in ordered if not _METHOD.fullmatch(key.source)]
    ids = uuids([UUID(key.source).bytes for key in methods])
    pairs = {"methods": ids, "users": uuids([key.user for key in methods])}
    return pairs if methods else {}, columns(others) if others else {}


def _settle(session: Session, keys: list[Key], malformed: list[Key], *, make_rows: bool = False) -> Repair:
    """Apply the rule, and look again: repaired is what is right now, not what was tried. make_rows: where there is none, too."""
    kinds = REPAIRABLE if make_rows else REPAIRABLE - {Kind.ROW_GONE}
    found = [each for each in compare(session, keys) if each.kind in kinds]
    if not found:
        return Repair([], set(), 0)
    wrong = found
    if malformed:
        session.execute(SQL["strip"], columns(malformed))
        wrong = [each for each in compare(session, keys) if each.kind in kinds]
    changes = converge(session, _touched(session, wrong))
    left = {each.key for each in compare(session, [each.key for each in found])}
    return Repair(found, {each.key for each in found} - left, changes)


def _clear_hand_made(session: Session, left: Sequence[Difference], repaired: Repair) -> None:
    if not left:
        return
    rows = session.execute(SQL["hand_made_clear"], _people([each.key.person for each in left]), binary=True).fetchall()
    cleared = {Key(course, user, "") for course, user in rows}
    repaired.found += [each for each in left if each.key in cleared]
    repaired.repaired |= cleared


def _touched(session: Session, wrong: Sequence[Difference]) -> dict[str, Any]:
    pairs = [each.key for each in wrong if each.by_rule]
    others = [each.key for each in wrong if not each.by_rule]
    rows = session.execute(SQL["source_facts"], columns(others), prepare=True).fetchall() if others else []
    facts = {n: (status, role) for n, status, role in rows}
    # A source that no fact was ever told of gives nothing, and neither does a method in a course that isn't its own.
    told = [facts.get(n, ("ABSENT", None)) for n in range(1, len(others) + 1)]
    return {
        "p_methods": uuids([UUID(key.source).bytes for key in pairs]),
        "p_users": uuids([key.user for key in pairs]),
        "p_ordinals": int4s([0] * len(pairs)),
        "p_cause": RECONCILE,
        **{f"s_{name}": column for name, column in columns(others).items() if name != "sources"},
        "s_names": texts([key.source for key in others]),
        "s_statuses": texts([status for status, _ in told]),
        "s_roles": texts([role for _, role in told]),
        "s_ordinals": int4s([0] * len(others)),
        "s_events": [None] * len(others),
        "s_traces": texts([None] * len(others)),
        "s_cause": RECONCILE,
    }


def _put_back(session: Session, said: Mapping[bytes, Said]) -> None:
    if said:
        rows = {
            **_versions(said),
            "states": texts([json.dumps(each.sources) for each in said.values()]),
            "hands": texts(["{" + ",".join(each.hand) + "}" for each in said.values()]),
            "suspended": bools([each.suspended for each in said.values()]),
        }
        session.execute(SQL["restore"], rows)


def _behind(session: Session, said: Mapping[bytes, Said]) -> list[Difference]:
    if not said:
        return []
    people = list(said)
    behind = [people[n - 1] for (n,) in session.execute(SQL["versions_behind"], _versions(said)).fetchall()]
    return [Difference(Kind.VERSION_WENT_BACK, Key(person[:16], person[16:], "")) for person in behind]


def _people(people: Sequence[bytes]) -> dict[str, Any]:
    return {
        "courses": uuids([person[:16] for person in people]),
        "users": uuids([person[16:] for person in people]),
    }


def _versions(said: Mapping[bytes, Said]) -> dict[str, Any]:
    return _people(list(said)) | {"versions": int8s([each.version for each in said.values()])}
