"""What consumers were told last of some people: by the topic, and by the outbox where that is ahead of it.

For rows that are gone, whose versions nothing else knows any more. Must never take silence for "nothing was told": a record
of these people that can't be read is an error.
"""

from collections.abc import Collection

import structlog
from confluent_kafka import Message

from sync_worker.enrollment.repair import Said
from sync_worker.errors import FatalError, InvalidRecord
from sync_worker.events import text_of
from sync_worker.operations.changes import ChangeDecoder, headers_of
from sync_worker.operations.reading import TopicReader
from sync_worker.outbox.adopt import Told
from sync_worker.schema.registry import registry_of
from sync_worker.schema.store import load_schemas
from sync_worker.settings import Settings

log = structlog.get_logger(__name__)


def last_said(settings: Settings, people: Collection[bytes]) -> dict[bytes, Said]:
    """The last record of each of these people (course and user, 16 bytes each) on `enrollment.changes`; version 0: a tombstone.

    Reads the whole topic. Raises FatalError for a record of theirs that can't be decoded.
    """
    log.info("reconcile_reads_topic", topic=settings.changes_topic, rows_gone=len(people))
    wanted = {f"{text_of(person[:16])}:{text_of(person[16:])}".encode(): person for person in people}
    decoder = ChangeDecoder(load_schemas(settings.schema_dir), registry_of(settings))
    found: dict[bytes, Told] = {}
    with TopicReader(settings, settings.changes_topic) as reader:
        bounds = reader.bounds()
        starts = {number: low for number, (low, _) in bounds.items()}
        for message in reader.read(starts, {number: high for number, (_, high) in bounds.items()}):
            person = wanted.get(bytes(message.key() or b""))
            if person is None:
                continue
            told = _told(message, decoder)
            held = found.get(person)
            # Where the topic got more partitions, a key may have older records in another one.
            if held is None or held.partition == told.partition or told.version > held.version:
                found[person] = told
    return {
        person: Said(told.version, told.sources, tuple(told.hand), told.suspended) for person, told in found.items()
    }


def _told(message: Message, decoder: ChangeDecoder) -> Told:
    key, value, number = bytes(message.key() or b"").decode(), message.value(), message.partition() or 0
    if value is None:
        return Told.of_tombstone(key, number)
    try:
        return Told.of_change(decoder.decode(bytes(value), headers_of(message)), number, own=True)
    except InvalidRecord as error:
        raise FatalError(
            f"{message.topic()}[{number}] offset {message.offset()} can't be read, so it is not known which version consumers "
            f"have of {key}: {error.detail}"
        ) from error
