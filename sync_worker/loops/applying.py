"""The applying thread: takes what intake hands over, commits it, and answers where the partitions stand.

It owns one database session. After any fault it reads the positions again and goes on from there, which alone makes a
retry right: a commit whose answer was lost has moved them, one that failed has not (design §4).
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import structlog
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_exponential_jitter
from tenacity.stop import stop_when_event_set

from sync_worker.database import arrays
from sync_worker.database.sessions import ConnectionLost, Contention, Session, apply_session, translated
from sync_worker.enrollment.apply import SQL
from sync_worker.enrollment.breaker import NEVER, Breaker, Limits
from sync_worker.errors import RetryableError
from sync_worker.events import Event, Partition, Record, Rejection
from sync_worker.intake import positions
from sync_worker.intake.handoff import Batch, Committed, Establish, Established, Handoff, Rewound
from sync_worker.intake.positions import PositionsMoved
from sync_worker.kafka.broker import Broker, TopicMissing
from sync_worker.loops import checkpoint
from sync_worker.service.health import Health
from sync_worker.service.metrics import Metrics, Retry, Stage, Step
from sync_worker.service.tracing import Tracing

LOOP = "apply"
RETRY_INITIAL_S = 0.05
RETRY_MAX_S = 5.0
# At a low rate a batch is a record: only a summary of them is worth a line.
SUMMARY_EVERY_S = 10.0

log = structlog.get_logger(__name__)
_T = TypeVar("_T")


class Applying:
    """The loop. `run` returns when the hand-off is closed and empty, or, in an outage, when `abandon` is set."""

    def __init__(
        self,
        database_url: str,
        broker: Broker,
        group: str,
        handoff: Handoff,
        health: Health,
        metrics: Metrics,
        abandon: threading.Event,
        on_committed: Callable[[], None],
        topic_of: Mapping[str, str],
        limits: Limits = NEVER,
        tracing: Tracing | None = None,
    ) -> None:
        """limits: of the removal breaker. tracing: None where nothing is traced."""
        self._url = database_url
        self._broker = broker
        self._group = group
        self._handoff = handoff
        self._health = health
        self._metrics = metrics
        self._abandon = abandon
        self._on_committed = on_committed
        self._breaker = Breaker(limits)
        self._tracing = tracing
        self._session: Session | None = None
        self._topic_of = topic_of
        self._summary, self._summarized_at = checkpoint.Outcome(), 0.0

    def run(self) -> None:
        try:
            while not self._handoff.finished and not self._abandon.is_set():
                self._health.beat(LOOP)
                work = self._handoff.take(0.5)
                if isinstance(work, Establish):
                    established = self._persist(lambda asked=work: self._establish(asked))  # type: ignore[misc]  # bound at once
                    self._handoff.reply(established)
                elif isinstance(work, Batch):
                    self._traced(work)
        except RetryableError as error:
            if not self._abandon.is_set():
                raise
            # Nothing is lost: its positions did not move, and whoever reads them next applies it.
            log.warning("batch_abandoned", reason=str(error))
        finally:
            self._handoff.abandon()
            if self._session is not None:
                self._session.close()

    def _establish(self, asked: Establish) -> Established:
        try:
            with translated():
                found = positions.establish(self._open(), self._broker, self._group, asked.partitions)
        except TopicMissing as error:
            # We were assigned its partitions a moment ago. The watch stops the worker if it stays away.
            raise RetryableError(str(error)) from error
        return Established(found, asked.generation)

    def _traced(self, batch: Batch) -> None:
        if self._tracing is None:
            self._apply(batch)
            return
        with self._tracing.applying(batch.records):
            self._apply(batch)

    def _apply(self, batch: Batch) -> None:
        outcome = checkpoint.Outcome()
        started = time.perf_counter()
        rewound: set[Partition] = set()
        trusted = True

        def attempt() -> None:
            nonlocal trusted
            session = self._open()
            if trusted:
                # Until a fault the batch knows where its partitions stand; afterwards only the database does.
                trusted = False
                checkpoint.commit(session, batch.records, batch.before, outcome, self._between, self._breaker)
                return
            now = self._positions(session, batch)
            rewound.update(partition for partition, before in batch.before.items() if now.get(partition, -1) < before)
            left = [record for record in _above(batch.records, now) if record.partition not in rewound]
            checkpoint.commit(session, left, now, outcome, self._between, self._breaker)

        while True:
            try:
                self._persist(attempt)
            except PositionsMoved as moved:
                log.warning("batch_fenced", reason=str(moved))
                continue
            break
        if rewound:
            self._handoff.reply(Rewound(tuple(rewound)))
        reached = {partition: offset for partition, offset in batch.after.items() if partition not in rewound}
        self._handoff.reply(Committed(reached))
        self._count(outcome, time.perf_counter() - started)
        self._observe_age(batch.records)
        if outcome.changes or outcome.rejected:
            self._on_committed()

    def _observe_age(self, records: Sequence[Record]) -> None:
        """Of the first event alone: it waited the longest in this worker, and one look costs nothing per event."""
        for record in records:
            if isinstance(record.content, Event):
                self._metrics.observe_age(Stage.APPLIED, record.content.occurred_at)
                return

    def _between(self) -> None:
        """A batch may be many transactions: each is progress, and a place to stop when the drain limit is over."""
        self._health.beat(LOOP)
        if self._abandon.is_set():
            raise RetryableError("the worker stops")

    def _positions(self, session: Session, batch: Batch) -> dict[Partition, int]:
        with translated():
            return positions.read(session, batch.before)

    # sessions and outages

    def _open(self) -> Session:
        if self._session is None or self._session.closed:
            self._session = apply_session(self._url, "apply")
            arrays.register(self._session)
        return self._session

    def _persist(self, attempt: Callable[[], _T]) -> _T:
        """Try until it works: an outage is waited for, and said; only stopping the worker ends it."""
        retrying = Retrying(
            retry=retry_if_exception_type(RetryableError),
            wait=wait_exponential_jitter(initial=RETRY_INITIAL_S, max=RETRY_MAX_S),
            stop=stop_when_event_set(self._abandon),
            sleep=self._sleep,
            before_sleep=self._say,
            reraise=True,
        )
        result = retrying(attempt)
        self._health.set_ready("database", ok=True)
        return result

    def _sleep(self, seconds: float) -> None:
        # Waiting on purpose is progress: the loop is alive, and says why it waits.
        self._health.beat(LOOP)
        self._abandon.wait(seconds)

    def _say(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, Contention):
            self._metrics.retries.labels(Retry.CONTENTION).inc()
            log.warning("lock_wait", attempt=state.attempt_number, reason=str(error), **self._blocker())
            return
        database = isinstance(error, ConnectionLost)
        self._metrics.retries.labels(Retry.DATABASE if database else Retry.BROKER).inc()
        if database:
            if self._session is not None:
                self._session.close()
            if self._health.set_ready("database", ok=False, reason=str(error)):
                log.error("database_away", reason=str(error))
        log.warning("waiting", attempt=state.attempt_number, reason=str(error))

    def _blocker(self) -> dict[str, object]:
        """Who may be in the way: the oldest transaction that touches our rows."""
        try:
            with translated():
                row = self._open().execute(SQL["blockers"]).fetchone()
        except RetryableError as error:
            return {"blocker": f"unknown: {error}"}
        if row is None:
            return {}
        pid, user, application, state, seconds = row
        return {
            "blocker_pid": pid,
            "blocker_user": user,
            "blocker_application": application,
            "blocker_state": state,
            "blocker_seconds": None if seconds is None else round(seconds, 1),
        }

    def _count(self, outcome: checkpoint.Outcome, seconds: float) -> None:
        if not outcome.transactions:
            return
        self._metrics.batch_records.observe(outcome.records)
        self._metrics.step_seconds.labels(Step.APPLY).observe(seconds)
        for (kind, result), number in outcome.results.items():
            self._metrics.records.labels(self._topic_of.get(kind, kind), result).inc(number)
        examples: dict[tuple[Partition, str], list[tuple[Record, Rejection]]] = {}
        for record, rejection in outcome.rejected:
            self._metrics.dead_letters.labels(rejection.reason).inc()
            self._metrics.records.labels(record.partition.topic, "dead_letter").inc()
            examples.setdefault((record.partition, str(rejection.reason)), []).append((record, rejection))
        for (partition, reason), rejected in examples.items():
            record, rejection = rejected[0]
            log.warning(
                "records_rejected",
                partition=str(partition),
                reason=reason,
                records=len(rejected),
                first_offset=record.next_offset - 1,
                detail=rejection.detail,
            )
        log.debug("batch_applied", records=outcome.records, changes=outcome.changes, seconds=round(seconds, 4))
        self._summary.records += outcome.records
        self._summary.changes += outcome.changes
        self._summary.transactions += outcome.transactions
        now = time.monotonic()
        if now - self._summarized_at >= SUMMARY_EVERY_S:
            log.info(
                "batches_applied",
                transactions=self._summary.transactions,
                records=self._summary.records,
                changes=self._summary.changes,
            )
            self._summary, self._summarized_at = checkpoint.Outcome(), now


def _above(records: Sequence[Record], positions_now: Mapping[Partition, int]) -> list[Record]:
    """The records that the positions have not passed yet."""
    return [
        record for record in records if record.next_offset > positions_now.get(record.partition, record.next_offset)
    ]
