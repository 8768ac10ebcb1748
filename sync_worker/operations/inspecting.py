"""Looks into the bytes of a record that a worker rejected: what can be read of it, and where that ends (`dlq show`).

The verdict is the worker's own decoder's; what is worked out here is only the place. Must never let a record's bytes
raise anything, nor be taken for a second opinion on whether a record is valid.
"""

from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Final

from fastavro import schemaless_reader, schemaless_writer

from sync_worker.errors import InvalidRecord
from sync_worker.events import Headers
from sync_worker.intake.decoding import Decoder, records_by_topic
from sync_worker.intake.framing import SchemaReference, frame_of, read_headers
from sync_worker.schema.avro import AvroSchema
from sync_worker.schema.registry import SchemaNotYetKnown, registry_of
from sync_worker.schema.store import load_schemas
from sync_worker.settings import Settings

# What fastavro raises for bytes that are not a datum: cut short, a length or index out of range, not UTF-8.
_DATUM_FAULTS: Final = (EOFError, IndexError, ValueError, TypeError, KeyError, OverflowError)
_BYTES_PER_LINE: Final = 16
_LINES_AROUND: Final = 2


@dataclass(frozen=True, slots=True)
class Flaw:
    """What is wrong, and where: in the bytes from `begin` to before `end`, of which field if that is known."""

    begin: int
    end: int
    field: str | None
    why: str


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found. `verdict` is what this version would reject the record for; None where it would take it.

    framing: how it is framed, in words; schema: the full name of its writer schema; fields: those that can be read.
    """

    framing: str
    verdict: str | None
    schema: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    flaw: Flaw | None = None


class Inspector:
    """Inspects with the schemas and the registry of the settings."""

    def __init__(self, settings: Settings) -> None:
        self._schemas = load_schemas(settings.schema_dir)
        self._registry = registry_of(settings)
        self._inputs = records_by_topic(settings)
        self._decoder = Decoder(self._schemas, self._registry, self._inputs)

    def inspect(self, topic: str, value: bytes, headers: Headers) -> Inspection:
        """Raises RetryableError while the registry is away."""
        verdict = self._verdict(topic, value, headers)
        try:
            reference, start = frame_of(value, read_headers(headers)[1])
        except InvalidRecord as error:
            return Inspection("none", verdict, flaw=Flaw(0, min(len(value), 1), None, error.detail))
        framing = _framing(reference)
        schema = self._schema(reference)
        if schema is None:
            return Inspection(framing, verdict, flaw=Flaw(0, start, None, "its schema is not known"))
        walk = _Walk(schema, value, start)
        return Inspection(framing, verdict, schema.full_name, walk.fields, walk.flaw or walk.named_in(verdict))

    def _verdict(self, topic: str, value: bytes, headers: Headers) -> str | None:
        if topic not in self._inputs:
            return f"{topic} is no input topic"
        try:
            self._decoder.decode(topic, value, headers)
        except (InvalidRecord, SchemaNotYetKnown) as error:
            return str(error)
        return None

    def _schema(self, reference: SchemaReference) -> AvroSchema | None:
        if isinstance(reference, bytes):
            return self._schemas.by_fingerprint.get(reference)
        try:
            return None if self._registry is None else self._registry.schema(reference)
        except (InvalidRecord, SchemaNotYetKnown):
            return None


class _Walk:
    """Reads a datum field by field, as far as it goes."""

    def __init__(self, schema: AvroSchema, value: bytes, start: int) -> None:
        self.fields: dict[str, Any] = {}
        self.flaw: Flaw | None = None
        self._places: dict[str, tuple[int, int]] = {}
        source = BytesIO(value)
        source.seek(start)
        for each in schema.parsed["fields"]:
            self.flaw = self._field(schema, each, source)
            if self.flaw is not None:
                return
        if source.tell() < len(value):
            surplus = len(value) - source.tell()
            self.flaw = Flaw(source.tell(), len(value), None, f"{surplus} bytes follow the last field")

    def named_in(self, verdict: str | None) -> Flaw | None:
        """The place of the field that a verdict on the content begins with."""
        _, _, detail = (verdict or "").partition(": ")
        name, colon, why = detail.partition(": ")
        return Flaw(*self._places[name], name, why) if colon and name in self._places else None

    def _field(self, schema: AvroSchema, each: dict[str, Any], source: BytesIO) -> Flaw | None:
        # A record of this field alone, which knows the types that fields before it have named.
        alone = {**schema.parsed, "fields": [each]}
        name, begin = each["name"], source.tell()
        try:
            read: Any = schemaless_reader(source, alone)
        except _DATUM_FAULTS as error:
            said = f": {error}" if str(error) else ""
            return Flaw(begin, max(source.tell(), begin + 1), name, f"{type(error).__name__}{said}")
        self.fields[name] = _printable(read[name])
        self._places[name] = (begin, source.tell())
        if schema.reproducible and schema.checkable and not _is_written_so(alone, read, source, begin):
            return Flaw(begin, source.tell(), name, "encoded as nobody writes it: an index or a boolean out of range")
        return None


def hexdump(value: bytes, flaw: Flaw) -> list[str]:
    """The bytes around a flaw, sixteen a line with their offsets; those of the flaw stand in brackets."""
    last = max(len(value) - 1, 0)
    first_line = max(min(flaw.begin, last) // _BYTES_PER_LINE - _LINES_AROUND, 0)
    # A flaw may be all the rest of a large record: its beginning is what there is to see.
    last_line = min(last, flaw.begin + _BYTES_PER_LINE * _LINES_AROUND) // _BYTES_PER_LINE
    lines = []
    for line in range(first_line, last_line + 1):
        start = line * _BYTES_PER_LINE
        row = value[start : start + _BYTES_PER_LINE]
        marked = [flaw.begin <= start + n < flaw.end for n in range(len(row))]
        cells = "".join(
            f"{'[' if inside else ' '}{byte:02x}{']' if inside else ' '}"
            for byte, inside in zip(row, marked, strict=True)
        )
        text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
        lines.append(f"{start:08x} {cells:<{4 * _BYTES_PER_LINE}} {text}")
    return lines


def _is_written_so(alone: dict[str, Any], read: Any, source: BytesIO, begin: int) -> bool:
    written = BytesIO()
    try:
        schemaless_writer(written, alone, read)
    except _DATUM_FAULTS:
        return False
    return written.getbuffer() == source.getbuffer()[begin : source.tell()]


def _framing(reference: SchemaReference) -> str:
    if isinstance(reference, bytes):
        return f"Avro single-object encoding, fingerprint {reference.hex()}"
    where = "schema id" if isinstance(reference, int) else "schema GUID"
    return f"Confluent, {where} {reference}"


def _printable(value: Any) -> Any:
    """The value as JSON can have it: bytes as hexadecimal digits."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {name: _printable(each) for name, each in value.items()}
    return [_printable(each) for each in value] if isinstance(value, list) else value
