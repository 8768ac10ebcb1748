"""Applies the facts of one batch inside the caller's transaction: facts, then rows, then outbox (design §3).

The steps are separate statements in this order because each must see what the one before it waited for; facts and rows
as one statement miss a membership that another worker is adding.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from sync_worker.database.arrays import bools, int4s, int8s, texts, timestamps, uuids, uuids_of
from sync_worker.database.sessions import Session
from sync_worker.database.statements import load
from sync_worker.enrollment.converge import converge
from sync_worker.enrollment.folding import Facts, Results
from sync_worker.errors import RejectionReason
from sync_worker.events import Membership, Record, Rejection, Source, Suspension, text_of

SQL = load("sync_worker.enrollment", "statements.sql")

# What the `…_unchanged` statements say of an event that changed nothing.
_VERDICTS = {0: "stale", 1: "repeated", 2: "conflict"}


@dataclass(slots=True)
class Applied:
    """What a batch came to: results by kind, changes written to the outbox, and the records that contradict a version."""

    results: Results = field(default_factory=Counter)
    changes: int = 0
    rejected: list[tuple[Record, Rejection]] = field(default_factory=list)


def fan_out(session: Session, segments: Sequence[bytes]) -> dict[bytes, int]:
    """How many methods each of these segments has now. Outside the transaction: it only bounds the size of one."""
    if not segments:
        return {}
    return dict(session.execute(SQL["fan_out"], {"segments": uuids(segments)}, prepare=True, binary=True).fetchall())


def apply_people(session: Session, facts: Facts) -> Applied:
    """Memberships, sources and suspensions: what they say, and what follows for everyone they touch."""
    applied = Applied()
    if not (facts.memberships or facts.sources or facts.suspensions):
        return applied
    session.execute(SQL["lock_shared"], prepare=True)
    touched: dict[str, Any] = {}
    if facts.memberships:
        touched |= _put_memberships(session, facts, applied)
    if facts.sources:
        touched |= _put_sources(session, facts, applied)
    if facts.suspensions:
        touched |= _new_suspensions(session, facts, applied)
    if touched:
        applied.changes = converge(session, touched)
    if "x_users" in touched:
        _judge_suspensions(session, facts, applied)
    return applied


def _put_memberships(session: Session, facts: Facts, applied: Applied) -> dict[str, Any]:
    keys = sorted(facts.memberships)
    ordinals = [facts.memberships[key] for key in keys]
    events = cast("list[Membership]", [facts.records[n].content for n in ordinals])
    columns = _membership_columns(events)
    row = session.execute(SQL["memberships"], columns, prepare=True, binary=True).fetchone()
    changed, segments, users = cast("tuple[int, bytes, bytes]", row)
    if changed < len(events):
        # A replay or a repetition: only what changed may go on, what didn't is judged.
        kept = set() if not changed else {s + u for s, u in zip(uuids_of(segments), uuids_of(users), strict=True)}
        unchanged = [n for n, key in zip(ordinals, keys, strict=True) if key not in kept]
        left = cast("list[Membership]", [facts.records[n].content for n in unchanged])
        _judge(session, "membership", _membership_columns(left) | {"ordinals": int4s(unchanged)}, facts, applied)
        ordinals = [n for n, key in zip(ordinals, keys, strict=True) if key in kept]
        events = cast("list[Membership]", [facts.records[n].content for n in ordinals])
        columns = _membership_columns(events)
    if not changed:
        return {}
    applied.results["membership", "applied"] += changed
    return {
        "m_segments": columns["segments"],
        "m_users": columns["users"],
        "m_members": columns["members"],
        "m_ordinals": int4s(ordinals),
        "m_events": columns["events"],
        "m_traces": texts([event.traceparent for event in events]),
    }


def _membership_columns(events: Sequence[Membership]) -> dict[str, Any]:
    return {
        "segments": uuids([event[0] for event in events]),
        "users": uuids([event[1] for event in events]),
        "members": bools([event[2] for event in events]),
        "versions": int8s([event[3] for event in events]),
        "events": uuids([event[4] for event in events]),
        "times": timestamps([event[5] for event in events]),
    }


def _put_sources(session: Session, facts: Facts, applied: Applied) -> dict[str, Any]:
    # PostgreSQL's order of text needn't be Python's. Rows are locked in this order by all workers alike, which is all it is for.
    keys = sorted(facts.sources)
    ordinals = [facts.sources[key] for key in keys]
    events = cast("list[Source]", [facts.records[n].content for n in ordinals])
    rows = session.execute(SQL["sources"], _source_columns(events), prepare=True, binary=True).fetchall()
    kept = {(course + user, name) for course, user, name in rows}
    unchanged = [n for n, key in zip(ordinals, keys, strict=True) if key not in kept]
    if unchanged:
        left = cast("list[Source]", [facts.records[n].content for n in unchanged])
        _judge(session, "source", _source_columns(left) | {"ordinals": int4s(unchanged)}, facts, applied)
    ordinals = [n for n, key in zip(ordinals, keys, strict=True) if key in kept]
    if not ordinals:
        return {}
    events = cast("list[Source]", [facts.records[n].content for n in ordinals])
    columns = _source_columns(events)
    applied.results["source", "applied"] += len(events)
    return {
        "s_courses": columns["courses"],
        "s_users": columns["users"],
        "s_names": columns["names"],
        "s_statuses": columns["statuses"],
        "s_roles": columns["roles"],
        "s_ordinals": int4s(ordinals),
        "s_events": columns["events"],
        "s_traces": texts([event.traceparent for event in events]),
    }


def _source_columns(events: Sequence[Source]) -> dict[str, Any]:
    return {
        "courses": uuids([event.course_id for event in events]),
        "users": uuids([event.user_id for event in events]),
        "names": texts([event.source for event in events]),
        "statuses": texts([event.status for event in events]),
        "roles": texts([event.role for event in events]),
        "versions": int8s([event.version for event in events]),
        "events": uuids([event.event_id for event in events]),
        "times": timestamps([event.occurred_at for event in events]),
    }


def _new_suspensions(session: Session, facts: Facts, applied: Applied) -> dict[str, Any]:
    """Those that say something newer than the row. Looked at without a lock: `converge` compares versions again on the locked row."""
    ordinals = [facts.suspensions[key] for key in sorted(facts.suspensions)]
    events = cast("list[Suspension]", [facts.records[n].content for n in ordinals])
    columns = _suspension_columns(events, ordinals)
    known = {n for (n,) in session.execute(SQL["suspensions_known"], columns, prepare=True).fetchall()}
    if known:
        kept = [n for n in ordinals if n in known]
        left = cast("list[Suspension]", [facts.records[n].content for n in kept])
        _judge(session, "suspension", _suspension_columns(left, kept), facts, applied)
        ordinals = [n for n in ordinals if n not in known]
        for n in known:
            event = cast("Suspension", facts.records[n].content)
            del facts.suspensions[event.course_id + event.user_id]
    if not ordinals:
        return {}
    events = cast("list[Suspension]", [facts.records[n].content for n in ordinals])
    return {
        "x_courses": uuids([event.course_id for event in events]),
        "x_users": uuids([event.user_id for event in events]),
        "x_suspended": bools([event.suspended for event in events]),
        "x_versions": int8s([event.version for event in events]),
        "x_ordinals": int4s(ordinals),
        "x_events": uuids([event.event_id for event in events]),
        "x_traces": texts([event.traceparent for event in events]),
    }


def _suspension_columns(events: Sequence[Suspension], ordinals: Sequence[int]) -> dict[str, Any]:
    return {
        "courses": uuids([event.course_id for event in events]),
        "users": uuids([event.user_id for event in events]),
        "suspended": bools([event.suspended for event in events]),
        "versions": int8s([event.version for event in events]),
        "ordinals": int4s(ordinals),
    }


def _judge_suspensions(session: Session, facts: Facts, applied: Applied) -> None:
    """After `converge`: did another worker write the same or a newer version of one meanwhile? Its row is locked now."""
    ordinals = list(facts.suspensions.values())
    events = cast("list[Suspension]", [facts.records[n].content for n in ordinals])
    _judge(session, "suspension", _suspension_columns(events, ordinals), facts, applied, same="applied")


def _judge(
    session: Session, kind: str, columns: dict[str, Any], facts: Facts, applied: Applied, *, same: str = "repeated"
) -> None:
    """Say of events that changed nothing why: stale, a repetition, or another content under the same version."""
    for n, code in session.execute(SQL[f"{kind}s_unchanged"], columns, prepare=True).fetchall():
        verdict = _VERDICTS[code]
        if verdict == "conflict":
            record = facts.records[n]
            applied.rejected.append(
                (record, Rejection(RejectionReason.VERSION_CONFLICT, _conflict_detail(record.content)))
            )
        else:
            applied.results[kind, same if verdict == "repeated" else verdict] += 1


def _conflict_detail(event: Any) -> str:  # noqa: ANN401 - any event; each names its entity by its first ids
    ids = " ".join(
        f"{name}={text_of(value)}" for name, value in zip(event._fields, event, strict=True) if name in _ENTITY_FIELDS
    )
    return f"version {event.version} of {ids} was applied with other content; a change needs a higher version"


_ENTITY_FIELDS = frozenset({"segment_id", "user_id", "course_id"})
