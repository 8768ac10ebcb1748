"""Composes the loops of one worker process and hands things between the rooms: intake → enrollment → outbox (design §1, §7).

Each loop runs in a thread of its own with its own connection; all stop when one fails. Nothing has to be repaired after a
worker that died at any point: positions, windows and cursor are transactional.
"""

import gc
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import uuid4

import structlog
from prometheus_client import CollectorRegistry

from sync_worker import __version__
from sync_worker.database.revision import expect_revision
from sync_worker.database.sessions import ConnectionLost
from sync_worker.enrollment.breaker import Limits
from sync_worker.errors import RetryableError
from sync_worker.events import RecordName
from sync_worker.intake import consumer
from sync_worker.intake.consumer import Intake
from sync_worker.intake.decoding import Decoder, records_by_topic
from sync_worker.intake.handoff import Handoff
from sync_worker.kafka.broker import Broker
from sync_worker.loops import applying, backfilling, watching
from sync_worker.loops.applying import Applying
from sync_worker.loops.backfilling import Backfilling
from sync_worker.loops.watching import Watching
from sync_worker.operations.changes import ChangeDecoder
from sync_worker.operations.recent import RecentChanges
from sync_worker.operations.status import read_status
from sync_worker.outbox import relay
from sync_worker.outbox.encoding import ChangeEncoder, source_of
from sync_worker.outbox.relay import Relay
from sync_worker.schema.registry import Registry, registry_of
from sync_worker.schema.store import SchemaStore, load_schemas
from sync_worker.schema.wire import confluent_prefix
from sync_worker.service.document import StatusDocument
from sync_worker.service.health import Health
from sync_worker.service.http import HttpServer, routes
from sync_worker.service.logging import kafka_logger
from sync_worker.service.metrics import Metrics
from sync_worker.service.page.observing import Observer
from sync_worker.service.page.rendering import Page
from sync_worker.service.redaction import Redactor
from sync_worker.service.tracing import tracing_from
from sync_worker.settings import Settings

# How long a loop may be silent: longer than each of its waits is bounded to (statement_timeout, Kafka's request timeouts).
_MAX_SILENCE_S = {
    consumer.LOOP: 90.0,
    applying.LOOP: 120.0,
    backfilling.LOOP: 120.0,
    relay.LOOP: 120.0,
    watching.LOOP: 90.0,
}
_START_RETRY_S = 1.0
# What closing connections may take after the drain limit, and a start that is told to stop, until the process ends without.
EXIT_S = 5.0
_SIGNALS = {signal.SIGTERM, signal.SIGINT}
# How many more containers there must be than after the last collection before the next. A batch is several thousand that stay for as
# long as it does: by the default of 700 they are looked through again and again, for a fifth of the CPU of a worker that replays.
_GARBAGE_AFTER = 5_000

log = structlog.get_logger(__name__)


class Worker:
    """One worker process. `run` blocks until SIGTERM or SIGINT, or `stop`, and raises what made a loop fail."""

    def __init__(self, settings: Settings, *, publishes: bool = True) -> None:
        """publishes False: what is applied waits in the outbox, for a database that must catch up before `relay adopt`."""
        self._settings = settings
        self._publishes = publishes
        self._holder = f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"
        self._metrics = Metrics(CollectorRegistry())
        self._health = Health(("database", "broker", "assignment"))
        self._stop = threading.Event()
        self._has_started = threading.Event()
        self._relay_stop = threading.Event()
        self._abandon = threading.Event()
        self._failures: list[BaseException] = []
        self._threads: dict[str, threading.Thread] = {}
        self.http: HttpServer | None = None

    def stop(self) -> None:
        """Finish the batch, commit, leave the group; `run` returns within the drain limit."""
        self._stop.set()

    def run(self) -> None:
        # Before anything starts a thread, which inherits what is blocked.
        self._take_signals()
        settings = self._settings
        logger = kafka_logger()
        # What is wrong with settings or schemas is said before anything connects.
        schemas = load_schemas(settings.schema_dir)
        registry = registry_of(settings)
        decoder = Decoder(schemas, registry, records_by_topic(settings))
        # A loop that wakes up for one event must not wait 5 ms for another one's turn to end.
        sys.setswitchinterval(0.0005)
        _settle_garbage()
        self._metrics.expect_topics(*settings.input_topics)
        broker = Broker(settings, logger=logger)
        redactor = Redactor(settings.secrets())
        document = StatusDocument(lambda: read_status(settings, broker), redactor)
        observer = Observer(document, RecentChanges(settings, ChangeDecoder(schemas, registry)).read, redactor)
        page = Page(observer, self._health, holder=self._holder, group=settings.consumer_group)
        self.http = HttpServer(
            settings.http_host,
            settings.http_port,
            routes(self._health, self._metrics.registry, document, page),
        )
        if self.http.port is not None:
            observer.start()
        tracing = tracing_from()
        log.info(
            "worker_starts",
            version=__version__,
            holder=self._holder,
            http_port=self.http.port,
            topics=settings.input_topics,
        )
        try:
            if not self._wait_for_services(broker):
                return
            self._has_started.set()
            handoff = Handoff()
            relay_loop = Relay(
                settings,
                broker,
                lambda: self._encoder(schemas, registry),
                self._holder,
                self._health,
                self._metrics,
                self._relay_stop,
                logger=logger,
            )
            url = settings.database_url.get_secret_value()
            intake = Intake(settings, decoder, handoff, self._health, self._metrics, self._stop, logger=logger)
            loops: dict[str, Callable[[], None]] = {
                consumer.LOOP: intake.run,
                applying.LOOP: Applying(
                    url,
                    broker,
                    settings.consumer_group,
                    handoff,
                    self._health,
                    self._metrics,
                    self._abandon,
                    relay_loop.wake,
                    self._topics_by_kind(),
                    Limits(settings.removal_hold_min, settings.removal_hold_percent),
                    tracing,
                ).run,
                backfilling.LOOP: Backfilling(
                    url, self._health, self._metrics, self._stop, relay_loop.wake, yields=self._publishes
                ).run,
                relay.LOOP: relay_loop.run,
                watching.LOOP: Watching(
                    settings,
                    broker,
                    lambda: intake.partitions,
                    intake.stands_still,
                    self._health,
                    self._metrics,
                    self._stop,
                    self._holder,
                ).run,
            }
            if not self._publishes:
                del loops[relay.LOOP]
                log.warning("nothing_is_published", reason="the worker was started --without-relay")
            for name, loop in loops.items():
                self._start(name, loop)
            self._stop.wait()
            self._shut_down(handoff)
        finally:
            self._has_started.set()  # or never will
            with self._bounded(failed=bool(self._failures) or sys.exc_info()[0] is not None):
                self.http.close()
                observer.close()
                if tracing is not None:
                    tracing.close()
                if registry is not None:
                    registry.close()
        if self._failures:
            raise self._failures[0]
        log.info("worker_stopped")

    def _start(self, name: str, loop: Callable[[], None]) -> None:
        def body() -> None:
            try:
                loop()
            except BaseException as error:  # noqa: BLE001 - kept and raised again by run(), in the main thread
                self._failures.append(error)
                self._stop.set()
            finally:
                self._health.finish(name)

        self._health.register(name, _MAX_SILENCE_S[name])
        self._threads[name] = threading.Thread(target=body, name=name, daemon=True)
        self._threads[name].start()

    def _shut_down(self, handoff: Handoff) -> None:
        """In the order of the data: what was read is applied, what was applied is published, as far as the drain limit allows."""
        limit_s = self._settings.drain_timeout_s
        deadline = time.monotonic() + limit_s
        log.info("worker_stopping", drain_timeout_s=limit_s, failed=bool(self._failures))
        if self._failures:
            self._abandon.set()
        self._threads[consumer.LOOP].join(max(0.0, deadline - limit_s / 3 - time.monotonic()))
        handoff.close()
        self._threads[applying.LOOP].join(max(0.0, deadline - limit_s / 3 - time.monotonic()))
        self._abandon.set()
        self._relay_stop.set()
        for thread in self._threads.values():
            thread.join(max(0.1, deadline - time.monotonic()))
        if left := [name for name, thread in self._threads.items() if thread.is_alive()]:
            # Nothing is lost by it: what they were doing is committed or it isn't.
            log.warning("drain_timeout", still_running=left)

    @contextmanager
    def _bounded(self, *, failed: bool) -> Iterator[None]:
        """Only connections are closed in here, which may take for ever where a service hangs, or where the clock jumped.

        failed: what the process says of itself by its exit code where it has to end in the middle of it.
        """
        timer = threading.Timer(EXIT_S, _end, [int(failed)])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _wait_for_services(self, broker: Broker) -> bool:
        """See that the database is migrated and the topics are there; an outage is waited for. False when stopped meanwhile."""
        while not self._stop.is_set():
            try:
                expect_revision(self._settings.database_url.get_secret_value(), "start")
                self._health.set_ready("database", ok=True)
                broker.topics(
                    [
                        *self._settings.input_topics,
                        self._settings.changes_topic,
                        self._settings.dead_letters_topic,
                        self._settings.cursor_topic,
                    ]
                )
                self._health.set_ready("broker", ok=True)
            except RetryableError as error:
                self._health.set_ready(
                    "database" if isinstance(error, ConnectionLost) else "broker", ok=False, reason=str(error)
                )
                log.warning("waiting_to_start", reason=str(error))
                self._stop.wait(_START_RETRY_S)
            else:
                return True
        return False

    def _encoder(self, schemas: SchemaStore, registry: Registry | None) -> ChangeEncoder:
        schema = schemas.current[RecordName.ENROLLMENT_CHANGED]
        prefix = (
            schema.single_object_prefix
            if registry is None
            else confluent_prefix(registry.register(self._settings.changes_topic, schema))
        )
        return ChangeEncoder(schema.parsed, prefix=prefix, source=source_of(self._settings.consumer_group))

    def _topics_by_kind(self) -> dict[str, str]:
        return {
            "membership": self._settings.membership_topic,
            "method": self._settings.methods_topic,
            "source": self._settings.sources_topic,
            "suspension": self._settings.sources_topic,
        }

    def _take_signals(self) -> None:
        """Have SIGTERM and SIGINT waited for by a thread of their own.

        A handler runs in the main thread alone, and not before that one wakes up. But any thread may take a signal before the thread
        that the kernel woke for it: all start at once when a frozen process goes on, and whoever changes its mask looks, as the Kafka
        client does for each that is made. The main thread then slept on. Nor does it wake up inside a client's call.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        threading.Thread(target=self._wait_for_signal, name="signals", daemon=True).start()

    def _wait_for_signal(self) -> None:
        signal.sigwait(_SIGNALS)
        self._stop.set()
        # librdkafka waits by the wall clock: for hours, where that was set back. Nothing has been begun by then.
        if not self._has_started.wait(EXIT_S):
            _end(0)


def _end(code: int) -> None:
    """End the process in the middle of whatever it waits for."""
    log.warning("exit_forced", seconds=EXIT_S, threads=[thread.name for thread in threading.enumerate()])
    os._exit(code)


def _settle_garbage() -> None:
    """Leave what is loaded out of the collections to come, and have fewer of them: nearly everything here ends by its count."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GARBAGE_AFTER)
