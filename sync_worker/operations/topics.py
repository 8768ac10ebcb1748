"""Makes the topics of contract §1, or says how those that exist differ. Safe to run again and again.

Must never change or delete a topic that exists: its records and its owner's decisions stand, a person decides.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType  # type: ignore[attr-defined]

from sync_worker.environment import environment_name
from sync_worker.errors import FatalError, RetryableError
from sync_worker.kafka.errors import KafkaFaults
from sync_worker.service.logging import kafka_logger
from sync_worker.settings import Settings

DEFAULT_PARTITIONS: Final = 6
_DAY_MS: Final = 24 * 60 * 60 * 1000
COMPACTION_LAG_MS: Final = 7 * _DAY_MS
DEAD_LETTER_RETENTION_MS: Final = 14 * _DAY_MS
DEAD_LETTER_MARGIN_BYTES: Final = 64 * 1024
_MAX_BYTES: Final = "max.message.bytes"
_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class TopicReport:
    """One topic after `create_topics`: made now or found, and what of a found one isn't as contract §1 has it."""

    name: str
    setting: str
    created: bool
    partitions: int
    replicas: int
    differences: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class PlannedTopic:
    """One topic as contract §1 has it."""

    name: str
    setting: str
    partitions: int
    replicas: int
    config: Mapping[str, str]


def create_topics(
    settings: Settings, partitions: int | None = None, replication_factor: int | None = None
) -> list[TopicReport]:
    """Make the topics that are missing, compare the others, in the order of contract §1.

    None for `partitions` is 6; None for `replication_factor` is the broker's `default.replication.factor`, which is
    what an operator of that cluster decided. Neither is held against a topic that exists unless it was given.
    """
    faults = KafkaFaults(settings.kafka_bootstrap_servers)
    config = {**settings.kafka_client_config(), **faults.config, "logger": kafka_logger()}
    cluster = _Cluster(AdminClient(config), faults)
    existing = cluster.topics()
    factor = replication_factor or cluster.default_replication_factor()
    inputs = planned_inputs(settings, partitions or DEFAULT_PARTITIONS, factor)
    created = cluster.create([topic for topic in inputs if topic.name not in existing])
    # Only now are the sizes known that a dead letter may have.
    configs = cluster.configs([topic.name for topic in inputs])
    largest = max(int(config[_MAX_BYTES]) for config in configs.values())
    outputs = planned_outputs(settings, partitions or DEFAULT_PARTITIONS, factor, largest + DEAD_LETTER_MARGIN_BYTES)
    created |= cluster.create([topic for topic in outputs if topic.name not in existing])
    configs |= cluster.configs([topic.name for topic in outputs])
    shapes = cluster.topics()
    reports = []
    for topic in [*inputs, *outputs]:
        found_partitions, found_factor = shapes[topic.name]
        differences = config_differences(topic, configs[topic.name], found_factor)
        if partitions or topic.setting == "cursor_topic":
            differences += _difference("partitions", str(found_partitions), str(topic.partitions))
        if replication_factor:
            differences += _difference("replication factor", str(found_factor), str(factor))
        reports.append(
            TopicReport(
                topic.name,
                environment_name(topic.setting),
                topic.name in created,
                found_partitions,
                found_factor,
                [] if topic.name in created else differences,
            )
        )
    return reports


def planned_inputs(settings: Settings, partitions: int, factor: int) -> list[PlannedTopic]:
    """The input topics of contract §1; without the sources' where that isn't read."""
    policies = {"membership_topic": "delete", "methods_topic": "compact", "sources_topic": "delete"}
    return [
        _planned(settings, setting, partitions, factor, {"cleanup.policy": policy})
        for setting, policy in policies.items()
        if getattr(settings, setting)
    ]


def planned_outputs(settings: Settings, partitions: int, factor: int, dead_letter_bytes: int) -> list[PlannedTopic]:
    """The topics of contract §1 that the worker writes; a dead letter may have `dead_letter_bytes`."""
    compact = {"cleanup.policy": "compact"}
    dead_letters = {
        "cleanup.policy": "delete",
        "retention.ms": str(DEAD_LETTER_RETENTION_MS),
        _MAX_BYTES: str(dead_letter_bytes),
    }
    changes = {**compact, "min.compaction.lag.ms": str(COMPACTION_LAG_MS)}
    return [
        _planned(settings, "changes_topic", partitions, factor, changes),
        _planned(settings, "dead_letters_topic", partitions, factor, dead_letters),
        _planned(settings, "cursor_topic", 1, factor, compact),
    ]


def _planned(settings: Settings, setting: str, partitions: int, factor: int, config: Mapping[str, str]) -> PlannedTopic:
    replicas = {"min.insync.replicas": "2"} if factor >= 3 else {}
    return PlannedTopic(getattr(settings, setting), setting, partitions, factor, {**config, **replicas})


def config_differences(topic: PlannedTopic, found: Mapping[str, str], found_factor: int) -> list[str]:
    """What of an existing topic isn't as planned; more than is needed is no difference."""
    wanted = dict(topic.config)
    wanted.pop("min.insync.replicas", None)
    if found_factor >= 3:
        wanted["min.insync.replicas"] = "2"
    differences = []
    for name, value in wanted.items():
        enough = name in {_MAX_BYTES, "min.compaction.lag.ms", "min.insync.replicas"}
        if not (enough and int(found[name]) >= int(value)):
            differences += _difference(name, found[name], value)
    return differences


def _difference(name: str, found: str, wanted: str) -> list[str]:
    return [] if found == wanted else [f"{name} is {found}, should be {wanted}"]


class _Cluster:
    """The few questions to the broker, each with a deadline and with errors that are the worker's own."""

    def __init__(self, admin: AdminClient, faults: KafkaFaults) -> None:
        self._admin = admin
        self._faults = faults
        self._deadline = time.monotonic() + _TIMEOUT_S

    def topics(self) -> dict[str, tuple[int, int]]:
        """Partitions and replication factor by topic."""
        found = self._metadata().topics
        return {
            name: (len(topic.partitions), len(topic.partitions[0].replicas) if topic.partitions else 0)
            for name, topic in found.items()
        }

    def default_replication_factor(self) -> int:
        """The broker's `default.replication.factor`."""
        broker = ConfigResource(ResourceType.BROKER, str(next(iter(self._metadata().brokers))))
        try:
            described = self._admin.describe_configs([broker], request_timeout=self._left())[broker].result()
        except KafkaException as error:
            failed = self._faults.error("reading the broker's default replication factor", error)
            raise type(failed)(f"{failed}; or give --replication-factor") from error
        return int(described["default.replication.factor"].value)

    def create(self, topics: list[PlannedTopic]) -> set[str]:
        """Make these topics and wait until they can be used; the names of those that were really made now."""
        if not topics:
            return set()
        wanted = [
            NewTopic(
                topic.name,
                num_partitions=topic.partitions,
                replication_factor=topic.replicas,
                config=dict(topic.config),
            )
            for topic in topics
        ]
        made: set[str] = set()
        failed: list[str] = []
        for name, future in self._admin.create_topics(wanted, request_timeout=self._left()).items():
            try:
                future.result()
                made.add(name)
            except KafkaException as error:
                code = error.args[0].code()
                if code in {KafkaError._TRANSPORT, KafkaError._TIMED_OUT}:
                    raise self._faults.error("creating topics", error) from error
                if code != KafkaError.TOPIC_ALREADY_EXISTS:  # somebody else was faster
                    failed.append(f"{name}: {error.args[0].str()}")
        if failed:
            raise FatalError("these topics can't be made: " + "; ".join(failed))
        self._wait_for([topic.name for topic in topics])  # also for those that somebody else is making just now
        return made

    def configs(self, names: list[str]) -> dict[str, dict[str, str]]:
        """The settings in force by topic."""
        resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
        found = {}
        try:
            for resource, future in self._admin.describe_configs(resources, request_timeout=self._left()).items():
                found[resource.name] = {name: entry.value or "" for name, entry in future.result().items()}
        except KafkaException as error:
            raise self._faults.error("reading topics' settings", error) from error
        return found

    def _wait_for(self, names: list[str]) -> None:
        """A topic that was just made is known to all brokers only a moment later, its leaders later still."""
        while True:
            found = self._metadata().topics
            leaders = {name: [each.leader for each in topic.partitions.values()] for name, topic in found.items()}
            if all(leaders.get(name) and min(leaders[name]) >= 0 for name in names):
                return
            if self._left() <= 1.0:
                raise RetryableError(f"the topics {', '.join(names)} were made, but have no leaders yet")
            time.sleep(0.05)

    def _metadata(self) -> Any:
        try:
            return self._admin.list_topics(timeout=self._left())
        except KafkaException as error:
            self._admin.poll(0)  # brings the reason to the error callback
            raise self._faults.error("asking for the topics", error) from error

    def _left(self) -> float:
        return max(1.0, self._deadline - time.monotonic())
