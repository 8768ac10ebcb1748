"""`explain`: the document of why a person is, or is not, in a course (docs/reference/explain.md).

Reads one snapshot of the database, and the topic where the history is asked for. Must never write.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from sync_worker.enrollment import reasons
from sync_worker.enrollment.explain import ByMethod, BySource, Contribution, Explanation, Fact, Row, explain
from sync_worker.enrollment.reasons import Difference
from sync_worker.operations.snapshot import snapshot
from sync_worker.settings import Settings


def explain_document(settings: Settings, course: UUID, user: UUID) -> dict[str, Any]:
    """By the database as it is. Raises RetryableError while that is away."""
    with snapshot(settings, "explain") as session:
        found = explain(session, course, user)
    return document_of(found, str(course), str(user))


def document_of(found: Explanation, course: str, user: str) -> dict[str, Any]:
    """The document, stable."""
    sources = [
        *(_of_method(each, course) for each in found.methods),
        *(_of_source(each, course) for each in found.sources),
        *(
            _of_orphan(source, given, course, elsewhere=source in found.elsewhere)
            for source, given in sorted(found.orphans.items())
        ),
    ]
    return {
        "course_id": course,
        "user_id": user,
        "known": {"course": found.course_known, "user": found.user_known},
        "summary": reasons.summary(found, course, user),
        **_enrollment(found.row),
        "differs": any(source["differs"] is not None for source in sources),
        "group_members": _group_members(found),
        "sources": sources,
    }


def _enrollment(row: Row | None) -> dict[str, Any]:
    """What the row shows. A suspension in the course is told of somebody ABSENT, too: it waits for them."""
    cause = None
    if row is not None and row.version:
        cause = {"type": row.cause_type, "event_id": row.cause_event_id, "method_id": row.cause_method_id}
    return {
        "status": "ABSENT" if row is None else row.status,
        "roles": [] if row is None else row.roles,
        "groups": [] if row is None else row.groups,
        "suspended_in_course": row is not None and row.suspended,
        "suspension_version": None if row is None else row.suspension_version or None,
        "version": None if row is None else row.version,
        "updated_at": None if row is None else _time(row.updated_at),
        "cause": cause,
    }


def _group_members(found: Explanation) -> list[dict[str, Any]]:
    row = found.row
    if row is None:
        return []
    names = {each.method.method_id: each.method.name for each in found.methods}
    return [
        {
            "group_id": group,
            "hand_made": group in row.hand,
            "managed_by": [
                {"method_id": source, "name": names.get(source)}
                for source, given in sorted(row.sources.items())
                if given.get("group_id") == group and given["member"]
            ],
        }
        for group in row.groups
    ]


def _of_method(by: ByMethod, course: str) -> dict[str, Any]:
    method, membership = by.method, by.membership
    source = _source(method.method_id, method.kind, by.now, by.due, reasons.of_method(by))
    return source | {
        "differs": _difference(reasons.method_difference(by, course)),
        "method": {
            "name": method.name,
            "version": method.version,
            "active": method.active,
            "visible": method.visible,
            "enabled": method.enabled and not method.deleted,
            "deleted": method.deleted,
            "role": method.role,
            "group_id": method.group_id,
            "on_removal": method.on_removal,
            "segment_id": method.segment_id,
            "segment_name": method.segment_name,
            "occurred_at": _time(method.occurred_at),
            "event_id": method.event_id,
        },
        "membership": {
            "is_member": membership.is_member,
            **_fact(membership.fact),
            "held": membership.held is not None,
            "held_since": _time(membership.held_since),
        },
    }


def _of_source(by: BySource, course: str) -> dict[str, Any]:
    return _source(by.source, "OTHER", by.now, by.due, reasons.of_source(by)) | {
        "differs": _difference(reasons.source_difference(by, course)),
        "said": None if by.status is None else {"status": by.status, "role": by.role, **_fact(by.fact)},
    }


def _of_orphan(source: str, now: Contribution, course: str, *, elsewhere: bool) -> dict[str, Any]:
    return _source(source, now["kind"], now, None, reasons.of_orphan(source, elsewhere=elsewhere)) | {
        "differs": _difference(reasons.orphan_difference(source, now, course, elsewhere=elsewhere)),
    }


def _source(source: str, kind: str, now: Contribution | None, due: Contribution | None, why: str) -> dict[str, Any]:
    return {
        "source": source,
        "kind": kind,
        "gives": _contribution(now),
        "should_give": _contribution(due),
        "why": why,
        "differs": None,
        "method": None,
        "membership": None,
        "said": None,
    }


def _contribution(given: Contribution | None) -> Mapping[str, Any] | None:
    """As the contract shows it, with its nulls."""
    return (
        None if given is None else {name: given.get(name) for name in ("kind", "status", "role", "group_id", "member")}
    )


def _difference(found: Difference | None) -> dict[str, str] | None:
    return None if found is None else {"by": found.by, "why": found.why}


def _fact(fact: Fact) -> dict[str, Any]:
    return {"version": fact.version, "occurred_at": _time(fact.occurred_at), "event_id": fact.event_id}


def _time(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat()
