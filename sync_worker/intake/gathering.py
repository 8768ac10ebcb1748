"""Gathers the records of the assigned partitions into batches: what was taken, what waits for a schema, what is handed over.

Each partition has a lane. A lane takes nothing before its position is known, nothing twice, and nothing out of order: a
record that has to wait holds up its own lane and no other one.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import structlog
from confluent_kafka import Message

from sync_worker.errors import InvalidRecord, RetryableError
from sync_worker.events import Partition, Record, Rejection
from sync_worker.intake.decoding import Decoder
from sync_worker.intake.handoff import Batch, Handoff
from sync_worker.intake.rejections import RejectionGuard
from sync_worker.service.health import Health
from sync_worker.service.metrics import Metrics

RETRY_FIRST_S = 0.2
RETRY_MAX_S = 5.0

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Lane:
    """One assigned partition. `generation` names the assignment it belongs to."""

    partition: Partition
    generation: int
    position: int = -1  # next offset to take; -1 until the database said
    handed: int = -1  # where the batches handed over will leave the partition
    waiting: deque[Message] = field(default_factory=deque)
    retry_at: float = 0.0
    retry_after_s: float = RETRY_FIRST_S
    blocked: bool = False  # most of its records were rejected: an operator must look

    @property
    def started(self) -> bool:
        return self.position >= 0

    @property
    def held(self) -> bool:
        """Nothing more is to be fetched for it."""
        return bool(self.waiting) or self.blocked


class Gathering:
    """The lanes of one consumer and what they hold. Used by the consumer's thread alone."""

    def __init__(
        self,
        decoder: Decoder,
        methods_topic: str,
        guard: RejectionGuard | None,
        health: Health,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        self.lanes: dict[tuple[str, int], Lane] = {}
        self._decoder = decoder
        self._methods_topic = methods_topic
        self._guard = guard
        self._health = health
        self._metrics = metrics
        self._clock = clock
        self._pending: list[Record] = []
        # Methods go by themselves: they need another lock.
        self._pending_methods: list[Record] = []

    def __len__(self) -> int:
        """How many records are to be handed over."""
        return len(self._pending) + len(self._pending_methods)

    def assign(self, partitions: Iterable[Partition], generation: int) -> None:
        for partition in partitions:
            self.lanes[partition] = Lane(partition, generation)

    def start(self, partition: Partition, position: int) -> None:
        lane = self.lanes[partition]
        lane.position = lane.handed = position

    def forget(self, partitions: Iterable[Partition]) -> None:
        """These are another worker's now. What was handed over may still be applied: compare-and-set decides."""
        gone = set(partitions)
        for partition in gone:
            self.lanes.pop(partition, None)
        self._pending = [record for record in self._pending if record.partition not in gone]
        self._pending_methods = [record for record in self._pending_methods if record.partition not in gone]

    def clear(self) -> None:
        self.lanes.clear()
        self._pending.clear()
        self._pending_methods.clear()

    def take(self, message: Message, *, end_of_partition: bool) -> Lane | None:
        """Take a message as it comes from Kafka; the lane, if it must fetch no more for now."""
        lane = self.lanes.get((message.topic(), message.partition()))  # type: ignore[arg-type]  # a message has both
        offset: int = message.offset()  # type: ignore[assignment]  # as above
        # Before the seek librdkafka may deliver what comes before the position, or what it fetched for an older assignment.
        if lane is None or lane.position < 0 or offset < lane.position:
            return None
        if lane.held:
            lane.waiting.append(message)
        elif end_of_partition:
            self._take_end(lane, offset)
        elif not self._take_record(lane, message, offset):
            lane.waiting.append(message)
            lane.retry_at = self._clock() + lane.retry_after_s
        else:
            return lane if lane.blocked else None
        return lane if lane.held else None

    def _take_end(self, lane: Lane, offset: int) -> None:
        """Control records of transactions move the end of a partition without a record to apply."""
        if offset > lane.position:
            lane.position = offset
            self._append(lane, Record(lane.partition, offset, None))

    def _take_record(self, lane: Lane, message: Message, offset: int) -> bool:
        """Decode a record; False where it must wait for the registry."""
        value = message.value()
        content: Any = None
        if value is None:
            key = message.key()
            log.info(
                "null_value_skipped", partition=str(lane.partition), offset=offset, key=repr(key)[:100] if key else None
            )
            self._metrics.records.labels(lane.partition.topic, "null").inc()
        else:
            try:
                content = self._decoder.decode(lane.partition.topic, value, message.headers())  # type: ignore[arg-type]  # a list
            except InvalidRecord as verdict:
                content = Rejection(verdict.reason, verdict.detail)
            except RetryableError as error:
                if self._health.set_ready("registry", ok=False, reason=str(error)):
                    log.warning("record_waits", partition=str(lane.partition), offset=offset, reason=str(error))
                return False
            if self._guard is not None and self._guard.note(lane.partition, content, self._clock()):
                self._block(lane)
        lane.position = offset + 1
        self._append(lane, Record(lane.partition, offset + 1, content, message))
        return True

    def _append(self, lane: Lane, record: Record) -> None:
        (self._pending_methods if lane.partition.topic == self._methods_topic else self._pending).append(record)

    def retry(self) -> list[Lane]:
        """Try again what waits for the registry; the lanes that may fetch again."""
        freed = []
        for lane in list(self.lanes.values()):
            if not lane.waiting or lane.blocked or self._clock() < lane.retry_at:
                continue
            self._take_waiting(lane)
            if lane.waiting and not lane.blocked:
                lane.retry_after_s = min(lane.retry_after_s * 2, RETRY_MAX_S)
                lane.retry_at = self._clock() + lane.retry_after_s
            elif not lane.blocked:
                freed.append(lane)
        if freed and not any(lane.waiting and not lane.blocked for lane in self.lanes.values()):
            self._health.set_ready("registry", ok=True)
        return freed

    def _take_waiting(self, lane: Lane) -> None:
        while lane.waiting and not lane.blocked:
            message = lane.waiting[0]
            offset: int = message.offset()  # type: ignore[assignment]  # a message has one
            if message.error() is not None:
                self._take_end(lane, offset)
            elif not self._take_record(lane, message, offset):
                return
            lane.waiting.popleft()
            lane.retry_after_s = RETRY_FIRST_S

    def _block(self, lane: Lane) -> None:
        """More than half of many records can't be applied: rather a publisher's mistake than all of them garbage (design §6)."""
        if lane.blocked:
            return
        lane.blocked = True
        reason = f"more than half of the last records of {lane.partition} were rejected"
        self._health.set_ready("rejections", ok=False, reason=reason)
        log.error(
            "partition_stopped",
            partition=str(lane.partition),
            reason=reason,
            next_step="look at the dead letters; SYNC_WORKER_REJECTION_PAUSE=false and a restart let it go on",
        )

    def hand_over(self, handoff: Handoff) -> bool:
        """Hand what is gathered to the applying thread, as far as it has room; True where nothing is left."""
        for pending in (self._pending_methods, self._pending):
            if not pending:
                continue
            after = {record.partition: record.next_offset for record in pending}
            before = {partition: self.lanes[partition].handed for partition in after}
            if not handoff.offer(Batch(tuple(pending), before)):
                return False
            for partition, next_offset in after.items():
                self.lanes[partition].handed = next_offset
            pending.clear()
        return True
