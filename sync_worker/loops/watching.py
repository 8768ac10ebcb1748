"""The watch: now and then asks the broker whether the input topics are still those that positions were made for.

It feeds readiness, the lag metrics and this worker's own row in the table of workers. It must never change anything else,
and an outage that it meets is only said.
"""

import threading
import time
from collections.abc import Callable

import structlog

from sync_worker.database.sessions import ConnectionLost, Session, translated, watch_session
from sync_worker.enrollment.breaker import held
from sync_worker.errors import RetryableError
from sync_worker.events import Partition
from sync_worker.intake import positions
from sync_worker.kafka.broker import Broker, TopicMissing, partitions_of
from sync_worker.loops.presence import Presence
from sync_worker.loops.stillness import Stillness
from sync_worker.outbox.windows import waiting as outbox_waiting
from sync_worker.service.health import Health
from sync_worker.service.metrics import Metrics
from sync_worker.settings import Settings

LOOP = "watch"
EVERY_S = 5.0
MISSING_FOR_S = 15.0
AGAIN_AFTER_S = 0.5

log = structlog.get_logger(__name__)


class Watching:
    """The loop. Raises FatalError where a topic or the cluster was made anew (design §4)."""

    def __init__(
        self,
        settings: Settings,
        broker: Broker,
        assigned: Callable[[], frozenset[Partition]],
        on_still: Callable[[frozenset[Partition]], None],
        health: Health,
        metrics: Metrics,
        stop: threading.Event,
        holder: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """assigned: this worker's partitions. Each worker reports the lag of its own, so that a sum over workers is one.

        on_still: told of partitions that stand still although records wait in them.
        """
        self._settings = settings
        self._broker = broker
        self._health = health
        self._metrics = metrics
        self._stop = stop
        self._assigned = assigned
        self._on_still = on_still
        self._stillness = Stillness(clock)
        self._presence = Presence(holder, metrics, clock)
        self._reported: frozenset[Partition] = frozenset()
        self._session: Session | None = None
        self._clock = clock
        self._missing_since: float | None = None

    def run(self) -> None:
        try:
            while not self._stop.is_set():
                self._health.beat(LOOP)
                answered = self._look()
                if not answered:
                    self._stillness.forget()
                self._stop.wait(EVERY_S if answered else AGAIN_AFTER_S)
        finally:
            if self._session is not None:
                self._leave(self._session)
                self._session.close()

    def _look(self) -> bool:
        """False where something was away."""
        try:
            partitions = partitions_of(self._broker.topics(self._settings.input_topics))
            ends = self._broker.stable_end(partitions)
            if self._health.set_ready("broker", ok=True):
                log.info("broker_back")
            with translated():
                session = self._open()
                positions.check_topics(session, self._broker, self._settings.input_topics)
                standing = positions.read(session, partitions)
        except TopicMissing as error:
            # A broker that starts knows no topic for a moment.
            if self._missing_since is None:
                self._missing_since = self._clock()
            if self._clock() - self._missing_since > MISSING_FOR_S:
                raise
            log.warning("topic_missing", reason=str(error))
            return False
        except ConnectionLost as error:
            # While nothing is to be applied, nobody else would notice.
            if self._health.set_ready("database", ok=False, reason=str(error)):
                log.error("database_away", reason=str(error))
            return False
        except RetryableError as error:
            if self._health.set_ready("broker", ok=False, reason=str(error)):
                log.error("broker_away", reason=str(error))
            return False
        self._missing_since = None
        if self._health.set_ready("database", ok=True):
            log.info("database_back")
        self._tell(session)
        self._measure_outbox(session)
        self._measure_holds(session)
        assigned = self._assigned()
        if still := self._stillness.observe(assigned, standing, ends):
            self._on_still(still)
        for partition in self._reported - assigned:
            self._metrics.forget_partition(partition)
        self._reported = frozenset(partition for partition in assigned if partition in standing and partition in ends)
        for partition in self._reported:
            self._metrics.set_partition(partition, standing[partition], ends[partition])
        return True

    def _tell(self, session: Session) -> None:
        """That this worker is there, for people who ask."""
        try:
            with translated():
                self._presence.say(session, self._assigned())
        except RetryableError as error:
            log.warning("presence_not_told", reason=str(error))

    def _leave(self, session: Session) -> None:
        try:
            with translated():
                self._presence.leave(session)
        except RetryableError as error:
            log.info("left_without_a_word", reason=str(error))  # the row goes with time

    def _measure_outbox(self, session: Session) -> None:
        """How much is waiting to be published; every worker reports the same number."""
        try:
            with translated():
                unpublished, oldest_s = outbox_waiting(session)
        except RetryableError as error:
            log.warning("outbox_not_measured", reason=str(error))
            return
        self._metrics.outbox_unpublished.set(unpublished)
        self._metrics.outbox_oldest_seconds.set(oldest_s or 0.0)

    def _measure_holds(self, session: Session) -> None:
        """What the removal breaker holds back; every worker reports the same numbers."""
        try:
            with translated():
                segments, removals = held(session)
        except RetryableError as error:
            log.warning("holds_not_measured", reason=str(error))
            return
        self._metrics.segments_held.set(segments)
        self._metrics.removals_held.set(removals)

    def _open(self) -> Session:
        if self._session is None or self._session.closed:
            self._session = watch_session(self._settings.database_url.get_secret_value())
        return self._session
