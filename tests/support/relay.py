"""The worker's relay in a thread of the test's, on a site's database and topics: quicker than a worker for what is the relay's alone."""

from __future__ import annotations

import json
import threading
from types import TracebackType
from typing import Any, Self

from prometheus_client import CollectorRegistry

from sync_worker.errors import RetryableError
from sync_worker.events import RecordName
from sync_worker.kafka.broker import Broker
from sync_worker.operations.status import read_status
from sync_worker.outbox.encoding import ChangeEncoder, source_of
from sync_worker.outbox.relay import LOOP, Relay
from sync_worker.schema.store import load_schemas
from sync_worker.service.health import Health
from sync_worker.service.metrics import Metrics
from tests.support.site import Site, wait_for


class RunningRelay:
    """A relay that runs from `with` on. Leaving the block stops it; it raises what made the relay stop by itself."""

    def __init__(self, site: Site, holder: str = "a test") -> None:
        schema = load_schemas(site.settings.schema_dir).current[RecordName.ENROLLMENT_CHANGED]
        self._site = site
        self._broker = Broker(site.settings)
        self._stop = threading.Event()
        self._error: BaseException | None = None
        health = Health(())
        health.register(LOOP, 600)
        self._relay = Relay(
            site.settings,
            self._broker,
            lambda: ChangeEncoder(
                schema.parsed, prefix=schema.single_object_prefix, source=source_of(site.settings.consumer_group)
            ),
            holder,
            health,
            Metrics(CollectorRegistry()),
            self._stop,
        )
        self._thread = threading.Thread(target=self._run, name=holder, daemon=True)

    def _run(self) -> None:
        try:
            self._relay.run()
        except BaseException as error:  # noqa: BLE001 - raised again by whoever waits for it
            self._error = error

    def is_published(self) -> bool:
        if self._error is not None:
            raise self._error
        try:
            document = read_status(self._site.settings, self._broker)
        except RetryableError:  # no answer in time
            return False
        return document["outbox"]["unpublished"] == 0 and bool(document["relay"]["published"])

    def wait_until_published(self, timeout_s: float = 120) -> None:
        """Until everything that is committed now is published."""
        wait_for(self.is_published, timeout_s, "published")

    def ended(self) -> BaseException:
        """What made it stop by itself."""
        self._thread.join(120)
        assert self._error is not None, "it did not stop"
        # The frames of its traceback would keep the producer alive, and that complains when Kafka has gone.
        return self._error.with_traceback(None)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(120)
        assert not self._thread.is_alive(), "the relay did not stop"


def publish(site: Site) -> None:
    """Everything that is committed."""
    with RunningRelay(site) as relay:
        relay.wait_until_published()


def cursors(site: Site) -> list[dict[str, Any]]:
    """Every cursor record that is committed, in order."""
    return [json.loads(record.value or b"") for record in site.records("cursor")]
