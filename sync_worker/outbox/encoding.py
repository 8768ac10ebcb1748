"""Turns an outbox row into the Kafka record of its EnrollmentChanged: key, framed Avro value and CloudEvents headers.

Members of a method share the same contributions, so the Avro bytes of a state are kept and a row costs a look-up and a
join. It must never differ from what fastavro writes for the same schema, and never skip a row it can't make sense of.
"""

import json
import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import sha1
from typing import Any, NamedTuple
from urllib.parse import quote
from uuid import NAMESPACE_DNS, uuid5

from sync_worker.errors import FatalError
from sync_worker.events import NAMESPACE, RecordName, new_tuple
from sync_worker.outbox.avro import SchemaReader, array, boolean, long, string, unknown_layout, uuid

CONTENT_TYPE = "application/avro"
"""Under either framing, as in the CloudEvents Kafka binding's example for Avro data: the value's first bytes tell the
framing (contract §2)."""

RECORD_NAME = f"{NAMESPACE}.{RecordName.ENROLLMENT_CHANGED}"

_EVENT_ID_NAMESPACE = uuid5(NAMESPACE_DNS, "user-segment-sync").bytes
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_VARIANT = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}  # RFC 9562: the two high bits are 10

_FIELDS = ("event_id", "occurred_at", "course_id", "user_id", "version", "change", "before", "after", "cause")
_STATE_FIELDS = ("status", "roles", "groups", "suspended_in_course", "sources")
_SOURCE_FIELDS = ("source", "kind", "status", "role", "group_id", "member")
_CAUSE_FIELDS = ("type", "event_id", "method_id")

_CHANGES = ("ENROLLED", "UNENROLLED", "SUSPENDED", "REACTIVATED", "UPDATED")
_STATUSES = ("ABSENT", "ACTIVE", "SUSPENDED")
_KINDS = ("SEGMENT_SYNC", "SEGMENT_GROUP", "OTHER")

_VERSIONS = [long(version) for version in range(1024)]

_REQUIRED = frozenset({"kind", "status", "member"})
_ALLOWED = frozenset({*_REQUIRED, "role", "group_id"})
_ENTRY_OVERHEAD = 400  # bytes of the objects around a cached state: three bytes objects, two tuples, a dict's slot


class OutboxRow(NamedTuple):
    """One change as the outbox holds it, in PostgreSQL's text format where that saves parsing (design §5, §8).

    Ids are in canonical form, times are microseconds since 1970, UTC. `sources` and `before_sources` are the text of a
    jsonb object from source to contribution, null members left out; `hand` and `before_hand` (hand-made groups) the
    text of a uuid[]. What begins with `before_` is None when there was no row.
    """

    id: int
    course_id: str
    user_id: str
    version: int
    recorded_at_us: int
    before_sources: bytes | None
    before_hand: bytes | None
    before_suspended: bool | None
    sources: bytes
    hand: bytes
    suspended: bool
    cause_type: str
    cause_event_id: str | None
    cause_method_id: str | None
    traceparent: str | None


class EncodedChange(NamedTuple):
    """A record of the topic `enrollment.changes`, ready for a producer."""

    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]
    change: str  # ENROLLED, UNENROLLED, …


class _State(NamedTuple):
    """An EnrollmentState: its status, and its Avro bytes."""

    status: str
    encoded: bytes


class ChangeEncoder:
    """Encodes outbox rows as EnrollmentChanged (contract §2). For one thread.

    `schema` is that of EnrollmentChanged, `prefix` the framing before the Avro bytes (single-object or Confluent), and
    `source` the `ce_source`, a URI reference. The states kept take at most about `cache_bytes`. Raises FatalError for a
    schema whose layout isn't the one written here: its bytes would be read as something else.
    """

    def __init__(self, schema: Any, *, prefix: bytes, source: str, cache_bytes: int = 16 << 20) -> None:
        layout = SchemaReader(schema)
        fields = layout.record(layout.root, "the record", _FIELDS)
        for name in ("event_id", "course_id", "user_id"):
            layout.primitive(fields[name], name, "string")
        for name in ("occurred_at", "version"):
            layout.primitive(fields[name], name, "long")
        changes = layout.enum(fields["change"], "change", _CHANGES)
        self._change = {(before, after): changes[_change(before, after)] for before in _STATUSES for after in _STATUSES}
        # `before` and `after` are one record type, so what is cached for one serves the other.
        if layout.resolve(fields["before"]) != layout.resolve(fields["after"]):
            raise unknown_layout("after", "another type than before", "one type for both")
        self._derive = _StateDeriver(layout, fields["after"]).derive

        cause = layout.record(fields["cause"], "cause", _CAUSE_FIELDS)
        layout.primitive(cause["type"], "cause.type", "string")
        self._cause_event_id = layout.optional(cause["event_id"], "cause.event_id")
        self._cause_method_id = layout.optional(cause["method_id"], "cause.method_id")
        self._cause_type = lru_cache(maxsize=64)(string)

        self._prefix = prefix
        self._absent = self._derive(b"{}", b"{}", False)
        self._states: dict[tuple[bytes, bytes, bool], _State] = {}
        self._room = self._cache_bytes = cache_bytes
        self._fixed_headers = [
            ("ce_specversion", b"1.0"),
            ("ce_type", RECORD_NAME.encode()),
            ("ce_source", source.encode()),
            ("content-type", CONTENT_TYPE.encode()),
        ]
        # One transaction's rows share their time, so the last one is enough to remember.
        self._time_us = 0
        self._time = (long(0), ("ce_time", _rfc3339(0)))

    def encode(self, row: OutboxRow) -> EncodedChange:
        """The record of a row.

        Raises FatalError, naming outbox id and key, for a row that the worker's statements never write: leaving it out
        would lose a change, and guessing would publish what never was.
        """
        try:
            return self._encode(row)
        except (ValueError, TypeError, AttributeError, OverflowError) as error:
            raise FatalError(
                f"outbox row {row.id} ({row.course_id}:{row.user_id}, version {row.version}) can't be encoded: {error}"
            ) from error

    def _encode(self, row: OutboxRow) -> EncodedChange:
        (
            _, course_id, user_id, version, recorded_at_us, before_sources, before_hand, before_suspended,
            sources, hand, suspended, cause_type, cause_event_id, cause_method_id, traceparent,
        ) = row  # fmt: skip
        key = f"{course_id}:{user_id}".encode("ascii")
        if len(key) != 73 or key[36] != 58:  # the lengths below are constants: two canonical ids around a colon
            raise ValueError("course or user is not a canonical uuid")
        if version < 1:
            raise ValueError("a version below 1")
        event_id = event_id_of(key, version)
        if recorded_at_us != self._time_us:
            self._time = (long(recorded_at_us), ("ce_time", _rfc3339(recorded_at_us)))
            self._time_us = recorded_at_us
        occurred_at, time_header = self._time

        known = self._states.get
        if before_sources is None:
            before = self._absent
        elif before_hand is None or before_suspended is None:
            raise ValueError("hand-made groups or suspension are missing beside the sources before")
        else:
            before = known((before_sources, before_hand, before_suspended)) or self._learn(
                before_sources, before_hand, before_suspended
            )
        after = known((sources, hand, suspended)) or self._learn(sources, hand, suspended)

        value = b"".join(
            (
                self._prefix, b"H", event_id, occurred_at, b"H", key[:36], b"H", key[37:],
                _VERSIONS[version] if version < 1024 else long(version),
                self._change[before.status, after.status], before.encoded, after.encoded,
                self._cause_type(cause_type),
                self._cause_event_id.null if cause_event_id is None else uuid(self._cause_event_id, cause_event_id),
                self._cause_method_id.null if cause_method_id is None else uuid(self._cause_method_id, cause_method_id),
            )
        )  # fmt: skip
        headers = [*self._fixed_headers, ("ce_id", event_id), time_header, ("ce_subject", key)]
        if traceparent is not None:
            headers.append(("traceparent", traceparent.encode()))
        return new_tuple(EncodedChange, (key, value, headers, _change(before.status, after.status)))

    def _learn(self, sources: bytes, hand: bytes, suspended: bool) -> _State:
        if not isinstance(suspended, bool):  # a driver's unparsed b"f" would pass for true
            raise TypeError("suspension is not a boolean")
        state = self._derive(sources, hand, suspended)
        size = _size(sources, hand, state)
        if size > self._cache_bytes:
            return state
        self._room -= size
        # Oldest first: an exact order of use would cost every row, and what is in use comes back for one derivation.
        while self._room < 0:
            oldest = next(iter(self._states))
            self._room += _size(oldest[0], oldest[1], self._states.pop(oldest))
        self._states[sources, hand, suspended] = state
        return state


class _StateDeriver:
    """Derives an EnrollmentState from contributions, hand-made groups and suspension (semantics §3), as Avro bytes."""

    def __init__(self, layout: SchemaReader, state_type: Any) -> None:
        state = layout.record(state_type, "EnrollmentState", _STATE_FIELDS)
        self._status = layout.enum(state["status"], "status", _STATUSES)
        layout.primitive(layout.items(state["roles"], "roles"), "roles", "string")
        layout.primitive(layout.items(state["groups"], "groups"), "groups", "string")
        layout.primitive(state["suspended_in_course"], "suspended_in_course", "boolean")
        source = layout.record(layout.items(state["sources"], "sources"), "sources", _SOURCE_FIELDS)
        layout.primitive(source["source"], "sources.source", "string")
        layout.primitive(source["member"], "sources.member", "boolean")
        self._kind = layout.enum(source["kind"], "sources.kind", _KINDS)
        self._contribution_status = layout.enum(source["status"], "sources.status", ("ACTIVE", "SUSPENDED"))
        self._role = layout.optional(source["role"], "sources.role")
        self._group_id = layout.optional(source["group_id"], "sources.group_id")

    def derive(self, sources: bytes, hand: bytes, suspended: bool) -> _State:
        contributions = _contributions(sources)
        enrolling = [each for each in contributions.values() if each["kind"] != "SEGMENT_GROUP"]
        if not enrolling:
            return _State("ABSENT", self._status["ABSENT"] + b"\0\0\0\0")
        active = [] if suspended else [each for each in enrolling if each["status"] == "ACTIVE"]
        status = "ACTIVE" if active else "SUSPENDED"
        roles = {each["role"] for each in active if each.get("role") is not None}
        groups = {each["group_id"] for each in contributions.values() if each["member"] and each.get("group_id")}
        groups.update(_ids(hand))
        encoded = b"".join(
            (
                self._status[status],
                array([string(role) for role in sorted(roles)]),
                array([string(group) for group in sorted(groups)]),
                boolean(suspended),
                array([self._source(source, contributions[source]) for source in sorted(contributions)]),
            )
        )
        return _State(status, encoded)

    def _source(self, source: str, contribution: dict[str, Any]) -> bytes:
        role, group_id = contribution.get("role"), contribution.get("group_id")
        return b"".join(
            (
                string(source),
                self._kind[contribution["kind"]],
                self._contribution_status[contribution["status"]],
                self._role.null if role is None else self._role.some + string(role),
                self._group_id.null if group_id is None else uuid(self._group_id, group_id),
                boolean(contribution["member"]),
            )
        )


def source_of(group: str) -> str:
    """The `ce_source` of a consumer group's events."""
    return f"/sync-worker/{quote(group, safe='')}"


def event_id_of(key: bytes, version: int) -> bytes:
    """The event_id of a change (contract §2): a uuid5, made several times as fast as by `uuid`."""
    digest = sha1(_EVENT_ID_NAMESPACE + b"%b:%d" % (key, version), usedforsecurity=False).hexdigest()
    return (
        f"{digest[:8]}-{digest[8:12]}-5{digest[13:16]}-{_VARIANT[digest[16]]}{digest[17:20]}-{digest[20:32]}".encode()
    )


def _change(before: str, after: str) -> str:
    """The kind of a change (semantics §3). A republished absence says that the person is not enrolled."""
    if after == "ABSENT":
        return "UNENROLLED"
    if before == "ABSENT":
        return "ENROLLED"
    if before == after:
        return "UPDATED"
    return "SUSPENDED" if after == "SUSPENDED" else "REACTIVATED"


def _contributions(sources: bytes) -> dict[str, dict[str, Any]]:
    contributions = json.loads(sources.decode())
    if not isinstance(contributions, dict):
        raise ValueError("sources are not an object")  # noqa: TRY004 - what a row holds, not how we were called
    for source, each in contributions.items():
        if not isinstance(each, dict) or not _REQUIRED <= each.keys() <= _ALLOWED:
            raise ValueError(f"the contribution of {source} lacks a field or has one too many")
        role, group_id = each.get("role"), each.get("group_id")
        if (
            each["kind"] not in _KINDS
            or each["status"] not in ("ACTIVE", "SUSPENDED")
            or not isinstance(each["member"], bool)
            or not (role is None or isinstance(role, str))
            or not (group_id is None or (isinstance(group_id, str) and _UUID.fullmatch(group_id)))
        ):
            raise ValueError(f"the contribution of {source} has a field of a wrong kind")
    return contributions


def _ids(array: bytes) -> list[str]:
    """The ids in the text of a uuid[]; PostgreSQL quotes none of them."""
    text = array.decode("ascii")
    ids = text[1:-1].split(",") if text != "{}" else []
    if text[:1] != "{" or text[-1:] != "}" or not all(_UUID.fullmatch(each) for each in ids):
        raise ValueError("hand-made groups are not an array of uuids")
    return ids


def _rfc3339(time_us: int) -> bytes:
    seconds, micros = divmod(time_us, 1_000_000)
    return b"%b.%06dZ" % (_rfc3339_second(seconds), micros)


@lru_cache(maxsize=8)
def _rfc3339_second(seconds: int) -> bytes:
    return (_EPOCH + timedelta(seconds=seconds)).isoformat()[:19].encode()


def _size(sources: bytes, hand: bytes, state: _State) -> int:
    return len(sources) + len(hand) + len(state.encoded) + _ENTRY_OVERHEAD
