"""A person's EnrollmentChanged of one course, as the topic still holds them: `explain --history` (contract §5).

The database keeps no history. Reads committed records only and belongs to no consumer group. Must never take what one
partition holds for all there is: a topic that got more partitions has a key's older records elsewhere.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

from confluent_kafka import Message

from sync_worker.errors import InvalidRecord
from sync_worker.events import RecordName
from sync_worker.kafka.partitioner import partition_of
from sync_worker.operations.changes import ChangeDecoder, headers_of
from sync_worker.operations.reading import TopicReader, place_of
from sync_worker.schema.registry import registry_of
from sync_worker.schema.store import load_schemas
from sync_worker.schema.wire import rfc3339
from sync_worker.settings import Settings

_TELL_EVERY: Final = 5000

OnProgress = Callable[[int, int], None]
"""Called with records read, and how many there are at most: offsets, of which control records and compacted ones have no record."""


@dataclass(frozen=True, slots=True)
class History:
    """`changes` in their order, since the last erasure; `partitions` that were read.

    complete: from version 1 on, without a gap. What is missing was compacted away: the topic keeps the last of each key
    for good, and every one for 7 days at least. unreadable: records of this person that can't be decoded, where and why.
    """

    changes: list[dict[str, Any]]
    partitions: list[int]
    erased: bool
    unreadable: list[str]

    @property
    def complete(self) -> bool:
        return not self.unreadable and [change["version"] for change in self.changes] == list(
            range(1, len(self.changes) + 1)
        )


def read_history(settings: Settings, key: str, version: int | None, on_progress: OnProgress) -> History:
    """The history of a key, `{course_id}:{user_id}`. version: the row's, None where there is none.

    The key's own partition is read. Only where that doesn't reach back to version 1 are those read too in which the key's
    records went while the topic had fewer partitions: it can only ever have got more. That compaction took the beginning looks
    the same, so it costs this look, and no more. Raises FatalError where the topic doesn't exist.
    """
    decoder = ChangeDecoder(load_schemas(settings.schema_dir), registry_of(settings))
    with TopicReader(settings, settings.changes_topic) as reader:
        reading = _Reading(reader, decoder, key.encode(), on_progress)
        history = reading.read({partition_of(key.encode(), reading.count)})
        if not history.complete or (version and not history.changes and not history.erased):
            former = {partition_of(key.encode(), count) for count in range(1, reading.count)}
            history = reading.read(former - set(history.partitions))
        return history


class _Reading:
    """Reads partitions for one key, and keeps what it found in each: a time in ms, and a change or, erased, None."""

    def __init__(self, reader: TopicReader, decoder: ChangeDecoder, key: bytes, on_progress: OnProgress) -> None:
        self._reader = reader
        self._decoder = decoder
        self._key = key
        self._on_progress = on_progress
        self._bounds = reader.bounds()
        self._found: dict[int, list[tuple[int, dict[str, Any] | None]]] = {}
        self._unreadable: list[str] = []
        self.count = len(self._bounds)

    def read(self, partitions: Collection[int]) -> History:
        """Read these, too; what all that were read come to."""
        self._found |= {number: [] for number in partitions}
        starts = {number: self._bounds[number][0] for number in partitions}
        ends = {number: self._bounds[number][1] for number in partitions}
        total, done = sum(ends.values()) - sum(starts.values()), 0
        self._on_progress(done, total)
        for done, message in enumerate(self._reader.read(starts, ends), start=1):
            if done % _TELL_EVERY == 0:
                self._on_progress(done, total)
            if message.key() == self._key:
                self._keep(message)
        self._on_progress(total, total)
        return self._history()

    def _keep(self, message: Message) -> None:
        number, offset = place_of(message)
        value, change = message.value(), None
        if value is not None:
            try:
                change = self._decoder.decode(bytes(value), headers_of(message))
            except InvalidRecord as error:
                self._unreadable.append(f"{message.topic()}[{number}] offset {offset}: {error.detail}")
                return
        self._found[number].append((message.timestamp()[1], change))

    def _history(self) -> History:
        # All that a key has in one partition is older than what it has in the next it went to.
        parts = sorted((part for part in self._found.values() if part), key=lambda part: part[0][0])
        changes: dict[str, dict[str, Any]] = {}
        erased = False
        for _, change in chain.from_iterable(parts):
            if change is None:
                changes, erased = {}, True
            else:
                changes.setdefault(change["event_id"], change)
        ordered = sorted(changes.values(), key=lambda change: int(change["version"]))
        return History([_shown(change) for change in ordered], sorted(self._found), erased, self._unreadable)


def _shown(change: dict[str, Any]) -> dict[str, Any]:
    """As `tail` shows it."""
    return {"type": RecordName.ENROLLMENT_CHANGED.value, **change, "occurred_at": rfc3339(change["occurred_at"])}
