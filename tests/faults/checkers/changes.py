"""Is every change published once, in order, without a gap, and for a reason (contract §2)? Do all readers learn the same?"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from uuid import NAMESPACE_DNS, uuid5

from tests.faults.checkers.expected import Expected
from tests.faults.checkers.rows import state_of_view
from tests.faults.checkers.violation import Violation
from tests.faults.history import Change, History
from tests.model.events import MembershipChanged, MethodChanged, record_name
from tests.model.rule import ABSENT, Contribution, EnrollmentState, SourceState, change_kind

_NAMESPACE = uuid5(NAMESPACE_DNS, "user-segment-sync")
# What no event causes. A hold is released, a repair is made, a row is published once more: by an operator.
_WITHOUT_EVENT = {"SQL"}
_BY_OPERATORS = {"RECONCILE", "HOLD_RELEASED", "REPUBLISH"}


def check_chains(history: History, _expected: Expected) -> Iterator[Violation]:
    """Per key versions 1, 2, 3 …, before = the previous after, the last after = the row."""
    rows = history.tables.enrollments
    versions = {pair: row["version"] for pair, row in history.tables.rows.items() if row["version"]}
    chains = by_key(history.changes)
    for key, chain in sorted(chains.items()):
        yield from _check_chain(key, chain)
        last = chain[-1].event
        pair = chain[-1].pair
        row = rows.get(pair)
        state = ABSENT if row is None else state_of_view(row)
        if last["version"] < versions.get(pair, 0):
            text = f"the row is at version {versions[pair]}, the last event at {last['version']}"
            yield Violation("chains", "lost", key, text)
        elif last["version"] > versions.get(pair, 0):
            text = f"the last event is version {last['version']}, the row at {versions.get(pair)}"
            yield Violation("chains", "wrong", key, text)
        elif state_of(last["after"]) != state:
            yield Violation("chains", "wrong", key, f"the last event says {last['after']}, the row is {state}")
    for pair in sorted(versions.keys() - {chain[-1].pair for chain in chains.values()}):
        yield Violation("chains", "lost", ":".join(pair), f"a row of version {versions[pair]} and no event at all")


def by_key(changes: Iterable[Change]) -> dict[str, list[Change]]:
    """In the order of reading."""
    chains: defaultdict[str, list[Change]] = defaultdict(list)
    for change in changes:
        chains[(change.record.key or b"").decode("utf-8", "replace")].append(change)
    return dict(chains)


def _check_chain(key: str, chain: Sequence[Change]) -> Iterator[Violation]:
    if len({change.record.partition for change in chain}) > 1:
        yield Violation("chains", "reordered", key, "in more than one partition")
    seen: set[int] = set()
    before, version = ABSENT, 0
    for change in chain:
        event = change.event
        if f"{event['course_id']}:{event['user_id']}" != key:
            yield Violation("chains", "wrong", key, f"the event is of {event['course_id']}:{event['user_id']}")
        if event["event_id"] != str(uuid5(_NAMESPACE, f"{key}:{event['version']}")):
            yield Violation("chains", "wrong", key, f"version {event['version']} has the event_id {event['event_id']}")
        if event["version"] in seen:
            yield Violation(
                "chains", "repeated", key, f"version {event['version']} is there again at offset {change.record.offset}"
            )
            continue
        seen.add(event["version"])
        if event["version"] < version:
            yield Violation("chains", "reordered", key, f"version {event['version']} comes after version {version}")
            continue
        if event["version"] > version + 1:
            yield Violation("chains", "lost", key, f"version {event['version']} follows version {version}")
        elif state_of(event["before"]) != before:
            yield Violation("chains", "wrong", key, f"version {event['version']}: before is not the previous after")
        yield from _check_kind(key, event)
        before, version = state_of(event["after"]), event["version"]


def _check_kind(key: str, event: dict[str, Any]) -> Iterator[Violation]:
    before, after = state_of(event["before"]), state_of(event["after"])
    if before == after and event["cause"]["type"] != "REPUBLISH":
        yield Violation("chains", "wrong", key, f"version {event['version']} changes nothing")
    elif event["change"] != change_kind(before, after):
        yield Violation(
            "chains",
            "wrong",
            key,
            f"version {event['version']} says {event['change']}, is {change_kind(before, after)}",
        )


def state_of(shown: dict[str, Any]) -> EnrollmentState:
    """An EnrollmentState of an event as the model's."""
    return EnrollmentState(
        shown["status"],
        tuple(shown["roles"]),
        tuple(shown["groups"]),
        shown["suspended_in_course"],
        tuple(
            SourceState(each["source"], each["kind"], each["status"], each["role"], each["group_id"], each["member"])
            for each in shown["sources"]
        ),
    )


def contributions_in(shown: dict[str, Any]) -> dict[str, Contribution]:
    """The sources of an event's EnrollmentState."""
    return {
        each["source"]: Contribution(each["kind"], each["status"], each["role"], each["group_id"], each["member"])
        for each in shown["sources"]
    }


def check_causes(history: History, expected: Expected) -> Iterator[Violation]:
    """No change without an event that may have made it: committed, valid, of this person or of a method of this course."""
    for change in history.changes:
        cause, key = change.event["cause"], (change.record.key or b"").decode()
        if cause["type"] in _WITHOUT_EVENT | _BY_OPERATORS:
            continue
        event = expected.causes.get(cause["event_id"] or "")
        text = f"version {change.event['version']} was caused by {cause}"
        if event is None:
            yield Violation("causes", "wrong", key, f"{text}, an event that never was or never counted")
            continue
        course, user = change.pair
        fits = (
            event.course_id == course
            if isinstance(event, MethodChanged)
            else event.user_id == user and (isinstance(event, MembershipChanged) or event.course_id == course)
        )
        if cause["type"] != record_name(event) or not fits:
            yield Violation("causes", "wrong", key, f"{text}, which is {event}")


def check_followers(history: History, _expected: Expected) -> Iterator[Violation]:
    """Who read while it happened learnt what the topic says in the end; one that reads uncommitted, after dropping repeats."""
    committed = _sequences(history.changes)
    yield from _compare("a read_committed follower", committed, _sequences(history.followed))
    first_seen: dict[str, Change] = {}
    for change in history.followed_uncommitted:
        known = first_seen.setdefault(change.event["event_id"], change)
        if known.record.value != change.record.value:
            key = (change.record.key or b"").decode()
            yield Violation("followers", "wrong", key, f"{change.event['event_id']} was published with two contents")
    yield from _compare("a read_uncommitted follower", committed, _sequences(first_seen.values()))


def _sequences(changes: Iterable[Change]) -> dict[str, list[int]]:
    return {key: [change.event["version"] for change in chain] for key, chain in by_key(changes).items()}


def _compare(who: str, expected: dict[str, list[int]], found: dict[str, list[int]]) -> Iterator[Violation]:
    for key in sorted(expected.keys() | found.keys()):
        should, did = expected.get(key, []), found.get(key, [])
        if should == did:
            continue
        missing, surplus = Counter(should) - Counter(did), Counter(did) - Counter(should)
        kind = "lost" if missing else "repeated" if surplus else "reordered"
        yield Violation("followers", kind, key, f"{who} saw versions {did}, the topic has {should}")  # type: ignore[arg-type]  # each is one
