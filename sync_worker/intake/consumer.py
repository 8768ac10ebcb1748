"""Reads the input topics and hands batches over; this loop knows Kafka and its groups, not what a record does.

Everything here happens in one thread, the consumer's own (a call from another one can hang). It keeps polling whatever
else waits, so that the group doesn't throw the worker out.
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import structlog
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition

from sync_worker.errors import FatalError
from sync_worker.events import Partition
from sync_worker.failpoints import reach
from sync_worker.intake.client import consumer_properties
from sync_worker.intake.decoding import Decoder
from sync_worker.intake.gathering import Gathering, Lane
from sync_worker.intake.handoff import Committed, Establish, Established, Handoff
from sync_worker.intake.rejections import RejectionGuard
from sync_worker.kafka.errors import KafkaFaults
from sync_worker.service.health import Health
from sync_worker.service.metrics import Metrics, Rebalance, Step
from sync_worker.settings import Settings

LOOP = "intake"
# How long applying may take before partitions are paused and polling goes on; far below max.poll.interval.ms.
PAUSE_AFTER_S = 1.0
IDLE_POLL_S = 0.1
SHORT_POLL_S = 0.002
COMMIT_EVERY_S = 0.5
SEEK_AGAIN_S = 1.0
# A consumer that librdkafka gives up sooner than this, so often in a row, never works.
CONSUMER_LASTED_S = 60.0
DEAD_CONSUMERS = 5
REJOIN_MAX_S = 30.0

# A partition that was assigned a moment ago has no fetcher yet that could be told where to start.
_NOT_YET = frozenset({KafkaError._STATE, KafkaError._PREV_IN_PROGRESS, KafkaError._IN_PROGRESS})
# A batch that doesn't unpack, or unpacks to more than the client takes: it would be fetched again and again.
_UNREADABLE = frozenset({KafkaError._BAD_COMPRESSION, KafkaError._BAD_MSG})
_OUT_OF_RANGE = frozenset({KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE})

log = structlog.get_logger(__name__)


class _Rejoin(Exception):
    """What this consumer has fetched can't be used any more: start again with a new one."""


class _ConsumerDead(_Rejoin):
    """librdkafka gave this consumer up; why is the same the next time, or it isn't."""


class Intake:
    """The consumer's loop. `run` returns when `stop` is set and what was handed over is applied, or half the drain limit is over."""

    def __init__(
        self,
        settings: Settings,
        decoder: Decoder,
        handoff: Handoff,
        health: Health,
        metrics: Metrics,
        stop: threading.Event,
        *,
        logger: Any = None,  # librdkafka's
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._classic = settings.group_protocol == "classic"
        self._handoff = handoff
        self._health = health
        self._metrics = metrics
        self._stop = stop
        self._clock = clock
        self._faults = KafkaFaults(settings.kafka_bootstrap_servers)
        self._callbacks = self._faults.config | ({} if logger is None else {"logger": logger})
        guard = RejectionGuard() if settings.rejection_pause else None
        # For other threads to read: the partitions whose records this worker takes.
        self.partitions: frozenset[Partition] = frozenset()
        self._gathering = Gathering(
            decoder, settings.methods_topic, settings.batch_max_records, guard, health, metrics, clock
        )
        self._to_commit: dict[Partition, int] = {}
        self._committed_at = 0.0
        self._generation = 0
        self._paused = False
        self._full_since: float | None = None
        self._sought_at = 0.0
        self._still: frozenset[Partition] = frozenset()

    def stands_still(self, partitions: frozenset[Partition]) -> None:
        """The watch's word that records wait in these and none is applied. May be called from any thread."""
        self._still = partitions

    def run(self) -> None:
        dead = 0
        while not self._stop.is_set():
            consumer = Consumer(consumer_properties(self._settings) | self._callbacks)
            started = self._clock()
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
                lasted = self._clock() - started > CONSUMER_LASTED_S
                dead = 0 if lasted else dead + isinstance(reason, _ConsumerDead)
                if dead > DEAD_CONSUMERS:
                    raise FatalError(
                        f"no consumer of group {self._settings.consumer_group} stays alive: {reason}"
                    ) from reason
                self._health.set_ready("assignment", ok=False, reason=str(reason))
                self._stop.wait(min(2.0**dead - 1, REJOIN_MAX_S))
            finally:
                self._gathering.clear()
                self._to_commit.clear()
                self._paused, self._full_since = False, None
                self._still = frozenset()
                consumer.close()

    # one turn of the loop

    def _step(self, consumer: Consumer) -> None:
        self._take_replies(consumer)
        if self._still:
            self._judge_stillness()
        freed = self._gathering.retry()
        if not self._paused:
            self._resume(consumer, freed)
        self._commit(consumer)
        self._seek_again(consumer)
        if self._gathering.full:
            self._wait_for_room(consumer)
            return
        self._resume_from_pause(consumer)
        room = self._gathering.room
        first = consumer.poll(self._poll_timeout_s())
        if first is not None:
            # consume() waits its whole timeout to fill up, so it is asked for what is there already.
            self._take(consumer, [first, *(consumer.consume(room - 1, 0) if room > 1 else ())])
        self._gathering.hand_over(self._handoff)

    def _judge_stillness(self) -> None:
        """A new consumer, where this one gives nothing and nothing else explains that."""
        still, self._still = self._still, frozenset()
        waits = self._paused or self._gathering.records or not self._handoff.wait_until_idle(0)
        held = any(lane.held for lane in self._gathering.lanes.values() if lane.partition in still)
        if not waits and not held:
            raise _Rejoin(f"nothing comes from {', '.join(sorted(map(str, still)))}, where records wait")

    def _poll_timeout_s(self) -> float:
        starting = any(not lane.started for lane in self._gathering.lanes.values())
        return SHORT_POLL_S if starting or self._gathering.records else IDLE_POLL_S

    def _wait_for_room(self, consumer: Consumer) -> None:
        if self._gathering.hand_over(self._handoff):
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
            self._pause(consumer, self._gathering.lanes.values())
            log.info("intake_paused", reason="the database doesn't keep up, or is away")
        # Paused partitions give nothing: this serves the group. What was on its way all the same must not be lost.
        if (message := consumer.poll(IDLE_POLL_S)) is not None:
            self._take(consumer, [message])

    def _resume_from_pause(self, consumer: Consumer) -> None:
        self._full_since = None
        if self._paused:
            self._paused = False
            self._metrics.paused.set(0)
            self._resume(consumer, [lane for lane in self._gathering.lanes.values() if lane.started and not lane.held])
            log.info("intake_resumed")

    def _take(self, consumer: Consumer, messages: Sequence[Message]) -> None:
        started = self._clock()
        take = self._gathering.take
        held: dict[Partition, Lane] = {}
        for message in messages:
            error = message.error()
            if error is None:
                lane = take(message, end_of_partition=False)
            elif error.code() == KafkaError._PARTITION_EOF:
                lane = take(message, end_of_partition=True)
            else:
                lane = self._take_error(message, error)
            if lane is not None:
                held[lane.partition] = lane
        if held:
            self._pause(consumer, held.values())
        self._metrics.step_seconds.labels(Step.DECODE).observe(self._clock() - started)

    def _take_error(self, message: Message, error: KafkaError) -> Lane | None:
        """Raise what an error means; the lane, where it must fetch no more, None where the error passes."""
        number = message.partition()
        where = Partition(message.topic() or "", -1 if number is None else number)
        if error.code() in _OUT_OF_RANGE:
            lane = self._gathering.lanes.get(where)
            if lane is None or not lane.started:
                return None
            raise FatalError(
                f"position {lane.position} of {where} is outside of what the topic holds ({error.str()}): records were deleted "
                "before they were applied (retention), or the topic was made anew. Say where to go on with `sync-worker positions reset`; "
                "docs/recovery.md says how to choose"
            )
        if error.fatal():
            raise _ConsumerDead(error.str())
        if error.code() in _UNREADABLE:
            return self._gathering.unreadable(where, error.str())
        # That a topic is unknown is for the watch to judge, which asks for it by its id: a broker that starts knows none for a moment.
        failure = self._faults.waited_for("reading the input topics", error)
        if isinstance(failure, FatalError):
            raise failure
        log.warning("broker_trouble", partition=str(where), reason=str(failure))
        return None

    # the applying thread's answers

    def _take_replies(self, consumer: Consumer) -> None:
        for reply in self._handoff.replies():
            if isinstance(reply, Committed):
                self._to_commit.update(reply.positions)
            elif isinstance(reply, Established):
                self._start_lanes(consumer, reply)
            elif any(partition in self._gathering.lanes for partition in reply.partitions):  # Rewound
                raise _Rejoin(f"positions of {', '.join(map(str, reply.partitions))} were set back")

    def _start_lanes(self, consumer: Consumer, reply: Established) -> None:
        for partition, position in reply.positions.items():
            lane = self._gathering.lanes.get(partition)
            if lane is None or lane.generation != reply.generation:
                continue
            try:
                consumer.seek(TopicPartition(*partition, position))
            except KafkaException as error:
                if error.args[0].code() not in _NOT_YET:
                    raise _Rejoin(f"seeking {partition} to {position}: {error}") from error
                self._handoff.reply(Established({partition: position}, reply.generation))
                continue
            self._gathering.start(partition, position)
            self._sought_at = self._clock()
            if not self._paused:
                self._resume(consumer, [lane])
            log.info("partition_started", partition=str(partition), position=position)
        self._say_assignment()

    def _seek_again(self, consumer: Consumer) -> None:
        """A late answer about the partition's beginning may undo the seek: nothing is lost, but all of it is read once more."""
        now = self._clock()
        if now - self._sought_at < SEEK_AGAIN_S:
            return
        for lane in self._gathering.lanes.values():
            if not lane.behind:
                continue
            lane.behind = False
            self._sought_at = now
            log.info("seeking_again", partition=str(lane.partition), position=lane.position)
            try:
                consumer.seek(TopicPartition(*lane.partition, lane.position))
            except KafkaException as error:
                raise _Rejoin(f"seeking {lane.partition} to {lane.position}: {error}") from error

    def _commit(self, consumer: Consumer, *, wait: bool = False) -> None:
        """Tell Kafka too, for lag tools and autoscalers. Only a hint: the database's positions are the truth."""
        now = self._clock()
        if not self._to_commit or (now - self._committed_at < COMMIT_EVERY_S and not wait):
            return
        lanes = self._gathering.lanes
        offsets = [TopicPartition(*where, offset) for where, offset in self._to_commit.items() if where in lanes]
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

    # rebalance callbacks: called inside poll() and close(), in this thread. No database work here (design §4): a callback that
    # waits holds up the whole group. Kafka may call on_assign with nothing after a revoke, and on_revoke at close. In a classic group
    # they get whole assignments (ADR 15), by the newer protocol what is added and taken away.

    def _on_assign(self, consumer: Consumer, assigned: list[TopicPartition]) -> None:
        reach("on_assign")
        self._metrics.rebalances.labels(Rebalance.ASSIGNED).inc()
        # From the beginning: whatever is delivered before the seek lies without a gap before or at the position.
        whole_or_more = consumer.assign if self._classic else consumer.incremental_assign
        whole_or_more([TopicPartition(tp.topic, tp.partition, OFFSET_BEGINNING) for tp in assigned])
        if assigned:
            consumer.pause(assigned)
            self._generation += 1
            partitions = tuple(Partition(tp.topic, tp.partition) for tp in assigned)
            self._gathering.assign(partitions, self._generation)
            self._handoff.ask(Establish(partitions, self._generation))
            log.info("partitions_assigned", partitions=[str(partition) for partition in partitions])
        self._say_assignment()

    def _on_revoke(self, consumer: Consumer, revoked: list[TopicPartition]) -> None:
        reach("on_revoke")
        self._metrics.rebalances.labels(Rebalance.REVOKED).inc()
        self._commit(consumer)
        self._forget(consumer, revoked, "partitions_revoked")

    def _on_lost(self, consumer: Consumer, lost: list[TopicPartition]) -> None:
        reach("on_lost")
        self._metrics.rebalances.labels(Rebalance.LOST).inc()
        self._forget(consumer, lost, "partitions_lost")

    def _forget(self, consumer: Consumer, gone: list[TopicPartition], event: str) -> None:
        partitions = [Partition(tp.topic, tp.partition) for tp in gone]
        self._gathering.forget(partitions)
        for partition in partitions:
            self._to_commit.pop(partition, None)
        if self._classic:
            consumer.unassign()
        else:
            consumer.incremental_unassign(gone)
        self._say_assignment()
        log.info(event, partitions=[str(partition) for partition in partitions])

    def _say_assignment(self) -> None:
        self.partitions = frozenset(lane.partition for lane in self._gathering.lanes.values())
        starting = sorted(str(lane.partition) for lane in self._gathering.lanes.values() if not lane.started)
        self._health.set_ready(
            "assignment", ok=not starting, reason=f"starting {', '.join(starting)}" if starting else ""
        )

    def _drain(self, consumer: Consumer) -> None:
        """Stop fetching, let what was handed over be applied, tell Kafka, leave the group (contract §5, `run`)."""
        reach("drain")
        self._handoff.wait_until_idle(self._settings.drain_timeout_s / 2)
        for reply in self._handoff.replies():
            if isinstance(reply, Committed):
                self._to_commit.update(reply.positions)
        self._commit(consumer, wait=True)

    @staticmethod
    def _pause(consumer: Consumer, lanes: Iterable[Lane]) -> None:
        consumer.pause([TopicPartition(*lane.partition) for lane in lanes])

    @staticmethod
    def _resume(consumer: Consumer, lanes: Iterable[Lane]) -> None:
        if partitions := [TopicPartition(*lane.partition) for lane in lanes]:
            consumer.resume(partitions)
