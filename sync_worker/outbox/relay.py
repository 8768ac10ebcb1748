"""The relay: publishes the outbox, each row once, in order per key (design §5).

Whoever holds the lease leads; Kafka's fencing, not the lease, keeps two leaders apart. Nothing is published that is not in
a window written to the database before, and a window is never left before Kafka has committed all of it.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

import structlog

from sync_worker.database.sessions import ConnectionLost, Contention, translated
from sync_worker.errors import RetryableError
from sync_worker.failpoints import reach
from sync_worker.kafka.broker import Broker
from sync_worker.outbox.cursor import read_cursor, resume
from sync_worker.outbox.encoding import ChangeEncoder
from sync_worker.outbox.lease import Lease
from sync_worker.outbox.publisher import Publisher
from sync_worker.outbox.term import Term
from sync_worker.outbox.windows import CLEAN_STEP_ROWS, Window, Windows
from sync_worker.service.health import Health
from sync_worker.service.metrics import Metrics, Retry
from sync_worker.service.recurring import Recurring
from sync_worker.settings import Settings

LOOP = "relay"
# How often to look for rows that another worker wrote; our own wake the relay.
BUSY_POLL_S = 0.01
IDLE_POLL_S = 0.05
IDLE_AFTER_S = 1.0
STANDBY_POLL_S = 1.0
RETRY_S = 0.5
CLEAN_EVERY_S = 0.5

log = structlog.get_logger(__name__)


class _LeaseLost(RetryableError):
    """Another worker leads: what is left of the window is its to publish."""


class Relay:
    """The loop. `run` returns after `stop` is set and what this worker committed before is published."""

    def __init__(
        self,
        settings: Settings,
        broker: Broker,
        encoder: Callable[[], ChangeEncoder],
        holder: str,
        health: Health,
        metrics: Metrics,
        stop: threading.Event,
        *,
        logger: Any = None,  # librdkafka's
    ) -> None:
        self._settings = settings
        self._url = settings.database_url.get_secret_value()
        self._broker = broker
        self._make_encoder = encoder
        self._holder = holder
        self._health = health
        self._metrics = metrics
        self._stop = stop
        self._logger = logger
        self._interruptions = Recurring()
        self._wake = threading.Event()
        self._too_large: set[int] = set()
        self._cleaned_at = 0.0

    def wake(self) -> None:
        """Rows were committed by this worker."""
        self._wake.set()

    def run(self) -> None:
        lease: Lease | None = None
        try:
            while not self._stop.is_set():
                self._health.beat(LOOP)
                try:
                    with translated():
                        lease = lease or Lease(self._url, self._holder)
                        if lease.hold():
                            self._lead(lease)
                        else:
                            self._health.set_ready("relay", ok=True)  # another worker publishes
                            self._stop.wait(STANDBY_POLL_S)
                except RetryableError as error:
                    database = isinstance(error, ConnectionLost | Contention)
                    self._metrics.retries.labels(Retry.DATABASE if database else Retry.BROKER).inc()
                    self._health.set_ready("relay", ok=False, reason=str(error))
                    if times := self._interruptions.count(error):
                        log.warning("relay_interrupted", reason=str(error), times=times)
                    if lease is not None:
                        lease.close()
                        lease = None
                    self._stop.wait(RETRY_S)
        finally:
            if lease is not None:
                lease.close()

    def _lead(self, lease: Lease) -> None:
        """Take over from whoever led before, and publish until the lease is lost or the worker stops."""
        windows = Windows(self._url)
        try:
            self._metrics.relay_leader.set(1)
            self._publish_until_stopped(lease, windows)
        finally:
            self._metrics.relay_leader.set(0)
            windows.close()
        lease.release()

    def _publish_until_stopped(self, lease: Lease, windows: Windows) -> None:
        config, group = self._settings.kafka_client_config(), self._settings.consumer_group
        # A batch of many records may not be larger than the topic's limit either.
        topics = (self._settings.changes_topic, self._settings.dead_letters_topic)
        batch_bytes = min(self._broker.max_message_bytes(topic) for topic in topics)
        publisher = Publisher(config, group, self._settings.kafka_bootstrap_servers, batch_bytes, logger=self._logger)
        publisher.fence()
        reach("relay_fenced")
        # Only now is the cursor's end final: nobody else can publish under this transactional id.
        cursor = read_cursor(self._broker, config, self._settings.cursor_topic, group, logger=self._logger)
        system_identifier = windows.system_identifier()
        last = windows.last()
        at = resume(last, cursor, system_identifier)
        log.info("relay_leads", next_window=at.next_number, resumed=at.window is not None)
        term = Term(
            self._settings,
            lambda: self._broker.max_message_bytes(self._settings.dead_letters_topic),
            windows,
            publisher,
            self._make_encoder(),
            self._metrics,
            self._too_large,
            lambda: self._hold(lease),
        )
        self._health.set_ready("relay", ok=True)
        if at.window is not None:
            term.publish(at.window, at.after_id)
        # Complete in Kafka by now, which its relay may not have lived to say here.
        unmarked = last
        number, from_ = at.next_number, at.next_from
        active_at = time.monotonic()
        while True:
            self._hold(lease)
            self._wake.clear()
            stopping = self._stop.is_set()
            if windows.due(from_):
                reach("relay_due")
                window = windows.open_next(number, from_, system_identifier)
                reach("relay_window_opened")
                term.publish(window, 0)
                # Nothing more to write: the next window's row says that this one was published, or the mark does, once there is time.
                number, from_, unmarked = window.number + 1, window.to, window
                active_at = time.monotonic()
                self._clean(windows, window)
            else:
                if unmarked is not None:
                    windows.mark_published(unmarked)
                    reach("relay_marked")
                    unmarked = None
                # The last window is published: what its successor would start from is not needed any more.
                self._clean(windows, Window(number, from_, from_, system_identifier, published=True))
                if not stopping:
                    idle = time.monotonic() - active_at > IDLE_AFTER_S
                    self._wake.wait(IDLE_POLL_S if idle else BUSY_POLL_S)
            if stopping:
                break  # what others commit meanwhile is for the next leader
        log.info("relay_stepped_down", next_window=number)

    def _hold(self, lease: Lease) -> None:
        self._health.beat(LOOP)
        if not lease.hold():
            raise _LeaseLost("another worker took the relay's lease")

    def _clean(self, windows: Windows, window: Window) -> None:
        if time.monotonic() - self._cleaned_at < CLEAN_EVERY_S:
            return
        # After a full step there is more: the outbox must not grow while events come faster than steps.
        if windows.clean(window) < CLEAN_STEP_ROWS:
            self._cleaned_at = time.monotonic()
