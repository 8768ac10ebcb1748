"""What the worker's own topics hold, read from their beginning to their end: the truth about what was published.

Reads committed records only, in no group, in chunks, so that a topic of any size fits. It must never pass over a record
that it can't read: what it says would not be all that consumers know.
"""

from collections.abc import Callable, Collection, Iterator
from datetime import timedelta
from itertools import islice
from typing import Final

from confluent_kafka import Message

from sync_worker.errors import FatalError, InvalidRecord
from sync_worker.events import Partition
from sync_worker.kafka.broker import Broker, partitions_of
from sync_worker.operations.changes import ChangeDecoder, headers_of
from sync_worker.operations.reading import TopicReader, place_of
from sync_worker.outbox.adopt import Told, WaitingDeadLetter
from sync_worker.outbox.encoding import source_of
from sync_worker.schema.registry import registry_of
from sync_worker.schema.store import load_schemas
from sync_worker.settings import Settings

CHUNK_RECORDS: Final = 5000
# Between the database's clock and that of whoever published.
_CLOCKS_APART: Final = timedelta(hours=1)
OnProgress = Callable[[int, int], None]
"""Called with offsets read and offsets there are."""


class PublishedChanges:
    """What `enrollment.changes` tells. Reading again reads what has come since."""

    def __init__(self, settings: Settings, broker: Broker) -> None:
        self._settings = settings
        self._broker = broker
        self._decoder = ChangeDecoder(load_schemas(settings.schema_dir), registry_of(settings))
        self._own = source_of(settings.consumer_group).encode()
        self._reached = broker.earliest(partitions_of(broker.topics([settings.changes_topic])))

    def read(self, on_progress: OnProgress) -> Iterator[list[Told]]:
        """In chunks of at most one record per key; a later chunk's stands.

        Raises FatalError for a record that can't be decoded.
        """
        for messages in _chunks(self._settings, self._broker, self._reached, on_progress):
            last = {(message.partition(), message.key()): message for message in messages}
            yield [_told(message, self._decoder, self._own) for message in last.values()]


def told_dead_letters(
    settings: Settings, broker: Broker, waiting: Collection[WaitingDeadLetter], on_progress: OnProgress
) -> list[WaitingDeadLetter]:
    """Those of the waiting dead letters that the dead-letter topic holds, by where the rejected record stood."""
    if not waiting:
        return []
    since = min(letter.recorded_at for letter in waiting) - _CLOCKS_APART
    partitions = partitions_of(broker.topics([settings.dead_letters_topic]))
    starts = broker.at_time(partitions, int(since.timestamp() * 1000))
    wanted = {(letter.partition, letter.offset): letter for letter in waiting}
    found = set()
    for messages in _chunks(settings, broker, starts, on_progress):
        found |= {_place_of(message) for message in messages} & wanted.keys()
    return [wanted[place] for place in found]


def _told(message: Message, decoder: ChangeDecoder, own: bytes) -> Told:
    key, value, number = message.key(), message.value(), message.partition()
    where = f"{message.topic()}[{number}] offset {message.offset()}"
    text = key.decode("ascii", "replace") if isinstance(key, bytes) else ""
    if number is None or len(text) != 73:
        raise FatalError(f"{where}: its key is not course:user, so it is none of this worker's records")
    if value is None:
        return Told.of_tombstone(text, number)
    headers = headers_of(message)
    try:
        change = decoder.decode(bytes(value), headers)
    except InvalidRecord as error:
        raise FatalError(
            f"{where} can't be read, so it is not known what consumers know: {error.detail}. Set "
            "SYNC_WORKER_SCHEMA_REGISTRY_URL or SYNC_WORKER_SCHEMA_DIR to where its schema is"
        ) from error
    return Told.of_change(change, number, own=("ce_source", own) in headers)


def _place_of(message: Message) -> tuple[Partition, int]:
    found = dict(headers_of(message))
    topic, number, offset = (found.get(name) or b"" for name in ("dlq_topic", "dlq_partition", "dlq_offset"))
    if not (number.isdigit() and offset.isdigit()):
        return Partition("", -1), -1  # nobody's of ours
    return Partition(topic.decode("utf-8", "replace"), int(number)), int(offset)


def _chunks(
    settings: Settings, broker: Broker, reached: dict[Partition, int], on_progress: OnProgress
) -> Iterator[list[Message]]:
    """Every committed record of a topic from the offsets reached, which it moves on, up to the end as it is now.

    That end is behind open transactions, too: another producer's may hide records of ours, and is waited for.
    """
    (topic,) = {partition.topic for partition in reached}
    ends = broker.end(reached)
    total = sum(max(0, end - reached[partition]) for partition, end in ends.items())
    done = 0
    on_progress(done, total)
    with TopicReader(settings, topic) as reader:
        messages = reader.read(
            {partition.number: start for partition, start in reached.items()},
            {partition.number: end for partition, end in ends.items()},
        )
        while chunk := list(islice(messages, CHUNK_RECORDS)):
            yield chunk
            for message in chunk:
                number, offset = place_of(message)
                done += offset + 1 - reached[Partition(topic, number)]
                reached[Partition(topic, number)] = offset + 1
            on_progress(done, total)
    reached |= ends
    on_progress(total, total)
