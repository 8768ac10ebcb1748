"""The backfill thread: steps of backfills and of released holds, beside live events, never more than one at a time.

What a live event changes is published behind what the steps before it changed, so a step waits until the relay has little left to do: a
backfill is as fast as the relay then, and live changes don't wait for the whole of it. Now and then the loop forgets what the removal
breaker need not remember. It must never hold up a batch for longer than a step.
"""

import threading
import time
from collections.abc import Callable

import structlog

from sync_worker.database import arrays
from sync_worker.database.sessions import ConnectionLost, Contention, Session, apply_session, translated
from sync_worker.enrollment import backfill, breaker, release
from sync_worker.errors import RetryableError
from sync_worker.events import text_of
from sync_worker.outbox.windows import waits_more_than
from sync_worker.service.health import Health
from sync_worker.service.metrics import Metrics, Retry, Step
from sync_worker.service.recurring import Recurring

LOOP = "backfill"
# A method event of another worker is noticed within this time.
IDLE_S = 0.25
RETRY_S = 1.0
FORGET_EVERY_S = 60.0
# Two steps' worth: the relay is never out of work for it.
MOST_UNPUBLISHED = 2000
YIELD_S = 0.01
# In rows people have what they are to have, whether or not Kafka is there to be told.
YIELD_AT_MOST_S = 1.0

log = structlog.get_logger(__name__)


class Backfilling:
    """The loop. `run` returns soon after `stop` is set; a step that was not committed is taken again by whoever comes next."""

    def __init__(
        self,
        database_url: str,
        health: Health,
        metrics: Metrics,
        stop: threading.Event,
        on_committed: Callable[[], None],
        *,
        yields: bool = True,
    ) -> None:
        """yields False: nothing is published meanwhile, so there is nothing to wait for."""
        self._url = database_url
        self._health = health
        self._metrics = metrics
        self._stop = stop
        self._on_committed = on_committed
        self._yields = yields
        self._waits = Recurring()
        self._session: Session | None = None
        self._forgot_at = time.monotonic()
        self._yields_until = 0.0

    def run(self) -> None:
        try:
            while not self._stop.is_set():
                self._health.beat(LOOP)
                self._stop.wait(self._turn())
        finally:
            if self._session is not None:
                self._session.close()

    def _turn(self) -> float:
        """Take a step; how long to wait before the next one, seconds."""
        try:
            if self._relay_is_behind():
                return YIELD_S
            started = time.perf_counter()
            done = backfill.step(self._open()) or release.step(self._open())
            if done is None:
                self._forget()
        except RetryableError as error:
            self._metrics.retries.labels(Retry.CONTENTION if isinstance(error, Contention) else Retry.DATABASE).inc()
            if times := self._waits.count(error):
                log.warning("backfill_waits", reason=str(error), times=times)
            if isinstance(error, ConnectionLost) and self._session is not None:
                self._session.close()
            return RETRY_S
        if done is None:
            return IDLE_S
        if not done.people and not done.finished:
            return 0.01  # another worker has it
        self._metrics.step_seconds.labels(Step.BACKFILL).observe(time.perf_counter() - started)
        self._metrics.backfill_steps.inc()
        self._metrics.backfill_people.inc(done.people)
        if done.changes:
            self._on_committed()
            self._yields_until = time.monotonic() + YIELD_AT_MOST_S
        if done.finished:
            if isinstance(done, release.Step):
                log.info("hold_released", hold=done.number)
            else:
                log.info("backfill_finished", method_id=text_of(done.method_id))
        return 0.0

    def _relay_is_behind(self) -> bool:
        """Is it to catch up first? Not for longer than YIELD_AT_MOST_S after a step."""
        if not self._yields or time.monotonic() >= self._yields_until:
            return False
        with translated():
            return waits_more_than(self._open(), MOST_UNPUBLISHED)

    def _forget(self) -> None:
        if time.monotonic() - self._forgot_at > FORGET_EVERY_S:
            breaker.forget(self._open())
            self._forgot_at = time.monotonic()

    def _open(self) -> Session:
        if self._session is None or self._session.closed:
            self._session = apply_session(self._url, "backfill")
            arrays.register(self._session)
        return self._session
