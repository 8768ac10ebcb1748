"""Every metric of the worker, defined once with its meaning (contract §6: names `sync_worker_*`).

Labels take closed sets of values, or a partition: never an id, which would make a time series per person. The registry
is passed about, so that two workers in one process (tests) don't share counts.
"""

from enum import StrEnum
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics

from sync_worker import __version__
from sync_worker.errors import RejectionReason
from sync_worker.events import Partition


class Result(StrEnum):
    """What became of an input record."""

    APPLIED = "applied"
    STALE = "stale"
    REPEATED = "repeated"
    SUPERSEDED = "superseded"
    HELD = "held"
    NULL = "null"
    DEAD_LETTER = "dead_letter"


class Step(StrEnum):
    """A part of the work whose time is measured."""

    DECODE = "decode"
    APPLY = "apply"
    BACKFILL = "backfill"
    RELAY_PUBLISH = "relay_publish"


class Change(StrEnum):
    """The `change` of EnrollmentChanged (contract §2)."""

    ENROLLED = "ENROLLED"
    UNENROLLED = "UNENROLLED"
    SUSPENDED = "SUSPENDED"
    REACTIVATED = "REACTIVATED"
    UPDATED = "UPDATED"


class Output(StrEnum):
    """What the relay publishes."""

    CHANGE = "change"
    DEAD_LETTER = "dead_letter"
    TOMBSTONE = "tombstone"


class Rebalance(StrEnum):
    """What the consumer group did to this worker; lost = thrown out, without a word before."""

    ASSIGNED = "assigned"
    REVOKED = "revoked"
    LOST = "lost"


class Retry(StrEnum):
    """Why something was tried again; contention = a deadlock, lock timeout or serialization failure."""

    DATABASE = "database"
    BROKER = "broker"
    REGISTRY = "registry"
    CONTENTION = "contention"


_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_RECORDS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)


class Metrics:
    """The metrics, as attributes; each belongs to the registry given."""

    def __init__(self, registry: CollectorRegistry) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, with a name that says nothing
        self.registry = registry
        self.records = self._counter("records", "Input records by topic and what became of them.", "topic", "result")
        self.batch_records = self._histogram("batch_records", "Input records applied in one transaction.", _RECORDS)
        self.step_seconds = self._histogram("step_seconds", "Time of one step, seconds.", _SECONDS, "step")
        self.changes = self._counter(
            "changes", "EnrollmentChanged events published and committed, by change.", "change"
        )
        self.published = self._counter("published", "Records published and committed by the relay, by kind.", "kind")
        self.dead_letters = self._counter("dead_letters", "Input records rejected for good, by reason.", "reason")
        self.outbox_unpublished = self._gauge("outbox_unpublished", "Outbox rows that are not published yet.")
        self.outbox_oldest_seconds = self._gauge("outbox_oldest_seconds", "Age of the oldest unpublished outbox row.")
        self.relay_leader = self._gauge("relay_leader", "1 while this worker holds the relay's lease, else 0.")
        self.relay_window = self._gauge("relay_window", "Number of the last window that this worker published.")
        self.backfill_steps = self._counter("backfill_steps", "Backfill steps committed.")
        self.backfill_people = self._counter("backfill_people", "People looked at in backfill steps.")
        self.segments_held = self._gauge("segments_held", "Segments whose removals are held back by the breaker.")
        self.removals_held = self._gauge(
            "removals_held", "Removals that a hold keeps back, or whose release is under way."
        )
        self.rebalances = self._counter("rebalances", "What the consumer group did to this worker.", "kind")
        self.retries = self._counter("retries", "Work tried again, by what was in the way.", "what")
        self.paused = self._gauge("paused", "1 while this worker fetches nothing because of an outage, else 0.")
        self.lag = self._gauge("lag", "Records not applied, up to the last stable offset.", "topic", "partition")
        self.position = self._gauge("position", "Next offset to be applied, as committed.", "topic", "partition")
        self.build = self._gauge("build_info", "1; the version is the label.", "version")

        self.build.labels(__version__).set(1)
        for metric, values in (
            (self.step_seconds, Step), (self.changes, Change), (self.published, Output),
            (self.dead_letters, RejectionReason), (self.rebalances, Rebalance), (self.retries, Retry),
        ):  # fmt: skip
            for value in values:
                metric.labels(value.value)
        ProcessCollector(namespace="sync_worker", registry=registry)

    def expect_topics(self, *topics: str) -> None:
        """Make the series of these input topics, so that a rate has a zero to start from."""
        for topic in topics:
            for result in Result:
                self.records.labels(topic, result.value)

    def set_partition(self, partition: Partition, position: int, end: int) -> None:
        """The state of an assigned partition: `position` as committed, `end` its last stable offset."""
        self.position.labels(partition.topic, str(partition.number)).set(position)
        self.lag.labels(partition.topic, str(partition.number)).set(max(0, end - position))

    def forget_partition(self, partition: Partition) -> None:
        """Stop reporting a partition that is another worker's now: two workers must not both show its lag."""
        self.position.remove(partition.topic, str(partition.number))
        self.lag.remove(partition.topic, str(partition.number))

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(f"sync_worker_{name}", meaning, labels, registry=self.registry)

    def _gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        return Gauge(f"sync_worker_{name}", meaning, labels, registry=self.registry)

    def _histogram(self, name: str, meaning: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"sync_worker_{name}", meaning, labels, buckets=buckets, registry=self.registry)
