"""Applies the facts of one batch inside the caller's transaction: facts, then rows, then outbox (design §3).

The steps are separate statements in this order because each must see what the one before it waited for; facts and rows
as one statement miss a membership that another worker is adding.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple, cast

from sync_worker.database.arrays import bools, int4s, int8s, texts, timestamps, uuids, uuids_of
from sync_worker.database.sessions import Session
from sync_worker.database.statements import load
from sync_worker.enrollment.breaker import MINUTE_US, Guard, minute_of
from sync_worker.enrollment.converge import converge
from sync_worker.enrollment.folding import Facts, Results, memberships_of
from sync_worker.errors import RejectionReason
from sync_worker.events import Membership, Record, Rejection, Source, Suspension, text_of

SQL = load("sync_worker.enrollment", "statements.sql")

Columns = dict[str, Any]

# Of a batch's memberships, to see whether it is a replay.
_SAMPLE = 20
_ENTITY_FIELDS = frozenset({"segment_id", "user_id", "course_id"})


@dataclass(slots=True)
class Applied:
    """What a batch came to: results by kind, changes written to the outbox, and the records that contradict a version."""

    results: Results = field(default_factory=Counter)
    changes: int = 0
    rejected: list[tuple[Record, Rejection]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Survey:
    """What is known of a batch's memberships before its transaction.

    fan_out: how many methods each of their segments has. holds: of the breaker. familiar: most of them say nothing new, as in a replay.
    """

    fan_out: Mapping[bytes, int]
    holds: Mapping[bytes, int]
    familiar: bool


def survey(session: Session, records: Sequence[Record]) -> Survey:
    """Outside the transaction: it bounds the size of one, and a hold that was missed is found by the transaction itself."""
    memberships = memberships_of(records)
    if not memberships:
        return Survey({}, {}, familiar=False)
    sample = memberships[:: -(-len(memberships) // _SAMPLE)]
    columns = {
        "segments": uuids(list({event[0] for event in memberships})),
        "sample_segments": uuids([event[0] for event in sample]),
        "sample_users": uuids([event[1] for event in sample]),
        "sample_versions": int8s([event[3] for event in sample]),
    }
    rows = session.execute(SQL["survey"], columns, prepare=True, binary=True).fetchall()
    return Survey(
        {segment: methods for segment, methods, _ in rows if segment is not None and methods is not None},
        {segment: hold for segment, _, hold in rows if hold is not None},
        familiar=any(segment is None and known * 2 > len(sample) for segment, known, _ in rows),
    )


def apply_people(session: Session, facts: Facts, guard: Guard | None = None, *, familiar: bool = False) -> Applied:
    """Memberships, sources and suspensions: what they say, and what follows for everyone they touch.

    guard: of the removal breaker. familiar: as `survey` said; what is known is then looked up before anything is locked. Raises
    breaker.Reconsider where the transaction must be rolled back and taken again.
    """
    applied = Applied()
    if not (facts.memberships or facts.sources or facts.suspensions):
        return applied
    guard = guard or Guard()
    session.execute(SQL["lock_shared"], prepare=True)
    guard.enter(session, _removing(facts) if guard.holds or guard.crossing else ())
    deltas: Counter[tuple[bytes, int]] = Counter()
    for kind, ordinals in facts.displaced.items():
        judged = _judge(session, kind, ordinals, facts, applied)
        applied.results[kind, "superseded"] += len(ordinals) - judged.conflicts
    touched: Columns = {}
    if facts.memberships:
        touched |= _put_memberships(session, facts, applied, guard, deltas, familiar=familiar)
    if facts.sources:
        touched |= _put_sources(session, facts, applied)
    suspensions = _new_suspensions(session, facts, applied) if facts.suspensions else []
    if suspensions:
        touched |= _touched("x", _suspension_columns(facts, suspensions), facts, suspensions)
    if touched:
        applied.changes = converge(session, touched)
    if suspensions:
        # Another worker may have written the same version, or a newer one, meanwhile; the rows are locked now.
        judged = _judge(session, "suspension", suspensions, facts, applied)
        applied.results += Counter({("suspension", "stale"): judged.stale, ("suspension", "applied"): judged.repeated})
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
    session: Session,
    facts: Facts,
    applied: Applied,
    guard: Guard,
    deltas: Counter[tuple[bytes, int]],
    *,
    familiar: bool,
) -> Columns:
    fresh = facts.memberships
    if familiar:
        newer = _unknown(session, "membership", list(fresh.values()), facts, applied)
        if not newer:
            return {}
        fresh = {key: n for key, n in fresh.items() if n in newer}
    keys = sorted(fresh)
    ordinals = [fresh[key] for key in keys]
    columns = _membership_columns(facts, ordinals)
    row = session.execute(SQL["memberships"], columns, prepare=True, binary=True).fetchone()
    changed, segments, users, became, left_at = cast("tuple[int, bytes, bytes, str, list[datetime] | None]", row)
    if changed < len(ordinals):
        # A replay or a repetition: what changed goes on, what didn't is judged.
        kept = {s + u for s, u in zip(uuids_of(segments), uuids_of(users), strict=True)} if changed else set()
        unchanged = [n for n, key in zip(ordinals, keys, strict=True) if key not in kept]
        _unknown(session, "membership", unchanged, facts, applied)
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
    _unknown(session, "source", [n for n, key in zip(ordinals, keys, strict=True) if key not in kept], facts, applied)
    ordinals = [n for n, key in zip(ordinals, keys, strict=True) if key in kept]
    if not ordinals:
        return {}
    applied.results["source", "applied"] += len(ordinals)
    return _touched("s", _source_columns(facts, ordinals), facts, ordinals)


def _new_suspensions(session: Session, facts: Facts, applied: Applied) -> list[int]:
    """Those that say something newer than the row. Read without a lock: `converge` compares versions on the locked row."""
    ordinals = [facts.suspensions[key] for key in sorted(facts.suspensions)]
    newer = _unknown(session, "suspension", ordinals, facts, applied)
    return [n for n in ordinals if n in newer]


class _Judged(NamedTuple):
    """Of some records: how many are stale, repeat what is stored, or contradict it; and which are newer."""

    stale: int
    repeated: int
    conflicts: int
    newer: frozenset[int]


def _judge(session: Session, kind: str, ordinals: Sequence[int], facts: Facts, applied: Applied) -> _Judged:
    """What records say beside what is stored. Those that say something else under a version that is stored are rejected."""
    row = session.execute(SQL[f"{kind}s_judged"], _COLUMNS[kind](facts, ordinals), prepare=True, binary=True).fetchone()
    stale, repeated, conflicts, newer = cast("tuple[int, int, list[int] | None, list[int] | None]", row)
    for n in sorted(conflicts or ()):
        record = facts.records[n]
        verdict = Rejection(RejectionReason.VERSION_CONFLICT, _conflict_detail(record.content))
        applied.rejected.append((record, verdict))
    return _Judged(stale, repeated, len(conflicts or ()), frozenset(newer or ()))


def _unknown(session: Session, kind: str, ordinals: Sequence[int], facts: Facts, applied: Applied) -> frozenset[int]:
    """Count those that say nothing new, and return the others."""
    if not ordinals:
        return frozenset()
    judged = _judge(session, kind, ordinals, facts, applied)
    applied.results += Counter({(kind, "stale"): judged.stale, (kind, "repeated"): judged.repeated})
    return judged.newer


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
