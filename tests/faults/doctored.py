"""A history in which nothing is wrong, made by the model alone, for tests to falsify."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any
from uuid import NAMESPACE_DNS, uuid5

from tests.faults.editing import Edited
from tests.faults.history import Change, History, Input, Pair
from tests.faults.publishing import Sent
from tests.faults.sending import Garbage
from tests.faults.watching import Sample, Seen
from tests.faults.workers import End
from tests.model.events import Event, HandEdit, MembershipChanged, MethodChanged, SourceChanged, to_record, topic_of
from tests.model.histories import pool
from tests.model.model import Change as ModelChange
from tests.model.model import Model
from tests.model.rule import EnrollmentState
from tests.support.kafka import KafkaRecord
from tests.support.wire import encode

COURSE, (SEGMENT, OTHER_SEGMENT), USERS, GROUPS = (
    pool("course", 1)[0],
    pool("segment", 2),
    pool("user", 4),
    pool("group", 2),
)
METHOD = pool("method", 1)[0]
TOPICS = {name: f"run.{name}" for name in ("membership", "methods", "sources", "changes", "dead_letters")}
_SHORT = {"segments.membership": "membership", "enrollment.methods": "methods", "enrollment.sources": "sources"}
_HEADERS = (("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), ("x", None))


def sound_history() -> History:
    """People join and leave through one method, one is edited by hand, one leaves a record that can't be read."""
    events: list[Event] = [
        MethodChanged(
            _id(0), 0, METHOD, 1, COURSE, SEGMENT, None, "SEGMENT_SYNC", "M", True, True, "student", GROUPS[0]
        ),
        *(MembershipChanged(_id(n), n, SEGMENT, user, 1, True) for n, user in enumerate(USERS, start=1)),
        SourceChanged(_id(10), 10, COURSE, USERS[0], "manual", 1, "ACTIVE", "teacher"),
        MembershipChanged(_id(11), 11, SEGMENT, USERS[0], 2, False),
        MembershipChanged(_id(12), 12, SEGMENT, USERS[1], 2, False),
        MembershipChanged(_id(13), 13, SEGMENT, USERS[1], 3, True),
    ]
    model, history = Model(), History(topics=dict(TOPICS))
    for event in events:
        model.apply_batch([event])
        topic = _SHORT[topic_of(event)]
        _add_input(history, topic, event, encode(*to_record(event)))
    _add_input(history, "membership", Garbage(b"\x99?", "undecodable"), b"\x99?")
    letter = history.inputs[-1].record
    ours = {"reason": b"undecodable", "detail": b"?", "topic": TOPICS["membership"].encode(), "partition": b"0",
            "offset": str(letter.offset).encode(), "timestamp": b""}  # fmt: skip
    headers = (*letter.headers, *((f"dlq_{name}", value) for name, value in ours.items()))
    history.dead_letters.append(KafkaRecord(TOPICS["dead_letters"], 0, 0, letter.key, letter.value, headers))
    edit = HandEdit("insert", COURSE, GROUPS[1], USERS[2])
    assert model.edit(edit) == "ok"
    history.edits.append(Edited(edit, 2, "committed"))
    for offset, change in enumerate(model.changes):
        history.changes.append(_change(offset, change))
    history.followed, history.followed_uncommitted = list(history.changes), list(history.changes)
    _fill_tables(history, model)
    positions = {f"{TOPICS[name]}/0": 100 for name in ("membership", "methods", "sources")}
    history.seen = Seen(
        [Sample(1.0, dict.fromkeys(positions, 0), 0, 0, 1, 0, 4), Sample(2.0, positions, 5, 3, 2, 0, 4)]
    )
    history.seen.threads_max["worker-0"] = 30
    history.ends = [
        End("worker-0", "terminated", 0, 1.0, '{"event": "worker_starts"}'),
        End("worker-1", "killed", -9, 0.0, ""),
    ]
    return history


def chain_of(history: History, user: str) -> list[int]:
    """Where in `changes` those of this user are."""
    return [n for n, change in enumerate(history.changes) if change.pair == (COURSE, user)]


def _id(number: int) -> str:
    return str(uuid5(NAMESPACE_DNS, f"event {number}"))


def _add_input(history: History, topic: str, content: Event | Garbage, value: bytes) -> None:
    offset = sum(each.record.topic == topic for each in history.inputs)
    history.inputs.append(Input(KafkaRecord(topic, 0, offset, b"key", value, _HEADERS), content))
    history.acknowledged[Sent(topic, b"key", value)] = 1


def _change(offset: int, change: ModelChange) -> Change:
    key = f"{change.course_id}:{change.user_id}"
    (type_, event_id), *_ = sorted(change.causes, key=str)
    event = {
        "event_id": str(uuid5(uuid5(NAMESPACE_DNS, "user-segment-sync"), f"{key}:{change.version}")),
        "occurred_at": 0,
        "course_id": change.course_id,
        "user_id": change.user_id,
        "version": change.version,
        "change": change.change,
        "before": _state(change.before),
        "after": _state(change.after),
        "cause": {"type": type_, "event_id": event_id, "method_id": None},
    }
    return Change(KafkaRecord(TOPICS["changes"], 0, offset, key.encode(), b"%d" % offset, ()), event)


def _state(state: EnrollmentState) -> dict[str, Any]:
    return {
        "status": state.status,
        "roles": list(state.roles),
        "groups": list(state.groups),
        "suspended_in_course": state.suspended_in_course,
        "sources": [asdict(source) for source in state.sources],
    }


def _fill_tables(history: History, model: Model) -> None:
    tables = history.tables
    tables.memberships = {key: (event.is_member, event.version) for key, event in model.memberships.items()}
    tables.sources = {key: (event.status, event.role, event.version) for key, event in model.sources.items()}
    for method_id, method in model.methods.items():
        columns = asdict(method)
        for name in ("event_id", "occurred_at", "method_id"):
            columns.pop(name)
        tables.methods[method_id] = columns
    enrollments = model.enrollments
    for pair, version in model.versions.items():
        row = enrollments.get(pair)
        sources = {source: asdict(each) for source, each in row.sources.items()} if row else {}
        hand = [each.group_id for each in model.group_members if _pair(each) == pair and not each.managed]
        tables.rows[pair] = {"version": version, "sources": sources, "hand": hand, "suspended": False, "suspension_version": 0,
                             "status": row.status if row else "ABSENT"}  # fmt: skip
        if row:
            tables.enrollments[pair] = {
                "status": row.status, "roles": list(row.roles), "groups": list(row.groups), "suspended_in_course": False,
                "sources": sources, "version": row.version,
            }  # fmt: skip
    tables.members = {(m.course_id, m.group_id, m.user_id, m.managed, m.methods) for m in model.group_members}
    tables.positions = {(TOPICS[name], 0): 100 for name in ("membership", "methods", "sources")}


def _pair(member: Any) -> Pair:
    return member.course_id, member.user_id
