"""One term of a relay: publishes windows with a producer whose transactional id nobody has taken since.

A window ends with a cursor record that says it is complete, also where it turned out empty: the next one is numbered after it.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import structlog

from sync_worker.failpoints import reach
from sync_worker.outbox.cursor import Cursor
from sync_worker.outbox.dead_letters import dead_letter_record
from sync_worker.outbox.encoding import ChangeEncoder, OutboxRow
from sync_worker.outbox.publisher import Publisher, Record, RecordTooLarge
from sync_worker.outbox.windows import DeadLetter, Erased, Row, Window, Windows
from sync_worker.service.metrics import Metrics, Output, Stage, Step
from sync_worker.settings import Settings

ROWS_PER_TRANSACTION = 5000
BYTES_PER_TRANSACTION = 16 << 20

log = structlog.get_logger(__name__)


class Term:
    """Publishes windows, one after the other. Any fault ends the term."""

    def __init__(
        self,
        settings: Settings,
        dead_letter_limit: Callable[[], int],
        windows: Windows,
        publisher: Publisher,
        encoder: ChangeEncoder,
        metrics: Metrics,
        too_large: set[int],
        hold: Callable[[], None],
    ) -> None:
        """dead_letter_limit: asks for the topic's. too_large: dead letters that the broker refused all the same; outlives the term.

        hold: called before each transaction; raises where this worker no longer leads.
        """
        self._settings = settings
        self._dead_letter_limit = dead_letter_limit
        self._dead_letter_bytes = dead_letter_limit()
        self._windows = windows
        self._publisher = publisher
        self._encoder = encoder
        self._metrics = metrics
        self._too_large = too_large
        self._hold = hold
        self._group = settings.consumer_group.encode()

    def publish(self, window: Window, after_id: int) -> None:
        """Everything of a window above `after_id`, in one or more Kafka transactions."""
        for chunk, complete in self._chunks(window, after_id):
            self._hold()
            self._publish_chunk(window, chunk, after_id, complete=complete)
            after_id = chunk[-1].id if chunk else after_id
        self._metrics.relay_window.set(window.number)

    def _chunks(self, window: Window, after_id: int) -> Iterator[tuple[list[Row], bool]]:
        """The rows for each transaction, and whether they are the window's last."""
        chunks = self._windows.chunks(window, after_id, ROWS_PER_TRANSACTION)
        chunk: list[Row] | None = next(chunks)
        while chunk is not None:
            # A full chunk may have a successor; whether this one is the last must be known before its cursor is written.
            following = next(chunks, None) if len(chunk) == ROWS_PER_TRANSACTION else None
            parts = self._parts(chunk)
            for part in parts[:-1]:
                yield part, False
            yield parts[-1], following is None
            chunk = following

    def _parts(self, chunk: list[Row]) -> list[list[Row]]:
        """Cut by bytes, too: five thousand dead letters of the broker's maximal size are neither memory nor one transaction."""
        ids = [row.dead_letter_id for row in chunk if isinstance(row, DeadLetter)]
        sizes = self._windows.dead_letter_sizes(ids) if ids else {}
        parts: list[list[Row]] = [[]]
        size = 0
        for row in chunk:
            if isinstance(row, OutboxRow):
                row_size = len(row.sources) + len(row.before_sources or b"")
            else:  # of an erased key, and of a dead letter that was erased meanwhile, there is nothing to speak of
                row_size = sizes.get(row.dead_letter_id, 0) if isinstance(row, DeadLetter) else 0
            size += row_size
            if size > BYTES_PER_TRANSACTION and parts[-1]:
                parts.append([])
                size = row_size
            parts[-1].append(row)
        return parts

    def _publish_chunk(self, window: Window, chunk: list[Row], after_id: int, *, complete: bool) -> None:
        last_id = chunk[-1].id if chunk else after_id
        cursor = Cursor(window.number, last_id, complete, window.system_identifier)
        changes: Counter[str] = Counter()
        others: Counter[Output] = Counter()
        started = time.perf_counter()
        reach("relay_publishing")
        try:
            self._publisher.publish(
                self._records(chunk, changes, others), (self._settings.cursor_topic, self._group, cursor.to_bytes())
            )
        except RecordTooLarge as refused:
            # Where the limit was lowered meanwhile, the next term goes by the new one.
            if isinstance(refused.tag, int) and self._dead_letter_limit() == self._dead_letter_bytes:
                self._too_large.add(refused.tag)
            raise
        reach("relay_committed")
        self._metrics.step_seconds.labels(Step.RELAY_PUBLISH).observe(time.perf_counter() - started)
        first = next((row for row in chunk if isinstance(row, OutboxRow)), None)
        if first is not None:
            self._metrics.observe_age(Stage.PUBLISHED, first.recorded_at_us)
        for change, number in changes.items():
            self._metrics.changes.labels(change).inc(number)
        for kind, number in {Output.CHANGE: changes.total(), **others}.items():
            self._metrics.published.labels(kind).inc(number)

    def _records(self, chunk: list[Row], changes: Counter[str], others: Counter[Output]) -> Iterator[Record]:
        topic = self._settings.changes_topic
        encode = self._encoder.encode
        ids = [row.dead_letter_id for row in chunk if isinstance(row, DeadLetter)]
        dead_letters = self._windows.dead_letters(ids, self._dead_letter_bytes) if ids else {}
        for row in chunk:
            if isinstance(row, OutboxRow):
                key, value, headers, change = encode(row)
                changes[change] += 1
                yield topic, key, value, headers, None
            elif isinstance(row, Erased):
                # No headers: it is no event of its own, and consumers know it by its null value (contract §2).
                others[Output.TOMBSTONE] += 1
                yield topic, row.key, None, [], None
            elif row.dead_letter_id in dead_letters:
                others[Output.DEAD_LETTER] += 1
                yield self._dead_letter(row.dead_letter_id, dead_letters[row.dead_letter_id])
            else:
                log.info("dead_letter_erased", dead_letter_id=row.dead_letter_id)  # since its outbox row was read

    def _dead_letter(self, id_: int, row: tuple[Any, ...]) -> Record:
        record = dead_letter_record(row, self._dead_letter_bytes, without_value=id_ in self._too_large)
        if record.truncated:
            self._windows.mark_truncated(id_)
            log.warning("dead_letter_truncated", dead_letter_id=id_, bytes=row[-1])
        return self._settings.dead_letters_topic, record.key, record.value, record.headers, id_
