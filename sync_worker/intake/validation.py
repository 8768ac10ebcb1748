"""What makes a decoded record a valid event, as far as one event can tell (contract §2, "Valid or not").

Turns a datum, a dict with a record's fields, into the event it says, ids into their bytes. Must never look beyond the
one event: versions and earlier states are judged where the facts are. `publish` checks its lines by the same rules.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from sync_worker.errors import InvalidRecord, RejectionReason
from sync_worker.events import (
    CourseId,
    Event,
    EventId,
    GroupId,
    Membership,
    Method,
    MethodId,
    MethodKind,
    RecordName,
    SegmentId,
    Source,
    Suspension,
    UserId,
)

MAX_STRING = 255
MAX_VERSION = 2**63 - 1
MAX_OCCURRED_AT = 253_402_300_799_999_999  # the last microsecond of the year 9999
REMOVAL_POLICIES = ("UNENROLL", "SUSPEND", "SUSPEND_WITHOUT_ROLES")
SOURCE_STATUSES = ("ACTIVE", "SUSPENDED", "ABSENT")

Datum = Mapping[str, Any]
Build = Callable[[Datum, str | None], Event]

_KINDS = tuple(MethodKind)
_from_hex = bytes.fromhex


def invalid(detail: str) -> InvalidRecord:
    """The error for a record whose bytes are in order but whose content is not."""
    return InvalidRecord(RejectionReason.INVALID_EVENT, detail)


def shown(value: object) -> str:
    """A value as an error detail may show it: on one line, control characters escaped, cut short."""
    if isinstance(value, str | bytes) and len(value) > 48:
        unit = "characters" if isinstance(value, str) else "bytes"
        return f"{ascii(value[:48])[:100]}… ({len(value)} {unit})"
    text = ascii(value)
    return text if len(text) <= 100 else f"{text[:100]}…"


def uuid_bytes(text: str) -> bytes | None:
    """The 16 bytes of an id in the 8-4-4-4-12 form, in either case; None for anything else."""
    if len(text) != 36 or not text[8] == text[13] == text[18] == text[23] == "-":
        return None
    try:
        # fromhex also skips white space, which then is missing from the 16 bytes.
        id_ = _from_hex(text.replace("-", ""))
    except ValueError:
        return None
    return id_ if len(id_) == 16 else None


def _membership(datum: Datum, traceparent: str | None, *, is_member: bool) -> Membership:
    segment_id = uuid_bytes(datum["segment_id"])
    user_id = uuid_bytes(datum["user_id"])
    event_id = uuid_bytes(datum["event_id"])
    version = datum["version"]
    occurred_at = datum["occurred_at"]
    if segment_id is None or user_id is None or event_id is None:
        raise _bad_id(datum, "event_id", "segment_id", "user_id")
    if not 1 <= version <= MAX_VERSION or not 0 <= occurred_at <= MAX_OCCURRED_AT:
        raise _bad_number(datum)
    return Membership(
        SegmentId(segment_id), UserId(user_id), is_member, version, EventId(event_id), occurred_at, traceparent
    )


def _method(datum: Datum, traceparent: str | None) -> Method:
    method_id = uuid_bytes(datum["method_id"])
    course_id = uuid_bytes(datum["course_id"])
    segment_id = uuid_bytes(datum["segment_id"])
    event_id = uuid_bytes(datum["event_id"])
    if method_id is None or course_id is None or segment_id is None or event_id is None:
        raise _bad_id(datum, "event_id", "method_id", "course_id", "segment_id")
    group_id = None
    if datum["group_id"] is not None:
        group_id = uuid_bytes(datum["group_id"])
        if group_id is None:
            raise _bad_id(datum, "group_id")
    _check_numbers(datum)
    _check_one_of(datum, "kind", _KINDS)
    _check_one_of(datum, "on_removal", REMOVAL_POLICIES)
    _check_text(datum, "name", may_be_empty=True)
    _check_text(datum, "segment_name", may_be_empty=True)
    role = datum["role"]
    if datum["kind"] == MethodKind.SEGMENT_SYNC:
        if not role:
            raise invalid(f"role: is {shown(role)}, but a SEGMENT_SYNC method needs a role")
        _check_text(datum, "role")
    else:
        if group_id is None:
            raise invalid("group_id: is null, but a SEGMENT_GROUP method needs a group")
        if role is not None:
            raise invalid(f"role: is {shown(role)}, but a SEGMENT_GROUP method has none; it must be null")
    return Method(
        MethodId(method_id),
        datum["version"],
        CourseId(course_id),
        SegmentId(segment_id),
        datum["segment_name"],
        datum["kind"],
        datum["name"],
        datum["active"],
        datum["visible"],
        role,
        None if group_id is None else GroupId(group_id),
        datum["on_removal"],
        datum["deleted"],
        EventId(event_id),
        datum["occurred_at"],
        traceparent,
    )


def _source(datum: Datum, traceparent: str | None) -> Source:
    course_id, user_id, event_id = _course_user_event(datum)
    _check_numbers(datum)
    _check_one_of(datum, "status", SOURCE_STATUSES)
    _check_text(datum, "source")
    if uuid_bytes(datum["source"]) is not None:
        raise invalid(f"source: {shown(datum['source'])} is a uuid; uuids name enrollment methods, not other sources")
    _check_text(datum, "role")
    return Source(
        course_id,
        user_id,
        datum["source"],
        datum["status"],
        datum["role"],
        datum["version"],
        event_id,
        datum["occurred_at"],
        traceparent,
    )


def _suspension(datum: Datum, traceparent: str | None) -> Suspension:
    course_id, user_id, event_id = _course_user_event(datum)
    _check_numbers(datum)
    return Suspension(
        course_id, user_id, datum["suspended"], datum["version"], event_id, datum["occurred_at"], traceparent
    )


BUILDERS: Mapping[RecordName, Build] = {
    RecordName.MEMBER_ADDED: partial(_membership, is_member=True),
    RecordName.MEMBER_REMOVED: partial(_membership, is_member=False),
    RecordName.METHOD_CHANGED: _method,
    RecordName.SOURCE_CHANGED: _source,
    RecordName.SUSPENSION_CHANGED: _suspension,
}
"""For each input record: from a datum whose types are right to its event. Raises InvalidRecord (invalid_event)."""


def _course_user_event(datum: Datum) -> tuple[CourseId, UserId, EventId]:
    course_id = uuid_bytes(datum["course_id"])
    user_id = uuid_bytes(datum["user_id"])
    event_id = uuid_bytes(datum["event_id"])
    if course_id is None or user_id is None or event_id is None:
        raise _bad_id(datum, "event_id", "course_id", "user_id")
    return CourseId(course_id), UserId(user_id), EventId(event_id)


def _check_numbers(datum: Datum) -> None:
    if not 1 <= datum["version"] <= MAX_VERSION or not 0 <= datum["occurred_at"] <= MAX_OCCURRED_AT:
        raise _bad_number(datum)


def _check_one_of(datum: Datum, field: str, allowed: tuple[str, ...]) -> None:
    if datum[field] not in allowed:
        raise invalid(f"{field}: {shown(datum[field])} is not one of {', '.join(allowed)}")


def _check_text(datum: Datum, field: str, *, may_be_empty: bool = False) -> None:
    text = datum[field]
    if text is None:
        return
    if len(text) > MAX_STRING:
        raise invalid(f"{field}: has {len(text)} characters, at most {MAX_STRING} are allowed")
    if "\0" in text:
        raise invalid(f"{field}: has a NUL character at position {text.index(chr(0))}, which no text may have")
    if not text and not may_be_empty:
        raise invalid(f"{field}: is empty; give a text{', or null for no role' if field == 'role' else ''}")


def _bad_id(datum: Datum, *fields: str) -> InvalidRecord:
    wrong = [field for field in fields if uuid_bytes(datum[field]) is None]
    return invalid("; ".join(f"{field}: {shown(datum[field])} is not a uuid in the 8-4-4-4-12 form" for field in wrong))


def _bad_number(datum: Datum) -> InvalidRecord:
    if not 1 <= datum["version"] <= MAX_VERSION:
        return invalid(f"version: {shown(datum['version'])} is not between 1 and 2^63-1")
    return invalid(
        f"occurred_at: {shown(datum['occurred_at'])} is not a time between 1970 and 9999 in microseconds since 1970"
    )
