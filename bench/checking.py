"""Is what a round ended in what the sequential model says, and is every EnrollmentChanged there once?

The model (tests/model) is the judge, and the definition of an event's id in the contract; nothing here may ask the worker's code.
What differs raises WrongResult: the round's figures don't count.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from io import BytesIO
from typing import Any
from uuid import NAMESPACE_DNS, uuid5

import fastavro
from confluent_kafka import Message

from bench.errors import WrongResult, expect
from bench.load import PHASES, Load, as_model
from bench.site import BenchSite
from tests.model.model import Enrollment, Model, Pair
from tests.support.wire import prefix, schema

_NAMESPACE = uuid5(NAMESPACE_DNS, "user-segment-sync")
_ROWS = """select course_id::text, user_id::text, status, roles, groups::text[], suspended_in_course, sources, version
  from course_enrollment v"""
_VERSIONS = "select course_id::text, user_id::text, version from enrollment where version > 0"
# Rows that were there before: made by filling.py, told apart by a cause that nothing here has.
_FILLED = " and cause_type <> 'REPUBLISH'"
_UNFILLED = (
    f" where exists (select from enrollment e where e.course_id = v.course_id and e.user_id = v.user_id{_FILLED})"
)


@dataclass(frozen=True, slots=True)
class Expected:
    """What the database holds after a phase, and how many changes were emitted up to then."""

    enrollments: Mapping[Pair, Enrollment]
    versions: Mapping[Pair, int]
    members: int
    changes: int


def expected_of(load: Load, phases: Sequence[str] = PHASES) -> dict[str, Expected]:
    """By phase of the load, and of `replay`, which changes nothing."""
    model, found = Model(), {}
    model.apply_batch(as_model(event) for event in load.method_events)
    for phase in phases:
        events = load.phase(phase)
        model.apply_batch(as_model(event) for event in events)
        members = sum(each.is_member for each in model.memberships.values())
        found[phase] = Expected(model.enrollments, model.versions, members, len(model.changes))
    return {**found, "replay": found[phases[-1]]}


def check_rows(site: BenchSite, expected: Expected, phase: str, *, filled: int = 0) -> None:
    """Every row and version, members, and no dead letter. filled: so many rows and members were there before, and must be as they were."""
    rows = site.rows(_ROWS + _UNFILLED * bool(filled))
    versions = {(course, user): version for course, user, version in site.rows(_VERSIONS + _FILLED * bool(filled))}
    wrong = [
        (row[:2], row[2:], should)
        for row in rows
        if (should := expected.enrollments.get((row[0], row[1]))) is None or not _same(row[2:], should)
    ]
    if wrong:
        raise WrongResult(f"{len(wrong)} rows are wrong after {phase}; the first: {wrong[0]}")
    expect(f"rows after {phase}", len(rows), len(expected.enrollments))
    if versions != expected.versions:
        pair = next(
            pair for pair in expected.versions.keys() | versions if versions.get(pair) != expected.versions.get(pair)
        )
        raise WrongResult(f"{pair} has version {versions.get(pair)} after {phase}, expected {expected.versions.get(pair)}")  # fmt: skip
    found = site.one(
        "select (select count(*) from membership where is_member), (select count(*) from dead_letter_count)"
    )
    expect(f"members and kinds of dead letters after {phase}", found, (expected.members + filled, 0))
    if filled:
        same = "select count(*) from enrollment where cause_type = 'REPUBLISH' and version = 1 and status = 'ACTIVE'"
        expect(f"rows that were there before, after {phase}", site.one(same)[0], filled)


def _same(row: tuple[Any, ...], should: Enrollment) -> bool:
    status, roles, groups, suspended, sources, version = row
    return (
        (status, tuple(roles), tuple(groups), suspended, version)
        == (should.status, should.roles, should.groups, should.suspended_in_course, should.version)
        and sources == {source: asdict(each) for source, each in should.sources.items()}
    )  # fmt: skip


def _decode(value: bytes) -> Any:
    """By fastavro and the .avsc alone."""
    framing = prefix("EnrollmentChanged")
    if not value.startswith(framing):
        raise WrongResult(f"a change begins with {value[:10]!r}, which is not its schema's fingerprint")
    return fastavro.schemaless_reader(BytesIO(value[len(framing) :]), schema("EnrollmentChanged"), None)


class Chains:
    """What was published, key by key: each change must have the id of the next version, so none is lost, doubled or out of order."""

    def __init__(self) -> None:
        self.versions: Counter[bytes] = Counter()
        self.states: dict[bytes, tuple[str, tuple[str, ...], tuple[str, ...]]] = {}
        """The last status, roles and groups of each key, where values were decoded."""
        self._after: defaultdict[bytes, Any] = defaultdict(lambda: None)

    def take(self, messages: Iterable[Message], *, decoded: bool) -> None:
        """decoded: also the value is read, whose `before` must be the `after` of the version before."""
        for message in messages:
            key = message.key() or b""
            self.versions[key] += 1
            version = self.versions[key]
            event_id = str(uuid5(_NAMESPACE, f"{key.decode()}:{version}"))
            if dict(message.headers() or ())["ce_id"] != event_id.encode():
                raise WrongResult(
                    f"change {version} of {key!r} is not its version {version}: lost, doubled or out of order"
                )
            if decoded:
                self._look_into(key, version, message.value() or b"")

    def _look_into(self, key: Any, version: int, value: Any) -> None:
        event = _decode(value)
        before, after = event["before"], event["after"]
        if (event["version"], f"{event['course_id']}:{event['user_id']}".encode()) != (version, key):
            raise WrongResult(f"{key!r} carries version {event['version']} of {event['course_id']}:{event['user_id']}")
        known = self._after[key]
        if before != known and not (known is None and before["status"] == "ABSENT"):
            raise WrongResult(f"version {version} of {key!r} begins with {before}, the one before ended with {known}")
        self._after[key] = after
        self.states[key] = (after["status"], tuple(after["roles"]), tuple(str(group) for group in after["groups"]))


def check_topic(site: BenchSite, expected: Expected, *, decoded: bool = True) -> None:
    """The whole topic from its beginning: per key the versions 1, 2, 3 … up to the row's, and where decoded what the row shows."""
    chains, total = Chains(), sum(expected.versions.values())
    with closing(site.changes_reader()) as reader:
        # Once all are there, a moment more for what must not be.
        while messages := reader.some(5.0 if reader.count < total else 0.3):
            chains.take(messages, decoded=decoded)
    expect("changes in the topic", reader.count, total)
    should = {f"{course}:{user}".encode(): version for (course, user), version in expected.versions.items()}
    if chains.versions != should:
        key = next(key for key in should.keys() | chains.versions if should.get(key) != chains.versions.get(key))
        raise WrongResult(
            f"{key!r} ends with version {chains.versions.get(key)} in the topic, expected {should.get(key)}"
        )
    if decoded:
        last = {key: state for key, state in chains.states.items() if state[0] != "ABSENT"}
        shown = {
            f"{course}:{user}".encode(): (each.status, each.roles, each.groups)
            for (course, user), each in expected.enrollments.items()
        }
        if last != shown:
            key = next(key for key in last.keys() | shown.keys() if last.get(key) != shown.get(key))
            raise WrongResult(f"{key!r} ends as {last.get(key)} in the topic, expected {shown.get(key)}")
