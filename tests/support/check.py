"""What must hold of any site that is settled, independent of the worker's code: the model's rows, and a gapless chain of changes."""

from __future__ import annotations

from collections import defaultdict
from typing import Any
from uuid import NAMESPACE_DNS, uuid5

from tests.model.model import Model
from tests.support.kafka import KafkaRecord
from tests.support.site import Change, Site

_EVENT_NAMESPACE = uuid5(NAMESPACE_DNS, "user-segment-sync")
ABSENT: dict[str, Any] = {"status": "ABSENT", "roles": [], "groups": [], "suspended_in_course": False, "sources": []}


def shown(enrollment: Any) -> dict[str, Any]:
    """A model's enrollment as the view course_enrollment shows it, without version."""
    return {
        "status": str(enrollment.status),
        "roles": list(enrollment.roles),
        "groups": list(enrollment.groups),
        "suspended_in_course": enrollment.suspended_in_course,
        "sources": {
            source: {
                "kind": str(c.kind), "status": str(c.status), "role": c.role, "group_id": c.group_id, "member": c.member,
            }
            for source, c in enrollment.sources.items()
        },
    }  # fmt: skip


def state_of(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the view as the EnrollmentState of an event."""
    sources = [{"source": source, **row["sources"][source]} for source in sorted(row["sources"])]
    return {**{name: row[name] for name in ("status", "roles", "groups", "suspended_in_course")}, "sources": sources}


def assert_rows_equal_model(site: Site, model: Model) -> None:
    """The public views hold what the model says, versions aside (they depend on how a history was batched)."""
    rows = {
        pair: {name: value for name, value in row.items() if name != "version"}
        for pair, row in site.enrollments().items()
    }
    expected = {pair: shown(enrollment) for pair, enrollment in model.enrollments.items()}
    differing = {
        pair: (rows.get(pair), expected.get(pair))
        for pair in rows.keys() | expected.keys()
        if rows.get(pair) != expected.get(pair)
    }
    assert not differing, f"{len(differing)} rows differ, e.g. {next(iter(differing.items()))}"
    members = {(m.course_id, m.group_id, m.user_id, m.managed, tuple(m.methods)) for m in model.group_members}
    found = site.group_members()
    assert found == members, f"unexpected {sorted(found - members)[:3]}, missing {sorted(members - found)[:3]}"


def assert_changes_are_a_chain(site: Site, changes: list[Change] | None = None) -> int:
    """Every EnrollmentChanged there once, in order, gapless from 1, before = previous after, the last = the row; how many.

    A tombstone ends a life of its key: the next one starts at version 1 again.
    """
    changes = site.changes() if changes is None else changes
    per_key: dict[bytes, list[Change | KafkaRecord]] = defaultdict(list)
    for change in changes:
        assert change.record.key is not None
        per_key[change.record.key].append(change)
    for tombstone in site.tombstones():
        assert tombstone.key is not None
        per_key[tombstone.key].append(tombstone)
    rows = site.enrollments()
    for key, chain in per_key.items():
        version, last = _assert_lives(key, sorted(chain, key=lambda step: _record(step).offset))
        row = rows.pop(_pair(key), None)
        assert last == (ABSENT if row is None else state_of(row)), f"{key!r}: the last event is not the row"
        if row is not None:
            assert row["version"] == version
    assert not rows, f"{len(rows)} rows without an event, e.g. {next(iter(rows))}"
    return len(changes)


def _assert_lives(key: bytes, chain: list[Change | KafkaRecord]) -> tuple[int, dict[str, Any]]:
    """Each life of a key is a chain; version and state at the end of the last."""
    course, user = _pair(key)
    assert len({_record(step).partition for step in chain}) == 1
    version, before = 0, ABSENT
    for step in chain:
        if isinstance(step, KafkaRecord):
            version, before = 0, ABSENT
            continue
        version += 1
        event = step.event
        assert (event["course_id"], event["user_id"]) == (course, user)
        assert event["version"] == version, f"{key!r}: version {event['version']} where {version} was due"
        assert event["event_id"] == str(uuid5(_EVENT_NAMESPACE, f"{course}:{user}:{version}"))
        assert event["before"] == before, f"{key!r} version {version}: before is not the previous after"
        assert event["after"] != before
        before = event["after"]
    return version, before


def _record(step: Change | KafkaRecord) -> KafkaRecord:
    return step if isinstance(step, KafkaRecord) else step.record


def _pair(key: bytes) -> tuple[str, str]:
    course, user = key.decode().split(":")
    return course, user


def assert_site_equals_model(site: Site, model: Model) -> int:
    """Rows and events; how many events."""
    assert_rows_equal_model(site, model)
    return assert_changes_are_a_chain(site)
