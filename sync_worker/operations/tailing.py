"""Reads what the worker published, as plain documents: EnrollmentChanged, or dead letters (contract §2, `tail`).

Reads committed records only and belongs to no consumer group, so it disturbs nobody. Must never stop at a record
that it can't read: that one is named, and the next is read.
"""

import base64
from collections.abc import Generator, Mapping
from typing import Any, Final, NamedTuple

import structlog
from confluent_kafka import Message

from sync_worker.errors import InvalidRecord
from sync_worker.events import RecordName
from sync_worker.operations.changes import ChangeDecoder, headers_of
from sync_worker.operations.reading import TopicReader
from sync_worker.schema.registry import registry_of
from sync_worker.schema.store import load_schemas
from sync_worker.schema.wire import rfc3339
from sync_worker.settings import Settings

_NUMBERS: Final = frozenset({"dlq_partition", "dlq_offset"})
_log = structlog.get_logger(__name__)


class Fault(NamedTuple):
    """A record that could not be read, where it is, and why."""

    where: str
    why: str


Tailed = dict[str, Any] | Fault


def tail(
    settings: Settings,
    *,
    dead_letters: bool = False,
    from_beginning: bool = False,
    until_end: bool = False,
    last: int = 0,
    decoder: ChangeDecoder | None = None,
) -> Generator[Tailed, None, None]:
    """Each record as it comes: a document, or the fault that kept it from being one.

    Starts at the end unless `from_beginning`, or so many offsets before it in each partition as `last` says; `until_end` stops
    at the end as it was at the start. `decoder`: one that is kept by somebody who reads again and again.

    Partitions that the topic gets later are not read. Raises FatalError where the topic doesn't exist.
    """
    topic = settings.dead_letters_topic if dead_letters else settings.changes_topic
    documents: _DeadLetters | _Changes
    if dead_letters:
        documents = _DeadLetters()
    else:
        documents = _Changes(decoder or ChangeDecoder(load_schemas(settings.schema_dir), registry_of(settings)))
    with TopicReader(settings, topic) as reader:
        bounds = reader.bounds()
        starts = {number: low if from_beginning else max(low, high - last) for number, (low, high) in bounds.items()}
        if not until_end:
            # Whoever waits for what comes wants to know from when on nothing is missed.
            _log.info("tail_started", topic=topic, partitions=len(bounds))
        ends = {number: high for number, (_, high) in bounds.items()} if until_end else None
        for message in reader.read(starts, ends):
            yield documents.of(message)


class _Changes:
    """EnrollmentChanged by its Avro field names, the time as ISO 8601; a null value as a document of type Tombstone."""

    def __init__(self, decoder: ChangeDecoder) -> None:
        self._decoder = decoder

    def of(self, message: Message) -> Tailed:
        value = message.value()
        if value is None:
            return {"type": "Tombstone", **_ids(message.key())}
        try:
            datum = self._decoder.decode(value, headers_of(message))
        except InvalidRecord as error:
            return Fault(f"{message.topic()}[{message.partition()}] offset {message.offset()}", error.detail)
        occurred_at = datum.get("occurred_at")
        if isinstance(occurred_at, int):
            datum["occurred_at"] = rfc3339(occurred_at)
        return {"type": RecordName.ENROLLMENT_CHANGED.value, **datum}


class _DeadLetters:
    """The `dlq_*` headers by their names, then the record's own headers as text, then key and value as base64."""

    def of(self, message: Message) -> Tailed:
        headers = [(name, _text(value)) for name, value in headers_of(message)]
        reasons = {name: value for name, value in headers if name.startswith("dlq_")}
        numbers = {
            name: int(value) for name, value in reasons.items() if name in _NUMBERS and value and value.isdecimal()
        }
        return {
            "partition": message.partition(),
            "offset": message.offset(),
            **reasons,
            **numbers,
            "headers": [[name, value] for name, value in headers if not name.startswith("dlq_")],
            "key": _base64(message.key()),
            "value": _base64(message.value()),
        }


def _ids(key: bytes | str | None) -> Mapping[str, str | None]:
    text = _text(key)
    course, colon, user = (text or "").partition(":")
    return {"course_id": course, "user_id": user} if colon else {"key": text}


def _text(value: bytes | str | None) -> str | None:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value


def _base64(value: bytes | str | None) -> str | None:
    raw = value.encode() if isinstance(value, str) else value
    return None if raw is None else base64.b64encode(raw).decode("ascii")
