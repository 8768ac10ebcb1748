"""Sends JSON lines to the input topics: what `sync-worker publish` does around `publishing.LineEncoder`.

A line that can't be sent is named, and the rest goes on. Must never end without knowing of each line whether it
arrived.
"""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from uuid import UUID

from sync_worker.errors import SyncWorkerError
from sync_worker.events import RecordName
from sync_worker.operations.bookmark import Bookmark, Mark, Step, event_id
from sync_worker.operations.publishing import InvalidLine, LineEncoder, Publication, wall_clock_micros
from sync_worker.operations.sending import Sender
from sync_worker.schema.registry import registry_of
from sync_worker.schema.store import load_schemas
from sync_worker.settings import Settings

OnFault = Callable[[int, str], None]
"""Called with a line's number, from 1, and what is wrong with it."""


class Publisher:
    """Publishes lines and counts them: `published` (acknowledged), `invalid`, `undelivered`.

    With `progress`, a file, it goes on behind the lines that are acknowledged; what it fills into a line is then the same
    each time.
    """

    def __init__(self, settings: Settings, on_fault: OnFault, progress: Path | None = None) -> None:
        self.published = 0
        self.invalid = 0
        self.undelivered = 0
        self._on_fault = on_fault
        self._progress = progress
        self._sender = Sender(settings)
        self._schemas = load_schemas(settings.schema_dir)
        self._registry = registry_of(settings)
        self._topics = topics_by_record(settings)
        self._encoder = LineEncoder(self._schemas, self._topics, self._registry)
        self._bookmark = Bookmark(None, "publish", 0)
        self._number = 0

    def publish(self, lines: Iterable[bytes]) -> None:
        """Send each line that is not blank; return when every one is acknowledged or named.

        Raises what isn't a line's fault (the registry is away), with the line it stopped at.
        """
        self._bookmark = Bookmark(self._progress, "publish", wall_clock_micros())
        if self._progress is not None:
            self._encoder = self._repeatable(self._bookmark.mark)
        with self._sender.open():
            try:
                for number, line in self._bookmark.remaining(lines):
                    self._number = number
                    if line.strip():
                        self._one(line)
            except SyncWorkerError as error:
                raise type(error)(f"stopped at line {self._number}, the lines before it are done: {error}") from error
        if not self.undelivered:
            self._bookmark.finish()

    def _repeatable(self, mark: Mark) -> LineEncoder:
        """Fills in, for each line, what an earlier attempt at this run filled in."""
        return LineEncoder(
            self._schemas,
            self._topics,
            self._registry,
            now=lambda: mark.started_at + self._number,
            new_id=lambda: UUID(event_id(mark.run, self._number)),
        )

    def _one(self, line: bytes) -> None:
        try:
            publication = self._encoder.encode_line(line.removeprefix(b"\xef\xbb\xbf"))
            self._check_topic(publication)
        except InvalidLine as error:
            self.invalid += 1
            self._on_fault(self._number, str(error))
            return
        self._sender.send(*publication, partial(self._arrived, self._number, self._bookmark.record()))

    def _check_topic(self, publication: Publication) -> None:
        # Producing would have the broker make it, with settings that are not the contract's.
        if publication.topic not in self._sender.partitions:
            raise InvalidLine(f"its topic {publication.topic} does not exist; `sync-worker topics create` makes it")

    def _arrived(self, number: int, step: Step, error: SyncWorkerError | None) -> None:
        if error is None:
            self.published += 1
            self._bookmark.arrived(step)
        else:
            self.undelivered += 1
            self._on_fault(number, str(error))


def topics_by_record(settings: Settings) -> dict[RecordName, str]:
    """The topic of each input record (contract §1); empty where it is not read."""
    return {
        RecordName.MEMBER_ADDED: settings.membership_topic,
        RecordName.MEMBER_REMOVED: settings.membership_topic,
        RecordName.METHOD_CHANGED: settings.methods_topic,
        RecordName.SOURCE_CHANGED: settings.sources_topic,
        RecordName.SUSPENSION_CHANGED: settings.sources_topic,
    }
