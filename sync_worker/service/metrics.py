"""Every metric of the worker, defined once with its meaning (contract §6: names `sync_worker_*`).

Labels take closed sets of values, or a partition: never an id, which would make a time series per person. The registry
is passed about, so that two workers in one process (tests) don't share counts. docs/reference/metrics.md is made from this.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import product
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


class Stage(StrEnum):
    """How far a change has come: committed in PostgreSQL, or committed in Kafka."""

    APPLIED = "applied"
    PUBLISHED = "published"


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
_AGES: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 3600.0)
_TOPIC: Final = "an input topic"
_PARTITION: Final = "its number, as long as it is assigned to this worker"
_RECORDS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)


Label = type[StrEnum] | str
"""The values that a label takes, or where they come from in words."""


@dataclass(frozen=True, slots=True)
class Definition:
    """What a metric is, for who reads its figures."""

    name: str
    type: str
    unit: str
    meaning: str
    labels: Mapping[str, Label]


class Metrics:
    """The metrics, as attributes; each belongs to the registry given."""

    def __init__(self, registry: CollectorRegistry) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, with a name that says nothing
        self.registry = registry
        self.definitions: list[Definition] = []
        self.records = self._counter(
            "records", "records", "Input records by what became of them.", topic=_TOPIC, result=Result
        )
        self.batch_records = self._histogram(
            "batch_records", "records", "Input records applied in one transaction.", _RECORDS
        )
        self.step_seconds = self._histogram("step_seconds", "seconds", "Time of one step.", _SECONDS, step=Step)
        self.age_seconds = self._histogram(
            "age_seconds",
            "seconds",
            "Age of the first event of a batch when it was applied, since its occurred_at; of the first change of a publication when that"
            " was committed, since the change was applied. Both together are the way from end to end.",
            _AGES,
            at=Stage,
        )
        self.changes = self._counter("changes", "events", "EnrollmentChanged published and committed.", change=Change)
        self.published = self._counter(
            "published", "records", "Records published and committed by the relay.", kind=Output
        )
        self.dead_letters = self._counter(
            "dead_letters", "records", "Input records rejected for good.", reason=RejectionReason
        )
        self.outbox_unpublished = self._gauge("outbox_unpublished", "rows", "Outbox rows that are not published yet.")
        self.outbox_oldest_seconds = self._gauge(
            "outbox_oldest_seconds", "seconds", "Age of the oldest unpublished outbox row."
        )
        self.relay_leader = self._gauge(
            "relay_leader", "0 or 1", "1 while this worker holds the relay's lease, else 0."
        )
        self.relay_window = self._gauge(
            "relay_window", "number", "Number of the last window that this worker published."
        )
        self.backfill_steps = self._counter("backfill_steps", "steps", "Backfill steps committed.")
        self.backfill_people = self._counter("backfill_people", "people", "People looked at in backfill steps.")
        self.segments_held = self._gauge(
            "segments_held", "segments", "Segments whose removals are held back by the breaker."
        )
        self.removals_held = self._gauge(
            "removals_held", "members", "Removals that a hold keeps back, or whose release is under way."
        )
        self.rebalances = self._counter(
            "rebalances", "events", "What the consumer group did to this worker.", kind=Rebalance
        )
        self.retries = self._counter("retries", "attempts", "Work tried again, by what was in the way.", what=Retry)
        self.paused = self._gauge(
            "paused", "0 or 1", "1 while this worker fetches nothing because of an outage, else 0."
        )
        self.lag = self._gauge(
            "lag", "records", "Records not applied, up to the last stable offset.", topic=_TOPIC, partition=_PARTITION
        )
        self.position = self._gauge(
            "position", "offset", "Next offset to be applied, as committed.", topic=_TOPIC, partition=_PARTITION
        )
        self.build = self._gauge("build_info", "1", "1; the version is the label.", version="this worker's version")

        self.build.labels(__version__).set(1)
        ProcessCollector(namespace="sync_worker", registry=registry)

    def expect_topics(self, *topics: str) -> None:
        """Make the series of these input topics, so that a rate has a zero to start from."""
        for topic in topics:
            for result in Result:
                self.records.labels(topic, result.value)

    def observe_age(self, stage: Stage, since_us: int) -> None:
        """Something of this time, in microseconds since 1970, has come to the stage now. A clock that is behind its publisher's gives 0."""
        self.age_seconds.labels(stage).observe(max(0.0, time.time() - since_us / 1_000_000))

    def set_partition(self, partition: Partition, position: int, end: int) -> None:
        """The state of an assigned partition: `position` as committed, `end` its last stable offset."""
        self.position.labels(partition.topic, str(partition.number)).set(position)
        self.lag.labels(partition.topic, str(partition.number)).set(max(0, end - position))

    def forget_partition(self, partition: Partition) -> None:
        """Stop reporting a partition that is another worker's now: two workers must not both show its lag."""
        self.position.remove(partition.topic, str(partition.number))
        self.lag.remove(partition.topic, str(partition.number))

    def _counter(self, name: str, unit: str, meaning: str, **labels: Label) -> Counter:
        self._define(f"{name}_total", "counter", unit, meaning, labels)
        counter = Counter(f"sync_worker_{name}", meaning, list(labels), registry=self.registry)
        _start(counter, labels)
        return counter

    def _gauge(self, name: str, unit: str, meaning: str, **labels: Label) -> Gauge:
        self._define(name, "gauge", unit, meaning, labels)
        return Gauge(f"sync_worker_{name}", meaning, list(labels), registry=self.registry)

    def _histogram(self, name: str, unit: str, meaning: str, buckets: tuple[float, ...], **labels: Label) -> Histogram:
        self._define(name, "histogram", unit, meaning, labels)
        histogram = Histogram(f"sync_worker_{name}", meaning, list(labels), buckets=buckets, registry=self.registry)
        _start(histogram, labels)
        return histogram

    def _define(self, name: str, kind: str, unit: str, meaning: str, labels: Mapping[str, Label]) -> None:
        self.definitions.append(Definition(f"sync_worker_{name}", kind, unit, meaning, labels))


def _start(metric: Counter | Histogram, labels: Mapping[str, Label]) -> None:
    """Make the series whose labels are known beforehand, so that a rate has a zero to start from."""
    values = [label for label in labels.values() if not isinstance(label, str)]
    if values and len(values) == len(labels):
        for combination in product(*values):
            metric.labels(*(value.value for value in combination))
