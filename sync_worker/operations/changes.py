"""EnrollmentChanged as the topic holds it, back to its fields: for whoever reads what the worker has published.

It must never guess: a record of an unknown schema or of another kind is an error that says which.
"""

from collections.abc import Sequence
from io import BytesIO
from typing import Any, Final

from confluent_kafka import Message
from fastavro import schemaless_reader

from sync_worker.errors import InvalidRecord, RejectionReason
from sync_worker.events import RecordName
from sync_worker.intake.framing import frame_of, read_headers
from sync_worker.schema.avro import AvroSchema
from sync_worker.schema.registry import Registry
from sync_worker.schema.store import SchemaStore, record_name

Headers = Sequence[tuple[str, bytes | None]]

# What fastavro raises for bytes that are not a datum of the schema.
_DATUM_FAULTS: Final = (EOFError, IndexError, ValueError, TypeError, KeyError, OverflowError)


class ChangeDecoder:
    """Decodes values of `enrollment.changes`, under either framing."""

    def __init__(self, schemas: SchemaStore, registry: Registry | None) -> None:
        self._schemas = schemas
        self._registry = registry

    def decode(self, value: bytes, headers: Headers) -> dict[str, Any]:
        """The fields by their Avro names. Raises InvalidRecord for what is no EnrollmentChanged."""
        reference, start = frame_of(value, read_headers(list(headers))[1])
        if isinstance(reference, bytes):
            schema: AvroSchema | None = self._schemas.by_fingerprint.get(reference)
        else:
            schema = self._registry.schema(reference) if self._registry else None
        if schema is None:
            shown = reference.hex() if isinstance(reference, bytes) else reference
            raise _undecodable(f"its schema {shown} is not known here")
        if record_name(schema) is not RecordName.ENROLLMENT_CHANGED:
            raise _undecodable(f"it is a {schema.full_name}")
        try:
            datum: Any = schemaless_reader(BytesIO(value[start:]), schema.parsed)
        except _DATUM_FAULTS as error:
            raise _undecodable(f"its bytes are no {schema.full_name}: {type(error).__name__}") from error
        return dict(datum)


def headers_of(message: Message) -> list[tuple[str, bytes | None]]:
    """The headers of a record as pairs, in order."""
    headers = message.headers() or []
    pairs = headers.items() if isinstance(headers, dict) else headers
    return [(name, value.encode() if isinstance(value, str) else value) for name, value in pairs]


def _undecodable(detail: str) -> InvalidRecord:
    return InvalidRecord(RejectionReason.UNDECODABLE, detail)
