"""Gathers the records of the assigned partitions into batches: what was taken, what waits for a schema, what is handed over.

Each partition has a lane. A lane takes nothing before its position is known, nothing twice, and nothing out of order: a
record that has to wait holds up its own lane and no other one.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from operator import methodcaller
from typing import Any, NamedTuple

import structlog
from confluent_kafka import Message

from sync_worker.errors import InvalidRecord, RetryableError
from sync_worker.events import Headers, Partition, Record, Rejection
from sync_worker.intake.decoding import Decoder
from sync_worker.intake.handoff import Batch, Handoff
from sync_worker.intake.rejections import RejectionGuard, Tally
from sync_worker.service.health import Health
from sync_worker.service.metrics import Metrics, Retry

RETRY_FIRST_S = 0.2
RETRY_MAX_S = 5.0
# Of values in one batch; records of the broker's maximal size would otherwise be held by the thousand.
MAX_BATCH_BYTES = 16 << 20

log = structlog.get_logger(__name__)


# Through C, which sees that list and exception came together. A plain call, once Python has specialized it, doesn't look.
_call_headers = methodcaller("headers")


class Waiting(NamedTuple):
    """A message that can't be taken yet, with its headers as they were read."""

    message: Message
    headers: Headers | None


@dataclass(slots=True)
class Lane:
    """One assigned partition. `generation` names the assignment it belongs to."""

    partition: Partition
    generation: int
    pending: list[Record]  # what its records are gathered into
    tally: Tally | None = None
    position: int = -1  # next offset to take; -1 until the database said
    handed: int = -1  # where the batches handed over will leave the partition
    waiting: deque[Waiting] = field(default_factory=deque)
    retry_at: float = 0.0
    retry_after_s: float = RETRY_FIRST_S
    blocked: str = ""  # why it stands still until an operator has looked
    behind: bool = False  # it is given what lies below its position: librdkafka starts somewhere else than it was told

    @property
    def started(self) -> bool:
        return self.position >= 0

    @property
    def held(self) -> bool:
        """Nothing more is to be fetched for it."""
        return bool(self.waiting) or bool(self.blocked)


class Gathering:
    """The lanes of one consumer and what they hold. Used by the consumer's thread alone."""

    def __init__(
        self,
        decoder: Decoder,
        methods_topic: str,
        max_records: int,
        guard: RejectionGuard | None,
        health: Health,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        self.lanes: dict[tuple[str, int], Lane] = {}
        self._decoder = decoder
        self._methods_topic = methods_topic
        self._max_records = max_records
        self._guard = guard
        self._health = health
        self._metrics = metrics
        self._clock = clock
        self._bytes = 0
        self._registry_trouble = ""
        self._pending: list[Record] = []
        # Methods go by themselves: they need another lock.
        self._pending_methods: list[Record] = []

    @property
    def full(self) -> bool:
        """Enough for a batch, by records or by bytes."""
        return self.room <= 0

    @property
    def room(self) -> int:
        """How many more records to take."""
        return 0 if self._bytes >= MAX_BATCH_BYTES else self._max_records - self.records

    @property
    def records(self) -> int:
        """How many records are to be handed over."""
        return len(self._pending) + len(self._pending_methods)

    def assign(self, partitions: Iterable[Partition], generation: int) -> None:
        for partition in partitions:
            pending = self._pending_methods if partition.topic == self._methods_topic else self._pending
            tally = None if self._guard is None else self._guard.tally(partition)
            self.lanes[partition] = Lane(partition, generation, pending, tally)

    def start(self, partition: Partition, position: int) -> None:
        lane = self.lanes[partition]
        lane.position = lane.handed = position

    def forget(self, partitions: Iterable[Partition]) -> None:
        """These are another worker's now. What was handed over may still be applied: compare-and-set decides."""
        gone = set(partitions)
        for partition in gone:
            self.lanes.pop(partition, None)
        for pending in (self._pending, self._pending_methods):
            pending[:] = [record for record in pending if record.partition not in gone]
        self._say()

    def clear(self) -> None:
        self.lanes.clear()
        self._pending.clear()
        self._pending_methods.clear()
        self._bytes = 0
        self._say()

    def take(self, message: Message, *, end_of_partition: bool) -> Lane | None:
        """Take a message as it comes from Kafka; the lane, where it must fetch no more until it is freed."""
        lane = self.lanes.get((message.topic(), message.partition()))  # type: ignore[arg-type]  # a message has both
        offset: int = message.offset()  # type: ignore[assignment]  # as above
        # Before the seek librdkafka may deliver what comes before the position, or what it fetched for an older assignment.
        if lane is None or lane.position < 0:
            return None
        if offset < lane.position:
            lane.behind = not end_of_partition
            return None
        lane.behind = False
        headers = None if end_of_partition else headers_of(message)
        if lane.held:
            lane.waiting.append(Waiting(message, headers))
        elif end_of_partition:
            self._take_end(lane, offset)
        elif not self._take_record(lane, message, headers, offset):
            lane.waiting.append(Waiting(message, headers))
            lane.retry_at = self._clock() + lane.retry_after_s
            self._say()
        return lane if lane.held else None

    def _take_end(self, lane: Lane, offset: int) -> None:
        """Control records of transactions move the end of a partition without a record to apply."""
        if offset > lane.position:
            lane.position = offset
            lane.pending.append(Record(lane.partition, offset, None))

    def _take_record(self, lane: Lane, message: Message, headers: Headers | None, offset: int) -> bool:
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
            self._bytes += len(value)
            try:
                content = self._decoder.decode(lane.partition.topic, value, headers)
            except InvalidRecord as verdict:
                content = Rejection(verdict.reason, verdict.detail)
            except RetryableError as error:
                self._bytes -= len(value)
                self._metrics.retries.labels(Retry.REGISTRY).inc()
                self._registry_trouble = str(error)
                return False
            if lane.tally is not None and lane.tally.note(content, self._clock()):
                # Rather a publisher's mistake than all of them garbage (design §6).
                self._block(
                    lane,
                    f"more than half of the last records of {lane.partition} were rejected",
                    "look at the dead letters; SYNC_WORKER_REJECTION_PAUSE=false and a restart let it go on",
                )
        lane.position = offset + 1
        lane.pending.append(Record(lane.partition, offset + 1, content, message, headers))
        return True

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
        if freed:
            self._say()
        return freed

    def _take_waiting(self, lane: Lane) -> None:
        while lane.waiting and not lane.blocked and not self.full:
            waiting = lane.waiting[0]
            offset: int = waiting.message.offset()  # type: ignore[assignment]  # a message has one
            if waiting.message.error() is not None:
                self._take_end(lane, offset)
            elif not self._take_record(lane, waiting.message, waiting.headers, offset):
                return
            lane.waiting.popleft()
            lane.retry_after_s = RETRY_FIRST_S

    def unreadable(self, partition: Partition, reason: str) -> Lane | None:
        """The client can't read what is at the partition's position, now or ever; the lane, which fetches no more."""
        lane = self.lanes.get(partition)
        if lane is not None:
            self._block(
                lane,
                f"what is at position {lane.position} of {lane.partition} can't be read: {reason}",
                f"`sync-worker positions reset --topic {lane.partition.topic} --partition {lane.partition.number} --to OFFSET` goes on"
                " behind it; docs/recovery.md says how",
            )
        return lane

    def _block(self, lane: Lane, reason: str, next_step: str) -> None:
        if lane.blocked:
            return
        lane.blocked = reason
        log.error("partition_stopped", partition=str(lane.partition), reason=reason, next_step=next_step)
        self._say()

    def _say(self) -> None:
        """Readiness by what the lanes of now hold: a lane that moved to another worker takes its trouble along."""
        blocked = sorted(lane.blocked for lane in self.lanes.values() if lane.blocked)
        reason = "; ".join(blocked)
        self._health.set_ready("rejections", ok=not blocked, reason=reason)
        waiting = sorted(str(lane.partition) for lane in self.lanes.values() if lane.waiting and not lane.blocked)
        reason = f"{', '.join(waiting)}: {self._registry_trouble}" if waiting else ""
        if self._health.set_ready("registry", ok=not waiting, reason=reason) and waiting:
            log.warning("records_wait", partitions=waiting, reason=self._registry_trouble)

    def hand_over(self, handoff: Handoff) -> bool:
        """Hand what is gathered to the applying thread, as far as it has room; True where nothing is left."""
        for pending in (self._pending_methods, self._pending):
            if not pending:
                continue
            # Asked many times while a batch waits: until there is room this must cost nothing.
            if not handoff.has_room():
                return False
            lanes = [lane for lane in self.lanes.values() if lane.pending is pending and lane.position > lane.handed]
            before = {lane.partition: lane.handed for lane in lanes}
            after = {lane.partition: lane.position for lane in lanes}
            if not handoff.offer(Batch(tuple(pending), before, after)):
                return False
            for lane in lanes:
                lane.handed = lane.position
            pending.clear()
        self._bytes = 0
        return True


def headers_of(message: Message) -> Headers | None:
    """The headers of a message; None where they can't be read. Ask each message once.

    For a header's name that isn't UTF-8 the client returns a list with holes together with the exception, and whoever
    looks into the holes ends the process.
    """
    try:
        return _call_headers(message) or ()
    except (SystemError, UnicodeDecodeError):
        return None
