"""Reads the input topics and hands batches of decoded records over; the loop knows Kafka, not what a record does.

Everything here happens in one thread, the consumer's own (a call from another one can hang). It keeps polling whatever
else waits, so that the group doesn't throw the worker out. It must never hand over a record whose partition's position
it doesn't know, nor skip one.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition

from sync_worker.errors import FatalError, InvalidRecord, RetryableError
from sync_worker.events import Partition, Record, Rejection
from sync_worker.failpoints import reach
from sync_worker.intake.decoding import Decoder
from sync_worker.intake.handoff import Batch, Committed, Establish, Established, Handoff
from sync_worker.intake.rejections import RejectionGuard
from sync_worker.kafka_errors import KafkaFaults
from sync_worker.service.health import Health
from sync_worker.service.metrics import Metrics, Rebalance, Step
from sync_worker.settings import Settings

LOOP = "intake"
# How long applying may take before partitions are paused and polling goes on; far below max.poll.interval.ms.
PAUSE_AFTER_S = 1.0
IDLE_POLL_S = 0.1
SHORT_POLL_S = 0.002
COMMIT_EVERY_S = 0.5
RETRY_DECODING_S = (0.2, 5.0)
CLOSE_TIMEOUT_S = 5.0

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Lane:
    """One assigned partition: how far it was handed over, and what waits for a schema."""

    partition: Partition
    generation: int
    position: int = -1  # next offset to take; -1 until the database said
    handed: int = -1  # where the batches handed over will leave the partition
    waiting: deque[Message] = field(default_factory=deque)
    retry_at: float = 0.0
    retry_after_s: float = RETRY_DECODING_S[0]
    blocked: bool = False  # too many rejections: an operator must look


class _Rejoin(Exception):
    """What this consumer has fetched can't be used any more."""


class Intake:
    """The consumer's loop. `run` returns when `stop` is set and everything handed over is applied or `drain_timeout_s` is over."""

    def __init__(
        self,
        settings: Settings,
        decoder: Decoder,
        handoff: Handoff,
        health: Health,
        metrics: Metrics,
        stop: threading.Event,
        *,
        logger: Any = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._decoder = decoder
        self._handoff = handoff
        self._health = health
        self._metrics = metrics
        self._stop = stop
        self._logger = logger
        self._clock = clock
        self._faults = KafkaFaults(settings.kafka_bootstrap_servers)
        self._guard = RejectionGuard() if settings.rejection_pause else None
        self._methods_topic = settings.methods_topic
        self._lanes: dict[tuple[str, int], _Lane] = {}
        self._pending: list[Record] = []
        self._pending_methods: list[Record] = []
        self._to_commit: dict[Partition, int] = {}
        self._committed_at = 0.0
        self._generation = 0
        self._paused = False
        self._full_since: float | None = None

    def run(self) -> None:
        while not self._stop.is_set():
            consumer = Consumer(self._config())
            try:
                consumer.subscribe(
                    list(self._settings.input_topics),
                    on_assign=self._on_assign,
                    on_revoke=self._on_revoke,
                    on_lost=self._on_lost,
                )
                while not self._stop.is_set():
                    self._health.beat(LOOP)
                    self._step(consumer)
                self._drain(consumer)
            except _Rejoin as reason:
                log.warning("rejoining_group", reason=str(reason))
            finally:
                self._forget_everything()
                consumer.close()

    def _config(self) -> dict[str, Any]:
        config = self._settings.kafka_client_config() | self._faults.config
        config |= {
            "group.id": self._settings.consumer_group,
            "group.protocol": self._settings.group_protocol,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            # A position outside of the topic is never a reason to skip (design §4).
            "auto.offset.reset": "error",
            # Control records move the end of a partition without a record to apply.
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
            "fetch.wait.max.ms": 100,
            "fetch.error.backoff.ms": 50,
        }
        if self._settings.group_protocol == "classic":
            config["partition.assignment.strategy"] = "cooperative-sticky"
        if self._logger is not None:
            config["logger"] = self._logger
        return config

    # one turn of the loop

    def _step(self, consumer: Consumer) -> None:
        self._take_replies(consumer)
        self._retry_waiting(consumer)
        self._commit(consumer)
        limit = self._settings.batch_max_records
        if len(self._pending) + len(self._pending_methods) >= limit:
            self._wait_for_room(consumer)
            return
        self._resume_from_pause(consumer)
        first = consumer.poll(self._poll_timeout_s())
        if first is not None:
            messages = [first]
            # consume() waits its whole timeout to fill up, so it is asked for what is there already.
            if (room := limit - len(self._pending) - 1) > 0:
                messages += consumer.consume(room, 0)
            started = self._clock()
            self._take(consumer, messages)
            self._metrics.step_seconds.labels(Step.DECODE).observe(self._clock() - started)
        self._hand_over()

    def _poll_timeout_s(self) -> float:
        if self._pending or self._pending_methods or any(lane.position < 0 for lane in self._lanes.values()):
            return SHORT_POLL_S
        return IDLE_POLL_S

    def _wait_for_room(self, consumer: Consumer) -> None:
        if self._hand_over():
            return
        now = self._clock()
        if self._full_since is None:
            self._full_since = now
        if now - self._full_since < PAUSE_AFTER_S:
            self._handoff.has_room(0.05)
            return
        if not self._paused:
            self._paused = True
            self._metrics.paused.set(1)
            consumer.pause(self._assigned(consumer))
            log.info("intake_paused", reason="the database doesn't keep up, or is away")
        # Paused partitions give nothing: this only serves the group. Anything else must not be lost.
        if (message := consumer.poll(IDLE_POLL_S)) is not None:
            self._take(consumer, [message])

    def _resume_from_pause(self, consumer: Consumer) -> None:
        self._full_since = None
        if self._paused:
            self._paused = False
            self._metrics.paused.set(0)
            ready = [
                TopicPartition(*lane.partition)
                for lane in self._lanes.values()
                if lane.position >= 0 and not lane.waiting and not lane.blocked
            ]
            if ready:
                consumer.resume(ready)
            log.info("intake_resumed")

    def _hand_over(self) -> bool:
        """Hand what is pending to the applying thread, if it has room. Methods go by themselves: they need another lock."""
        for pending in (self._pending_methods, self._pending):
            if not pending:
                continue
            before: dict[Partition, int] = {}
            after: dict[Partition, int] = {}
            for record in pending:
                after[record.partition] = record.next_offset
            for partition in after:
                before[partition] = self._lanes[partition].handed
            if not self._handoff.offer(Batch(tuple(pending), before)):
                return False
            for partition, next_offset in after.items():
                self._lanes[partition].handed = next_offset
            pending.clear()
        return True

    # messages

    def _take(self, consumer: Consumer, messages: Sequence[Message]) -> None:
        lanes = self._lanes
        for message in messages:
            error = message.error()
            if error is not None and error.code() != KafkaError._PARTITION_EOF:
                self._take_error(message, error)
                continue
            lane = lanes.get((message.topic(), message.partition()))  # type: ignore[arg-type]  # a message has both
            # Before the seek, librdkafka may deliver what comes before the position, or what it fetched for an older assignment.
            if lane is None or lane.position < 0 or message.offset() < lane.position:  # type: ignore[operator]  # has one
                continue
            if lane.waiting or lane.blocked:
                lane.waiting.append(message)
            elif not self._take_message(lane, message):
                lane.waiting.append(message)
                lane.retry_at = self._clock() + lane.retry_after_s
                consumer.pause([TopicPartition(*lane.partition)])
            elif lane.blocked:
                consumer.pause([TopicPartition(*lane.partition)])

    def _take_message(self, lane: _Lane, message: Message) -> bool:
        """Decode a message into the pending batch; False where it must wait for the registry."""
        offset: int = message.offset()  # type: ignore[assignment]  # a message has one
        pending = self._pending_methods if lane.partition.topic == self._methods_topic else self._pending
        if message.error() is not None:  # end of partition
            if offset > lane.position:
                lane.position = offset
                pending.append(Record(lane.partition, offset, None))
            return True
        value = message.value()
        if value is None:
            log.info("null_value_skipped", partition=str(lane.partition), offset=offset, key=_shown(message.key()))
            self._metrics.records.labels(lane.partition.topic, "null").inc()
            content: Any = None
        else:
            try:
                content = self._decoder.decode(lane.partition.topic, value, message.headers())  # type: ignore[arg-type]  # a list
            except InvalidRecord as verdict:
                content = Rejection(verdict.reason, verdict.detail)
            except RetryableError as error:
                if not lane.waiting:
                    log.warning("record_waits", partition=str(lane.partition), offset=offset, reason=str(error))
                self._health.set_ready("registry", ok=False, reason=str(error))
                return False
            if self._guard is not None and self._guard.note(lane.partition, content, self._clock()):
                self._block(lane)
        lane.position = offset + 1
        pending.append(Record(lane.partition, offset + 1, content, message))
        return True

    def _retry_waiting(self, consumer: Consumer) -> None:
        for lane in list(self._lanes.values()):
            if not lane.waiting or lane.blocked or self._clock() < lane.retry_at:
                continue
            self._take_waiting(lane)
            if lane.waiting:
                lane.retry_after_s = min(lane.retry_after_s * 2, RETRY_DECODING_S[1])
                lane.retry_at = self._clock() + lane.retry_after_s
                continue
            if not any(other.waiting for other in self._lanes.values()):
                self._health.set_ready("registry", ok=True)
            if not self._paused and not lane.blocked:
                consumer.resume([TopicPartition(*lane.partition)])
            elif lane.blocked:
                consumer.pause([TopicPartition(*lane.partition)])

    def _take_waiting(self, lane: _Lane) -> None:
        while lane.waiting:
            if lane.blocked or not self._take_message(lane, lane.waiting[0]):
                return
            lane.waiting.popleft()
            lane.retry_after_s = RETRY_DECODING_S[0]

    def _block(self, lane: _Lane) -> None:
        """More than half of many records can't be applied: rather a publisher's mistake than all of them garbage (design §6)."""
        if not lane.blocked:
            lane.blocked = True
            reason = f"more than half of the last records of {lane.partition} were rejected"
            self._health.set_ready("rejections", ok=False, reason=reason)
            log.error(
                "partition_stopped",
                partition=str(lane.partition),
                reason=reason,
                next_step="look at the dead letters; SYNC_WORKER_REJECTION_PAUSE=false and a restart let it go on",
            )

    def _take_error(self, message: Message, error: KafkaError) -> None:
        number = message.partition()
        where = Partition(message.topic() or "", -1 if number is None else number)
        code = error.code()
        if code in {KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE}:
            lane = self._lanes.get(where)
            if lane is None or lane.position < 0:
                return
            raise FatalError(
                f"position {lane.position} of {where} is outside of what the topic holds: records were deleted before they were "
                "applied (retention), or the topic was made anew. Say where to go on with `sync-worker positions reset`; "
                "docs/recovery.md says how to choose"
            )
        if code in {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION}:
            # The watch asks the broker by the topic's id and decides; a broker that starts says this for a moment.
            log.warning("topic_unknown", partition=str(where), reason=error.str())
            return
        if error.fatal():
            raise _Rejoin(error.str())
        failure = self._faults.error("reading the input topics", error)
        if isinstance(failure, FatalError) and not error.retriable() and code != KafkaError._MAX_POLL_EXCEEDED:
            raise failure
        log.warning("broker_trouble", partition=str(where), reason=str(failure))

    # the applying thread's answers

    def _take_replies(self, consumer: Consumer) -> None:
        for reply in self._handoff.replies():
            if isinstance(reply, Committed):
                self._to_commit.update(reply.positions)
            elif isinstance(reply, Established):
                self._start_lanes(consumer, reply)
            elif any(partition in self._lanes for partition in reply.partitions):  # Rewound
                raise _Rejoin(f"positions of {', '.join(map(str, reply.partitions))} were set back")

    def _start_lanes(self, consumer: Consumer, reply: Established) -> None:
        for partition, position in reply.positions.items():
            lane = self._lanes.get(partition)
            if lane is None or lane.generation != reply.generation:
                continue
            where = TopicPartition(*partition, position)
            try:
                consumer.seek(where)
            except KafkaException as error:
                # The fetcher of a partition assigned a moment ago isn't there yet.
                if error.args[0].code() not in {
                    KafkaError._STATE,
                    KafkaError._PREV_IN_PROGRESS,
                    KafkaError._IN_PROGRESS,
                }:
                    raise _Rejoin(f"seeking {partition} to {position}: {error}") from error
                self._handoff.reply(Established({partition: position}, reply.generation))
                continue
            lane.position = lane.handed = position
            if not self._paused:
                consumer.resume([TopicPartition(*partition)])
            log.info("partition_started", partition=str(partition), position=position)
        self._say_assignment()

    def _commit(self, consumer: Consumer, *, wait: bool = False) -> None:
        """Tell Kafka too, for lag tools and autoscalers. Only a hint: the database's positions are the truth."""
        now = self._clock()
        if not self._to_commit or (now - self._committed_at < COMMIT_EVERY_S and not wait):
            return
        offsets = [
            TopicPartition(*partition, offset)
            for partition, offset in self._to_commit.items()
            if partition in self._lanes
        ]
        self._to_commit.clear()
        self._committed_at = now
        if not offsets:
            return
        try:
            if wait:
                consumer.commit(offsets=offsets, asynchronous=False)
            else:
                consumer.commit(offsets=offsets)
        except KafkaException as error:
            log.info("kafka_commit_refused", reason=str(error.args[0]))

    # rebalance callbacks: called inside poll() and close(), in this thread. No database work here (design §4): a callback that waits
    # holds up the whole group. Kafka may call on_assign with nothing after a revoke, and on_revoke at close.

    def _on_assign(self, consumer: Consumer, assigned: list[TopicPartition]) -> None:
        reach("on_assign")
        self._metrics.rebalances.labels(Rebalance.ASSIGNED).inc()
        # From the beginning: whatever is delivered before the seek lies without a gap before or at the position.
        consumer.incremental_assign(
            [TopicPartition(where.topic, where.partition, OFFSET_BEGINNING) for where in assigned]
        )
        if not assigned:
            self._say_assignment()
            return
        consumer.pause(assigned)
        self._generation += 1
        partitions = tuple(Partition(where.topic, where.partition) for where in assigned)
        for partition in partitions:
            self._lanes[partition] = _Lane(partition, self._generation)
        self._handoff.ask(Establish(partitions, self._generation))
        self._say_assignment()
        log.info("partitions_assigned", partitions=[str(partition) for partition in partitions])

    def _on_revoke(self, consumer: Consumer, revoked: list[TopicPartition]) -> None:
        reach("on_revoke")
        self._metrics.rebalances.labels(Rebalance.REVOKED).inc()
        self._commit(consumer, wait=False)
        self._forget(revoked)
        consumer.incremental_unassign(revoked)
        log.info("partitions_revoked", partitions=[f"{where.topic}[{where.partition}]" for where in revoked])

    def _on_lost(self, consumer: Consumer, lost: list[TopicPartition]) -> None:
        reach("on_lost")
        self._metrics.rebalances.labels(Rebalance.LOST).inc()
        self._forget(lost)
        consumer.incremental_unassign(lost)
        log.warning("partitions_lost", partitions=[f"{where.topic}[{where.partition}]" for where in lost])

    def _forget(self, partitions: Sequence[TopicPartition]) -> None:
        """What is pending of these is another worker's now. What was handed over may still be applied: compare-and-set decides."""
        gone = {Partition(where.topic, where.partition) for where in partitions}
        for partition in gone:
            self._lanes.pop(partition, None)
            self._to_commit.pop(partition, None)
        self._pending = [record for record in self._pending if record.partition not in gone]
        self._pending_methods = [record for record in self._pending_methods if record.partition not in gone]
        self._say_assignment()

    def _forget_everything(self) -> None:
        self._lanes.clear()
        self._pending.clear()
        self._pending_methods.clear()
        self._to_commit.clear()
        self._paused = False
        self._full_since = None

    def _say_assignment(self) -> None:
        starting = [str(lane.partition) for lane in self._lanes.values() if lane.position < 0]
        self._health.set_ready(
            "assignment", ok=not starting, reason=f"starting {', '.join(sorted(starting))}" if starting else ""
        )

    def _assigned(self, consumer: Consumer) -> list[TopicPartition]:
        return (
            [TopicPartition(*lane.partition) for lane in self._lanes.values()] if self._lanes else consumer.assignment()
        )

    def _drain(self, consumer: Consumer) -> None:
        """Stop fetching, let what was handed over be applied, tell Kafka, leave the group (contract §5, `run`)."""
        reach("drain")
        self._handoff.wait_until_idle(self._settings.drain_timeout_s / 2)
        for reply in self._handoff.replies():
            if isinstance(reply, Committed):
                self._to_commit.update(reply.positions)
        self._commit(consumer, wait=True)


def _shown(key: bytes | str | None) -> str | None:
    return None if key is None else repr(key)[:100]
