"""Applies the facts of one batch inside the caller's transaction: facts, then rows, then outbox (design §3).

The steps are separate statements in this order because each must see what the one before it waited for; facts and rows
as one statement miss a membership that another worker is adding.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast

from sync_worker.database.arrays import bools, int4s, int8s, texts, timestamps, uuids, uuids_of
from sync_worker.database.sessions import Session
from sync_worker.database.statements import load
from sync_worker.enrollment.breaker import MINUTE_US, Guard, minute_of
from sync_worker.enrollment.converge import converge
from sync_worker.enrollment.folding import Facts, Results
from sync_worker.errors import RejectionReason
from sync_worker.events import Membership, Record, Rejection, Source, Suspension, text_of

SQL = load("sync_worker.enrollment", "statements.sql")

Columns = dict[str, Any]

# What the `…_unchanged` statements say of an event that changed nothing.
_STALE, _REPEATED, _CONFLICT = 0, 1, 2
_ENTITY_FIELDS = frozenset({"segment_id", "user_id", "course_id"})


@dataclass(slots=True)
class Applied:
    """What a batch came to: results by kind, changes written to the outbox, and the records that contradict a version."""

    results: Results = field(default_factory=Counter)
    changes: int = 0
    rejected: list[tuple[Record, Rejection]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Survey:
    """What is known of a batch's segments before its transaction: how many methods each has, and which are held."""

    fan_out: Mapping[bytes, int]
    holds: Mapping[bytes, int]


def survey(session: Session, segments: Sequence[bytes]) -> Survey:
    """Outside the transaction: it bounds the size of one, and a hold that was missed is found by the transaction itself."""
    if not segments:
        return Survey({}, {})
    rows = session.execute(SQL["survey"], {"segments": uuids(segments)}, prepare=True, binary=True).fetchall()
    return Survey(
        {segment: methods for segment, methods, _ in rows if methods is not None},
        {segment: hold for segment, _, hold in rows if hold is not None},
    )


def apply_people(session: Session, facts: Facts, guard: Guard | None = None) -> Applied:
    """Memberships, sources and suspensions: what they say, and what follows for everyone they touch.

    guard: of the removal breaker. Raises breaker.Reconsider where the transaction must be rolled back and taken again.
    """
    applied = Applied()
    if not (facts.memberships or facts.sources or facts.suspensions):
        return applied
    guard = guard or Guard()
    session.execute(SQL["lock_shared"], prepare=True)
    guard.enter(session, _removing(facts) if guard.holds or guard.crossing else ())
    deltas: Counter[tuple[bytes, int]] = Counter()
    for kind, ordinals in facts.displaced.items():
        conflicts = _judge(session, kind, ordinals, facts, applied, counted={})
        applied.results[kind, "superseded"] += len(ordinals) - conflicts
    touched: Columns = {}
    if facts.memberships:
        touched |= _put_memberships(session, facts, applied, guard, deltas)
    if facts.sources:
        touched |= _put_sources(session, facts, applied)
    suspensions = _new_suspensions(session, facts, applied) if facts.suspensions else []
    if suspensions:
        touched |= _touched("x", _suspension_columns(facts, suspensions), facts, suspensions)
    if touched:
        applied.changes = converge(session, touched)
    if suspensions:
        # Another worker may have written the same version, or a newer one, meanwhile; the rows are locked now.
        _judge(session, "suspension", suspensions, facts, applied, counted={_STALE: "stale", _REPEATED: "applied"})
    _repeat(facts, applied)
    guard.count(session, deltas)
    return applied


def _removing(facts: Facts) -> set[bytes]:
    """The segments that somebody is removed from."""
    return {key[:16] for key, n in facts.memberships.items() if not cast("Membership", facts.records[n].content)[2]}


def _repeat(facts: Facts, applied: Applied) -> None:
    """A record said twice in a batch is a repetition, or, where the first contradicts what is stored, a contradiction again."""
    verdicts = {id(record): rejection for record, rejection in applied.rejected}
    for kind, n, first in facts.repeated:
        rejection = verdicts.get(id(facts.records[first]))
        if rejection is None:
            applied.results[kind, "repeated"] += 1
        else:
            applied.rejected.append((facts.records[n], rejection))


def _put_memberships(
    session: Session, facts: Facts, applied: Applied, guard: Guard, deltas: Counter[tuple[bytes, int]]
) -> Columns:
    keys = sorted(facts.memberships)
    ordinals = [facts.memberships[key] for key in keys]
    columns = _membership_columns(facts, ordinals)
    row = session.execute(SQL["memberships"], columns, prepare=True, binary=True).fetchone()
    changed, segments, users, became, left_at = cast("tuple[int, bytes, bytes, str, list[datetime] | None]", row)
    if changed < len(ordinals):
        # A replay or a repetition: what changed goes on, what didn't is judged.
        kept = {s + u for s, u in zip(uuids_of(segments), uuids_of(users), strict=True)} if changed else set()
        unchanged = [n for n, key in zip(ordinals, keys, strict=True) if key not in kept]
        _judge(session, "membership", unchanged, facts, applied)
        ordinals = [n for n, key in zip(ordinals, keys, strict=True) if key in kept]
        columns = _membership_columns(facts, ordinals)
    if not changed:
        return {}
    if became.strip("-"):
        held = _watch(session, facts, ordinals, became, left_at or [], guard, deltas)
        if held:
            applied.results["membership", "held"] += len(held)
            changed -= len(held)
            # What they had stays, and nothing new comes: the rule needn't be asked.
            ordinals = [n for n in ordinals if n not in held]
            columns = _membership_columns(facts, ordinals)
    applied.results["membership", "applied"] += changed
    return _touched("m", columns, facts, ordinals) if ordinals else {}


def _watch(
    session: Session,
    facts: Facts,
    ordinals: Sequence[int],
    became: str,
    left_at: Sequence[datetime],
    guard: Guard,
    deltas: Counter[tuple[bytes, int]],
) -> set[int]:
    """What the breaker makes of the memberships that changed: those removed under a hold are marked, the others counted."""
    held: dict[int, tuple[bytes, bytes]] = {}
    unsure: set[bytes] = set()
    returned = iter(left_at)
    for n, letter in zip(ordinals, became, strict=True):
        if letter == "-":
            continue
        event = cast("Membership", facts.records[n].content)
        if letter == "b":
            deltas[event[0], minute_of(next(returned))] -= 1
        elif event[0] in guard.holds:
            held[n] = (event[0], event[1])
        elif letter == "l":
            deltas[event[0], event[5] // MINUTE_US * MINUTE_US] += 1
        else:
            unsure.add(event[0])
    guard.settle(session, unsure)
    if held:
        guard.mark(session, list(held.values()))
    return set(held)


def _put_sources(session: Session, facts: Facts, applied: Applied) -> Columns:
    # All workers lock in this order; it needn't be PostgreSQL's order of text.
    keys = sorted(facts.sources)
    ordinals = [facts.sources[key] for key in keys]
    rows = session.execute(SQL["sources"], _source_columns(facts, ordinals), prepare=True, binary=True).fetchall()
    kept = {(course + user, name) for course, user, name in rows}
    _judge(session, "source", [n for n, key in zip(ordinals, keys, strict=True) if key not in kept], facts, applied)
    ordinals = [n for n, key in zip(ordinals, keys, strict=True) if key in kept]
    if not ordinals:
        return {}
    applied.results["source", "applied"] += len(ordinals)
    return _touched("s", _source_columns(facts, ordinals), facts, ordinals)


def _new_suspensions(session: Session, facts: Facts, applied: Applied) -> list[int]:
    """Those that say something newer than the row. Read without a lock: `converge` compares versions on the locked row."""
    ordinals = [facts.suspensions[key] for key in sorted(facts.suspensions)]
    columns = _suspension_columns(facts, ordinals)
    known = {n for (n,) in session.execute(SQL["suspensions_known"], columns, prepare=True).fetchall()}
    _judge(session, "suspension", [n for n in ordinals if n in known], facts, applied)
    return [n for n in ordinals if n not in known]


def _judge(
    session: Session,
    kind: str,
    ordinals: Sequence[int],
    facts: Facts,
    applied: Applied,
    *,
    counted: Mapping[int, str] = {_STALE: "stale", _REPEATED: "repeated"},
) -> int:
    """Say of records that changed nothing why, and reject those that say something else under a version that is stored.

    counted: the results to count the others as. Returns the number of rejected ones.
    """
    if not ordinals:
        return 0
    conflicts = 0
    columns = _COLUMNS[kind](facts, ordinals)
    for n, code in session.execute(SQL[f"{kind}s_unchanged"], columns, prepare=True).fetchall():
        if code == _CONFLICT:
            record = facts.records[n]
            verdict = Rejection(RejectionReason.VERSION_CONFLICT, _conflict_detail(record.content))
            applied.rejected.append((record, verdict))
            conflicts += 1
        elif code in counted:
            applied.results[kind, counted[code]] += 1
    return conflicts


def _conflict_detail(event: Any) -> str:  # any event: each names its entity by its ids
    ids = [f"{name}={text_of(id_)}" for name, id_ in zip(event._fields, event, strict=True) if name in _ENTITY_FIELDS]
    return f"version {event.version} of {' '.join(ids)} was applied with other content; a change needs a higher version"


def _touched(prefix: str, columns: Columns, facts: Facts, ordinals: Sequence[int]) -> Columns:
    """The columns as `converge` takes them, with the trace that each record came with."""
    traces = [cast("Any", facts.records[n].content).traceparent for n in ordinals]
    return {f"{prefix}_{name}": column for name, column in columns.items()} | {f"{prefix}_traces": texts(traces)}


def _membership_columns(facts: Facts, ordinals: Sequence[int]) -> Columns:
    events = cast("list[Membership]", [facts.records[n].content for n in ordinals])
    return {
        "segments": uuids([event[0] for event in events]),
        "users": uuids([event[1] for event in events]),
        "members": bools([event[2] for event in events]),
        "versions": int8s([event[3] for event in events]),
        "events": uuids([event[4] for event in events]),
        "times": timestamps([event[5] for event in events]),
        "ordinals": int4s(ordinals),
    }


def _source_columns(facts: Facts, ordinals: Sequence[int]) -> Columns:
    events = cast("list[Source]", [facts.records[n].content for n in ordinals])
    return {
        "courses": uuids([event.course_id for event in events]),
        "users": uuids([event.user_id for event in events]),
        "names": texts([event.source for event in events]),
        "statuses": texts([event.status for event in events]),
        "roles": texts([event.role for event in events]),
        "versions": int8s([event.version for event in events]),
        "events": uuids([event.event_id for event in events]),
        "times": timestamps([event.occurred_at for event in events]),
        "ordinals": int4s(ordinals),
    }


def _suspension_columns(facts: Facts, ordinals: Sequence[int]) -> Columns:
    events = cast("list[Suspension]", [facts.records[n].content for n in ordinals])
    return {
        "courses": uuids([event.course_id for event in events]),
        "users": uuids([event.user_id for event in events]),
        "suspended": bools([event.suspended for event in events]),
        "versions": int8s([event.version for event in events]),
        "events": uuids([event.event_id for event in events]),
        "ordinals": int4s(ordinals),
    }


_COLUMNS: Mapping[str, Callable[[Facts, Sequence[int]], Columns]] = {
    "membership": _membership_columns,
    "source": _source_columns,
    "suspension": _suspension_columns,
}
