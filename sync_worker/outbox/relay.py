"""The relay: publishes the outbox, each row once, in order per key (design §5).

Whoever holds the lease leads; Kafka's fencing, not the lease, keeps two leaders apart. Nothing is published that is not in
a window written to the database before, and a window is never left before Kafka has committed all of it.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

import structlog

from sync_worker.broker import Broker
from sync_worker.database.sessions import translated
from sync_worker.errors import RetryableError
from sync_worker.failpoints import reach
from sync_worker.outbox.cursor import read_cursor, resume
from sync_worker.outbox.encoding import ChangeEncoder
from sync_worker.outbox.publisher import Publisher
from sync_worker.outbox.term import Term
from sync_worker.outbox.windows import Window, Windows
from sync_worker.service.health import Health
from sync_worker.service.metrics import Metrics
from sync_worker.settings import Settings

LOOP = "relay"
LEASE_S = 5.0
RENEW_S = 1.5
# How often to look for rows that another worker wrote; our own wake the relay.
BUSY_POLL_S = 0.01
IDLE_POLL_S = 0.05
STANDBY_POLL_S = 1.0
RETRY_S = 0.5
CLEAN_EVERY_S = 0.5

log = structlog.get_logger(__name__)


class Relay:
    """The loop. `run` returns after `stop` is set and what is committed by then was published, or `drain_timeout_s` is over."""

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
        logger: Any = None,
    ) -> None:
        self._settings = settings
        self._broker = broker
        self._make_encoder = encoder
        self._holder = holder
        self._health = health
        self._metrics = metrics
        self._stop = stop
        self._logger = logger
        self._wake = threading.Event()
        self._too_large: set[int] = set()
        self._renewed_at = 0.0
        self._cleaned_at = 0.0

    def wake(self) -> None:
        """Rows were committed by this worker."""
        self._wake.set()

    def run(self) -> None:
        windows: Windows | None = None
        while not self._stop.is_set():
            self._health.beat(LOOP)
            try:
                with translated():
                    windows = windows or Windows(self._settings.database_url.get_secret_value())
                    if not windows.hold_lease(self._holder, LEASE_S):
                        self._stop.wait(STANDBY_POLL_S)
                        continue
                    self._renewed_at = time.monotonic()
                    self._lead(windows)
            except RetryableError as error:
                log.warning("relay_interrupted", reason=str(error))
                if windows is not None:
                    windows.close()
                    windows = None
                self._stop.wait(RETRY_S)
        if windows is not None:
            windows.close()

    def _lead(self, windows: Windows) -> None:
        """Take over from whoever led before, and publish until the lease is lost or the worker stops."""
        publisher = Publisher(
            self._settings.kafka_client_config(),
            self._settings.consumer_group,
            self._settings.kafka_bootstrap_servers,
            logger=self._logger,
        )
        publisher.fence()
        reach("relay_fenced")
        cursor = read_cursor(
            self._broker,
            self._settings.kafka_client_config(),
            self._settings.cursor_topic,
            self._settings.consumer_group,
        )
        system_identifier = windows.system_identifier()
        last = windows.last()
        at = resume(last, cursor, system_identifier)
        term = Term(
            self._settings,
            self._broker.max_message_bytes(self._settings.dead_letters_topic),
            windows,
            publisher,
            self._make_encoder(),
            self._metrics,
            self._too_large,
        )
        log.info("relay_leads", window=at.next_number - 1, resumed=at.window is not None)
        self._metrics.relay_leader.set(1)
        try:
            if at.window is not None:
                term.publish(at.window, at.after_id)
            elif last is not None:
                windows.mark_published(last)  # complete in Kafka, but its relay died before it could say so here
            number, from_ = at.next_number, at.next_from
            active_at = time.monotonic()
            while self._keep_lease(windows):
                self._health.beat(LOOP)
                self._wake.clear()
                if windows.due(from_):
                    reach("relay_due")
                    window = windows.open_next(number, from_, system_identifier)
                    reach("relay_window_opened")
                    term.publish(window, 0)
                    number, from_ = window.number + 1, window.to
                    active_at = time.monotonic()
                    self._clean(windows, window)
                    if self._stop.is_set():
                        break  # what others commit meanwhile is for the next leader
                    continue
                if self._stop.is_set():
                    break  # everything that was committed is published
                self._clean(windows, Window(number, from_, "", system_identifier, published=True))
                idle = time.monotonic() - active_at > 1.0
                self._wake.wait(IDLE_POLL_S if idle else BUSY_POLL_S)
        finally:
            self._metrics.relay_leader.set(0)
        windows.release_lease(self._holder)
        log.info("relay_stepped_down", window=number - 1)

    def _keep_lease(self, windows: Windows) -> bool:
        if time.monotonic() - self._renewed_at < RENEW_S:
            return True
        if not windows.hold_lease(self._holder, LEASE_S):
            return False
        self._renewed_at = time.monotonic()
        return True

    def _clean(self, windows: Windows, window: Window) -> None:
        if time.monotonic() - self._cleaned_at < CLEAN_EVERY_S:
            return
        windows.clean(window)
        self._cleaned_at = time.monotonic()
