"""From one JSON line to the record that is published: what `sync-worker publish` does between reading and producing.

Fills in what a line may leave out, and says what is wrong with it by the rules that intake applies, so that nothing is
published which would become a dead letter. Must never change what a line says.
"""

import json
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from fastavro import schemaless_writer

from sync_worker.errors import InvalidRecord, SyncWorkerError
from sync_worker.events import NAMESPACE, Event, Membership, Method, RecordName, text_of
from sync_worker.intake.framing import valid_traceparent
from sync_worker.intake.validation import BUILDERS, shown
from sync_worker.schema.avro import AvroSchema
from sync_worker.schema.registry import Registry
from sync_worker.schema.store import SchemaStore
from sync_worker.schema.wire import cloud_event_headers, confluent_prefix

DEFAULT_SOURCE = "sync-worker/publish"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_PYTHON: dict[str, type] = {"string": str, "long": int, "boolean": bool, "null": type(None)}
_WORDS = {str: "a string", int: "an integer", bool: "true or false", type(None): "null"}


class InvalidLine(SyncWorkerError):
    """A line that is no valid event; the message says what is wrong, and in which field."""


class Publication(NamedTuple):
    """A record ready to be produced."""

    topic: str
    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]


def wall_clock_micros() -> int:
    """Now, in microseconds since 1970."""
    return time.time_ns() // 1000


class LineEncoder:
    """Encodes JSON lines; `topics` gives the topic of each record (contract §1).

    With a registry the values are in Confluent framing, else in Avro single-object encoding. `now` gives microseconds
    since 1970, `new_id` event ids, `source` the CloudEvents source.
    """

    def __init__(
        self,
        schemas: SchemaStore,
        topics: Mapping[RecordName, str],
        registry: Registry | None = None,
        *,
        source: str = DEFAULT_SOURCE,
        now: Callable[[], int] = wall_clock_micros,
        new_id: Callable[[], UUID] = uuid4,
    ) -> None:
        self._schemas = schemas
        self._topics = topics
        self._registry = registry
        self._source = source
        self._now = now
        self._new_id = new_id
        self._last_now = 0
        self._shapes = {name: _Shape(schemas.current[name]) for name in BUILDERS}

    def encode_line(self, line: str | bytes) -> Publication:
        """The record that a line stands for.

        Raises InvalidLine; with a registry also RegistryUnavailable, or FatalError when it refuses the schema.
        """
        fields = _parsed(line)
        name = _record_name(fields.pop("type", None))
        return self.encode(name, fields, _traceparent(fields.pop("traceparent", None)))

    def encode(self, name: RecordName, fields: dict[str, Any], traceparent: str | None = None) -> Publication:
        """The same for fields by their names in the schema."""
        topic = self._topics.get(name)
        if not topic:
            raise InvalidLine(f"type: {name} has no topic; the setting of its topic is empty")
        datum = self._filled(name, fields)
        return self._publication(name, topic, self._event(name, datum, traceparent), datum)

    def event_of(self, line: str | bytes, default: RecordName | None = None) -> Event:
        """What a line says, with what it leaves out filled in, for whoever doesn't publish it. Raises InvalidLine.

        default: the record of a line without a type.
        """
        fields = _parsed(line)
        name = _record_name(fields.pop("type", default))
        traceparent = _traceparent(fields.pop("traceparent", None))
        return self._event(name, self._filled(name, fields), traceparent)

    def _event(self, name: RecordName, datum: Mapping[str, Any], traceparent: str | None) -> Event:
        try:
            self._shapes[name].check(datum)
            return BUILDERS[name](datum, traceparent)
        except InvalidRecord as fault:
            raise InvalidLine(fault.detail) from fault

    def _filled(self, name: RecordName, fields: dict[str, Any]) -> dict[str, Any]:
        shape = self._shapes[name]
        unknown = [shown(field) for field in fields if field not in shape.fields]
        if unknown:
            raise InvalidLine(
                f"{name} has no field {', '.join(unknown[:5])}; its fields are {', '.join(shape.fields)},"
                " besides type and traceparent"
            )
        datum = {**shape.defaults, **fields}
        datum.setdefault("event_id", str(self._new_id()))
        datum["occurred_at"] = _micros(datum["occurred_at"]) if "occurred_at" in datum else self._strictly_later()
        # Contract §2: a publisher without a counter uses occurred_at in microseconds.
        datum.setdefault("version", datum["occurred_at"])
        return datum

    def _strictly_later(self) -> int:
        """Now, but never the same twice: it may become the version of two changes of one entity."""
        self._last_now = max(self._now(), self._last_now + 1)
        return self._last_now

    def _publication(self, name: RecordName, topic: str, event: Event, datum: dict[str, Any]) -> Publication:
        schema = self._schemas.current[name]
        canonical = {field: _canonical(field, value) for field, value in datum.items()}
        value = BytesIO()
        if self._registry is None:
            value.write(schema.single_object_prefix)
        else:
            value.write(confluent_prefix(self._registry.register(topic, schema)))
        schemaless_writer(value, schema.parsed, canonical)
        key = _key(event)
        headers = cloud_event_headers(
            event_id=text_of(event.event_id),
            full_name=schema.full_name,
            source=self._source,
            occurred_at=event.occurred_at,
            subject=key,
            traceparent=event.traceparent,
        )
        return Publication(topic, key.encode(), value.getvalue(), headers)


class _Shape:
    """The fields of one of the input records, which all are flat: their types in JSON, and their defaults."""

    def __init__(self, schema: AvroSchema) -> None:
        self.fields: dict[str, tuple[type, ...]] = {}
        self.defaults: dict[str, Any] = {}
        for field in schema.parsed["fields"]:
            branches = field["type"] if isinstance(field["type"], list) else [field["type"]]
            self.fields[field["name"]] = tuple(_python_type(branch) for branch in branches)
            if "default" in field:
                self.defaults[field["name"]] = field["default"]

    def check(self, datum: Mapping[str, Any]) -> None:
        """Raise InvalidLine that names every field which is missing, of a wrong type, or not text."""
        faults = [
            f"{name}: is missing; it must be {_words(types)}"
            if name not in datum
            else f"{name}: {shown(datum[name])} is not {_words(types)}"
            for name, types in self.fields.items()
            if name not in datum or type(datum[name]) not in types
        ]
        faults += [
            # JSON can spell half of a surrogate pair, which no UTF-8 and so no record can carry.
            f"{name}: {shown(value)} has half of a surrogate pair"
            for name, value in datum.items()
            if isinstance(value, str)
            and not value.isascii()
            and any("\ud800" <= character <= "\udfff" for character in value)
        ]
        if faults:
            raise InvalidLine("; ".join(faults))


def _python_type(branch: Any) -> type:
    if isinstance(branch, dict):
        return str if branch["type"] == "enum" else _PYTHON[branch["type"]]
    return _PYTHON[branch]


def _words(types: tuple[type, ...]) -> str:
    return " or ".join(_WORDS[each] for each in reversed(types))


def _parsed(line: str | bytes) -> dict[str, Any]:
    try:
        fields = json.loads(line, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as fault:
        raise InvalidLine(
            f"not a JSON object: {shown(str(fault)) if isinstance(fault, UnicodeError) else fault}"
        ) from fault
    if not isinstance(fields, dict):
        raise InvalidLine(f"not a JSON object: {shown(fields)}")
    return fields


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a field is given twice")
    return fields


def _record_name(type_: object) -> RecordName:
    if isinstance(type_, str):
        name = type_.removeprefix(f"{NAMESPACE}.")
        for known in BUILDERS:
            if known == name:
                return known
    allowed = ", ".join(BUILDERS)
    if type_ is None:
        raise InvalidLine(f"type: is missing; it must be one of {allowed}")
    if type_ == RecordName.ENROLLMENT_CHANGED:
        raise InvalidLine(f"type: {type_} is published by the worker alone; give one of {allowed}")
    raise InvalidLine(f"type: {shown(type_)} is not one of {allowed}")


def _traceparent(value: object) -> str | None:
    if value is None:
        return None
    valid = valid_traceparent(value.encode()) if isinstance(value, str) and value.isascii() else None
    if valid is None:
        raise InvalidLine(f"traceparent: {shown(value)} is not a W3C traceparent, 00-<32 hex>-<16 hex>-<2 hex>")
    return valid


def _micros(value: object) -> object:
    """A time as microseconds since 1970; what is not a text is left to the check of types."""
    if not isinstance(value, str):
        return value
    try:
        moment = datetime.fromisoformat(value)
    except ValueError as fault:
        raise InvalidLine(
            f"occurred_at: {shown(value)} is neither microseconds since 1970 nor ISO 8601 like 2025-01-31T12:00:00Z"
        ) from fault
    if moment.tzinfo is None:
        raise InvalidLine(f"occurred_at: {shown(value)} has no time zone; add Z for UTC")
    return (moment - _EPOCH) // _MICROSECOND


def _canonical(field: str, value: Any) -> Any:
    """Ids, which are valid here, in lower case (contract §2); everything else as it is."""
    return value.lower() if field.endswith("_id") and isinstance(value, str) else value


def _key(event: Event) -> str:
    """The key that contract §1 gives the record's topic."""
    if isinstance(event, Membership):
        return text_of(event.user_id)
    if isinstance(event, Method):
        return text_of(event.method_id)
    return f"{text_of(event.course_id)}:{text_of(event.user_id)}"
