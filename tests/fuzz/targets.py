"""What is fuzzed: decoding of records, and the use of a schema that a registry gave.

Each target takes bytes, says in a word what came of them, and raises when something is wrong.

Wrong is: any error but a dead letter's (or, of the registry, "wait"), a verdict that the oracle doesn't share, an event that the
contract forbids. Memory and time are bounded by whoever runs a target.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from uuid import UUID

from sync_worker.errors import InvalidRecord, RejectionReason, RetryableError
from sync_worker.events import Event, Membership, Method, RecordName, Source
from sync_worker.intake.decoding import Decoder
from sync_worker.intake.framing import valid_traceparent
from sync_worker.schema.avro import AvroSchema, UnusableSchema, parse
from sync_worker.schema.registry import SchemaNotYetKnown
from sync_worker.schema.store import SchemaStore, load_schemas
from tests.fuzz.inputs import SCHEMAS_FROM
from tests.fuzz.oracle import NAMESPACE, TOPICS, Verdict, judge, load, valid
from tests.fuzz.writers import CURRENT, WRITERS, current

TRACEPARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
_TOPIC_NAMES = tuple(TOPICS)
_OURS = {name: load(current(name)) for name in CURRENT}
_JUDGED = [load(writer.text) for writer in WRITERS]
_PARSED = [parse(writer.text) for writer in WRITERS]
_STORE = load_schemas()
_REASONS = frozenset(str(reason) for reason in RejectionReason)


class _Registry:
    """Answers as a registry does that has these schemas: by id and GUID from 1 on. Everything else may yet come."""

    def __init__(self, schemas: Mapping[int, AvroSchema]) -> None:
        self._schemas = schemas

    def schema(self, reference: int | UUID) -> AvroSchema:
        found = self._schemas.get(reference if isinstance(reference, int) else reference.int)
        if found is None:
            raise SchemaNotYetKnown(f"schema {reference} isn't there yet")
        return found


def _decoder(registry: _Registry | None) -> Decoder:
    # Every other writer is known by its fingerprint too, as by SYNC_WORKER_SCHEMA_DIR.
    known = {schema.fingerprint: schema for schema in _PARSED[::2]}
    store = SchemaStore(_STORE.current, {**known, **_STORE.by_fingerprint})
    topics = {topic: frozenset(RecordName(name) for name in names) for topic, names in TOPICS.items()}
    return Decoder(store, registry, topics)  # type: ignore[arg-type]  # answers as one does


_DECODER = _decoder(_Registry(dict(enumerate(_PARSED, start=1))))
_BY_PREFIX = {_PARSED[n].single_object_prefix: n for n in (*range(0, len(_PARSED), 2), *range(len(CURRENT)))}


def records(data: bytes) -> str:
    """Decode a record: topic and framing from the first byte, its writer from the second, the rest is its datum, or all of it."""
    if len(data) < 2:
        return "no input"
    topic = _TOPIC_NAMES[data[0] % 3]
    number = data[1] % len(_PARSED)
    rest = data[2:]
    value, headers = _framed(data[0] // 3 % 5, number, rest)
    expected = _expected(topic, value, headers)
    try:
        found = _verdict(_DECODER.decode(topic, value, headers))
    except InvalidRecord as rejected:
        _check_detail(rejected)
        found = Verdict(str(rejected.reason))
    except RetryableError:
        found = Verdict("wait")
    assert found == expected, f"{topic}: the worker says {found}, the oracle {expected}"
    return found.reason or "event"


def _framed(framing: int, number: int, rest: bytes) -> tuple[bytes, list[tuple[str, bytes | None]]]:
    match framing:
        case 0:
            return _PARSED[number].single_object_prefix + rest, []
        case 1:
            return b"\0" + (number + 1).to_bytes(4, "big") + rest, [("traceparent", TRACEPARENT)]
        case 2:
            return rest, [("__value_schema_id", b"\1" + (number + 1).to_bytes(16, "big"))]
        case 3:
            return rest[20:], [("traceparent", rest[:5]), ("__value_schema_id", rest[5 : 5 + number])]
        case _:
            return rest, [("ce_type", None)]


def _expected(topic: str, value: bytes, headers: list[tuple[str, bytes | None]]) -> Verdict:
    header = dict(headers).get("__value_schema_id")
    if header is not None:
        if len(header) == 17 and header[0] == 1:
            return _registered(topic, value, 0, int.from_bytes(header[1:], "big"))
        if len(header) == 5 and header[0] == 0:
            return _registered(topic, value, 0, int.from_bytes(header[1:], "big"))
        return Verdict("undecodable")
    if value[:1] == b"\0" and len(value) >= 5:
        return _registered(topic, value, 5, int.from_bytes(value[1:5], "big"))
    if value[:2] == b"\xc3\x01" and len(value) >= 10:
        known = _BY_PREFIX.get(value[:10])
        return Verdict("unknown_schema") if known is None else judge(topic, value, 10, _JUDGED[known], _OURS)
    return Verdict("undecodable")


def _registered(topic: str, value: bytes, start: int, reference: int) -> Verdict:
    if not 1 <= reference <= len(_JUDGED):
        return Verdict("wait")
    return judge(topic, value, start, _JUDGED[reference - 1], _OURS)


def _check_detail(rejected: InvalidRecord) -> None:
    assert str(rejected.reason) in _REASONS
    assert len(rejected.detail) <= 1000
    assert rejected.detail.isprintable(), rejected.detail


def _verdict(event: Event) -> Verdict:
    fields = {
        name: str(UUID(bytes=content)) if isinstance(content, bytes) else content
        for name, content in event._asdict().items()
    }
    traceparent = fields.pop("traceparent")
    assert traceparent is None or valid_traceparent(traceparent.encode()) == traceparent
    if isinstance(event, Membership):
        name = "SegmentMemberAdded" if fields.pop("is_member") else "SegmentMemberRemoved"
    elif isinstance(event, Method):
        name = "EnrollmentMethodChanged"
    else:
        name = "EnrollmentSourceChanged" if isinstance(event, Source) else "CourseSuspensionChanged"
    return Verdict("", name, tuple(sorted(fields.items())))


def schemas(data: bytes) -> str:
    """Use a schema: the length of its JSON in two bytes, the JSON, and the bytes of a record written with it."""
    if len(data) < 2:
        return "no input"
    (length,) = struct.unpack(">H", data[:2])
    text, value = data[2 : 2 + length].decode("utf-8", "surrogateescape"), data[2 + length :]
    try:
        schema = parse(text)
    except UnusableSchema as unusable:
        assert str(unusable).isprintable(), str(unusable)
        return "unusable"
    namespace, _, name = schema.full_name.rpartition(".")
    topic = next((topic for topic, names in TOPICS.items() if name in names), _TOPIC_NAMES[0])
    try:
        event = _decoder(_Registry({1: schema})).decode(topic, b"\0\0\0\0\1" + value, None)
    except InvalidRecord as rejected:
        _check_detail(rejected)
        return str(rejected.reason)
    found = _verdict(event)
    assert namespace == NAMESPACE
    assert found.name == name
    assert all(valid(name, dict(found.fields))), found
    return "event"


def anything(data: bytes) -> str:
    """Either target, by the first byte: one process fuzzes both."""
    if not data:
        return "no input"
    return schemas(data[1:]) if data[0] >= SCHEMAS_FROM else records(data[1:])
