"""From a record's bytes to the event they say, or to the reason why they can never be applied (contract §2).

Everything that depends only on the topic and the writer schema is worked out once, into one function per pair. Must
never let a record's bytes raise anything but InvalidRecord, nor make an outage of the registry look like one.
"""

from collections.abc import Callable, Mapping
from functools import partial
from io import BytesIO
from typing import Any, NoReturn
from uuid import UUID

from fastavro import schemaless_reader, schemaless_writer
from fastavro.read import SchemaResolutionError

from sync_worker.errors import InvalidRecord, RejectionReason
from sync_worker.events import NAMESPACE, Event, Headers, RecordName
from sync_worker.intake.framing import frame_of, read_headers
from sync_worker.intake.membership import has_layout, membership_at
from sync_worker.intake.validation import BUILDERS, Build, Datum, invalid, shown
from sync_worker.schema.avro import AvroSchema
from sync_worker.schema.registry import Registry
from sync_worker.schema.store import SchemaStore, record_name
from sync_worker.schema.strict import Checker, NotADatum
from sync_worker.schema.wire import SINGLE_OBJECT_PREFIX_BYTES
from sync_worker.settings import Settings

Read = Callable[[bytes, int, str | None], Event]
"""From a value, the offset of its datum and the traceparent to the event."""

_MEMBERSHIPS = {RecordName.MEMBER_ADDED: True, RecordName.MEMBER_REMOVED: False}

# What fastavro raises for bytes that are not a datum: cut short, a length or index out of range, not UTF-8.
_DATUM_FAULTS = (EOFError, IndexError, ValueError, TypeError, KeyError, OverflowError)


def records_by_topic(settings: Settings) -> dict[str, frozenset[RecordName]]:
    """Which records belong to each input topic that is read (contract §1)."""
    topics = {
        settings.membership_topic: frozenset({RecordName.MEMBER_ADDED, RecordName.MEMBER_REMOVED}),
        settings.methods_topic: frozenset({RecordName.METHOD_CHANGED}),
        settings.sources_topic: frozenset({RecordName.SOURCE_CHANGED, RecordName.SUSPENSION_CHANGED}),
    }
    return {topic: records for topic, records in topics.items() if topic}


class Decoder:
    """Decodes the records of the input topics; one per process, used by one thread.

    `topics` says which records belong to which topic (contract §1); a record of another type is an invalid event there.
    """

    def __init__(
        self,
        schemas: SchemaStore,
        registry: Registry | None,
        topics: Mapping[str, frozenset[RecordName]],
    ) -> None:
        self._schemas = schemas
        self._registry = registry
        self._topics = topics
        self._by_prefix: dict[str, dict[bytes, Read]] = {
            topic: {
                schema.single_object_prefix: self._reader(topic, schema) for schema in schemas.by_fingerprint.values()
            }
            for topic in topics
        }
        self._by_reference: dict[tuple[str, int | UUID], Read] = {}

    def decode(self, topic: str, value: bytes, headers: Headers | None) -> Event:
        """The event that a record carries.

        Raises InvalidRecord for a record that can never be applied, RetryableError while the registry is away or may
        not know a schema yet; nothing else, whatever the bytes.
        """
        traceparent, schema_id = read_headers(headers) if headers else (None, None)
        if schema_id is None:
            read = self._by_prefix[topic].get(value[:SINGLE_OBJECT_PREFIX_BYTES])
            if read is not None:
                return read(value, SINGLE_OBJECT_PREFIX_BYTES, traceparent)
        reference, start = frame_of(value, schema_id)
        if isinstance(reference, bytes):
            raise InvalidRecord(
                RejectionReason.UNKNOWN_SCHEMA,
                f"no schema with the fingerprint {reference.hex()} (as on the wire) is known: not among this version's,"
                " the released ones, nor those in SYNC_WORKER_SCHEMA_DIR",
            )
        return self._registered(topic, reference)(value, start, traceparent)

    def _registered(self, topic: str, reference: int | UUID) -> Read:
        known = self._by_reference.get((topic, reference))
        if known is not None:
            return known
        if self._registry is None:
            raise InvalidRecord(
                RejectionReason.UNKNOWN_SCHEMA,
                f"it was written with schema {reference} of a schema registry, and none is configured;"
                " set SYNC_WORKER_SCHEMA_REGISTRY_URL",
            )
        read = self._reader(topic, self._registry.schema(reference))
        self._by_reference[topic, reference] = read
        return read

    def _reader(self, topic: str, schema: AvroSchema) -> Read:
        name = record_name(schema)
        if name is None or name not in self._topics[topic] or name not in BUILDERS:
            allowed = ", ".join(sorted(self._topics[topic]))
            shown_name = ascii(schema.full_name.removeprefix(f"{NAMESPACE}.")[:100])[1:-1]
            return partial(_wrong_type, f"a {shown_name} does not belong to {topic}; {allowed} of {NAMESPACE} do")
        ours = self._schemas.current[name]
        if schema.fingerprint == ours.fingerprint and schema.reproducible:
            read = _direct_reader(schema, BUILDERS[name])
            is_membership = name in _MEMBERSHIPS and has_layout(schema)
            return _short_reader(read, is_member=_MEMBERSHIPS[name]) if is_membership else read
        return _resolving_reader(schema, ours, BUILDERS[name])


def _wrong_type(detail: str, value: bytes, start: int, traceparent: str | None) -> NoReturn:  # noqa: ARG001 - a Read
    raise invalid(detail)


def _direct_reader(schema: AvroSchema, build: Build) -> Read:
    parsed = schema.parsed
    check = _check_reproduced if schema.checkable else _check_length

    def read(value: bytes, start: int, traceparent: str | None) -> Event:
        source = BytesIO(value)
        source.seek(start)
        try:
            datum: Any = schemaless_reader(source, parsed)
        except _DATUM_FAULTS as fault:
            raise _undecodable(schema, _said(fault)) from fault
        if source.tell() != len(value):
            raise _undecodable(
                schema, f"{len(value) - source.tell()} bytes follow it; a record's value is one datum and nothing else"
            )
        check(schema, datum, value, start)
        return build(datum, traceparent)

    return read


def _short_reader(read: Read, *, is_member: bool) -> Read:
    def short(value: bytes, start: int, traceparent: str | None) -> Event:
        return membership_at(value, start, traceparent, is_member=is_member) or read(value, start, traceparent)

    return short


def _resolving_reader(schema: AvroSchema, ours: AvroSchema, build: Build) -> Read:
    checker = Checker(schema.parsed)

    def read(value: bytes, start: int, traceparent: str | None) -> Event:
        try:
            checker.check(value, start)
        except NotADatum as fault:
            raise _undecodable(schema, str(fault)) from fault
        # Whether the bytes are a datum at all is settled; what fails now is that it means nothing to this version.
        source = BytesIO(value)
        source.seek(start)
        try:
            resolved: Any = schemaless_reader(source, schema.parsed, ours.parsed)
        except (SchemaResolutionError, *_DATUM_FAULTS) as fault:
            raise invalid(
                f"written with another {schema.full_name} (fingerprint {schema.fingerprint.hex()}) that this version"
                f" cannot read as its own: {shown(str(fault))}; workers are upgraded before publishers"
            ) from fault
        return build(resolved, traceparent)

    return read


def _check_reproduced(schema: AvroSchema, datum: Datum, value: bytes, start: int) -> None:
    """Reject what fastavro reads but nobody writes: negative indexes of enums and unions, booleans beyond 1."""
    written = BytesIO()
    try:
        schemaless_writer(written, schema.parsed, datum)
    except _DATUM_FAULTS as fault:
        raise _undecodable(schema, _said(fault)) from fault
    if written.getbuffer() != memoryview(value)[start:]:
        raise _undecodable(schema, "an enum, union, boolean or number is not encoded as Avro encodes it")


def _check_length(schema: AvroSchema, datum: Datum, value: bytes, start: int) -> None:
    """The same where there are only texts and numbers: only a number in more bytes than it needs can be wrong then.

    A fifth of what writing it again costs; members are most of the input.
    """
    length = start
    for item in datum.values():
        if type(item) is str:
            text = len(item) if item.isascii() else len(item.encode())
            length += text + (text.bit_length() + 7) // 7
        else:
            bits = (item if item >= 0 else ~item).bit_length()
            # Ten bytes hold more than 64 bits, and fastavro drops the rest.
            length += (bits + 7) // 7 if bits < 63 else 0
    if length != len(value):
        _check_reproduced(schema, datum, value, start)


def _said(fault: Exception) -> str:
    return f"{type(fault).__name__}: {shown(str(fault))}" if str(fault) else type(fault).__name__


def _undecodable(schema: AvroSchema, detail: str) -> InvalidRecord:
    return InvalidRecord(
        RejectionReason.UNDECODABLE,
        f"not a {schema.full_name} (fingerprint {schema.fingerprint.hex()}): {detail}",
    )
