"""What the broker says about topics and offsets: identities, ends, and what the consumer group has committed.

Asks, and changes nothing but the consumer group's commits when told to. Each answer is bounded in time; a broker that is
away is a RetryableError, a topic that isn't there a FatalError that says how to make it.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

from confluent_kafka import (
    OFFSET_INVALID,
    Consumer,
    ConsumerGroupTopicPartitions,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, ConfigResource, OffsetSpec, ResourceType  # type: ignore[attr-defined]  # re-exported

from sync_worker.errors import FatalError, RetryableError, SyncWorkerError
from sync_worker.events import Partition
from sync_worker.kafka.errors import KafkaFaults
from sync_worker.settings import Settings

_T = TypeVar("_T")

REQUEST_TIMEOUT_S = 10.0
_OTHER_LEADER = frozenset({
    KafkaError.FENCED_LEADER_EPOCH, KafkaError.UNKNOWN_LEADER_EPOCH, KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
})  # fmt: skip


class TopicMissing(FatalError):
    """A topic that does not exist, or that a broker which has just started doesn't know yet."""


class TopicFacts(NamedTuple):
    """A topic as it is now. The id is another one when a topic was deleted and made anew under its name."""

    topic_id: str
    partitions: int


def partitions_of(topics: Mapping[str, TopicFacts]) -> list[Partition]:
    """Every partition of these topics, in order."""
    return [Partition(topic, number) for topic in sorted(topics) for number in range(topics[topic].partitions)]


class Broker:
    """Questions to the broker, each answered within `timeout_s` or not at all. May be put from any thread.

    Each one holds on to the client that it was put to until it is answered: librdkafka ends the process (an assertion)
    when a client goes away under a question.
    """

    def __init__(self, settings: Settings, *, logger: Any = None, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        self._faults = KafkaFaults(settings.kafka_bootstrap_servers)
        config = settings.kafka_client_config() | self._faults.config
        if logger is not None:
            config["logger"] = logger
        self._config = config
        self._admin = AdminClient(dict(config))
        self._timeout_s = timeout_s

    def cluster_id(self) -> str:
        """As the client's last metadata told. Not by a question of its own: a broker that has just started names no broker at all,
        over which librdkafka's describe_cluster ends the process (an assertion).
        """
        try:
            found = self._admin.cluster_id(self._timeout_s)
        except KafkaException as error:
            raise self._failure("asking for the cluster", error) from error
        if not found:
            raise self._failure("asking for the cluster", KafkaError(KafkaError._TIMED_OUT))
        return str(found)

    def topics(self, names: Collection[str]) -> dict[str, TopicFacts]:
        """Raises TopicMissing naming every topic that does not exist."""
        admin = self._admin
        asked = admin.describe_topics(TopicCollection(list(names)), request_timeout=self._timeout_s)
        found, missing = {}, []
        for name, future in asked.items():
            try:
                described = self._answer(f"asking for topic {name}", future)
            except KafkaException as error:
                if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                    missing.append(name)
                    continue
                raise self._failure(f"asking for topic {name}", error) from error
            found[name] = TopicFacts(str(described.topic_id), len(described.partitions))
        if missing:
            raise TopicMissing(
                f"no such topic: {', '.join(sorted(missing))}; make it with `sync-worker topics create`, "
                "or name another one (SYNC_WORKER_…_TOPIC)"
            )
        return found

    def earliest(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """The first offset that each partition still holds."""
        return self._offsets(partitions, OffsetSpec.earliest)

    def stable_end(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """The last stable offset of each: how far a read_committed consumer can get."""
        return self._offsets(partitions, OffsetSpec.latest)

    def end(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """The high watermark of each, open transactions included."""
        return self._offsets(partitions, OffsetSpec.latest, IsolationLevel.READ_UNCOMMITTED)

    def _offsets(
        self,
        partitions: Iterable[Partition],
        spec: Callable[[], OffsetSpec],
        isolation: IsolationLevel = IsolationLevel.READ_COMMITTED,
    ) -> dict[Partition, int]:
        asked = {TopicPartition(partition.topic, partition.number): spec() for partition in partitions}
        if not asked:
            return {}
        try:
            return self._list_offsets(asked, isolation)
        except RetryableError as error:
            if not _has_other_leader(error):
                raise
        # By the new client, which looks up the leaders first.
        return self._list_offsets(asked, isolation)

    def _list_offsets(self, asked: dict[TopicPartition, OffsetSpec], isolation: IsolationLevel) -> dict[Partition, int]:
        admin = self._admin
        futures = admin.list_offsets(asked, isolation_level=isolation, request_timeout=self._timeout_s)
        found = {}
        for where, future in futures.items():
            doing = f"asking for offsets of {where.topic}"
            offset = self._result(doing, future).offset
            if offset == OFFSET_INVALID:
                # A broker that doesn't answer in time is no error to the client: it gives an offset that is none.
                raise self._failure(doing, KafkaError(KafkaError._TIMED_OUT))
            found[Partition(where.topic, where.partition)] = offset
        return found

    def committed(self, group: str, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """What the consumer group has committed to Kafka; partitions without a commit are left out.

        Asked by a consumer: when the admin client's connection to a coordinator goes at the wrong moment, librdkafka ends
        the process (its issues 3663 and 4605).
        """
        if not partitions:
            return {}
        doing = f"asking for the commits of group {group}"
        consumer = Consumer({**self._config, "group.id": group, "enable.auto.commit": False})
        try:
            found = consumer.committed([TopicPartition(*partition) for partition in partitions], self._timeout_s)
        except KafkaException as error:
            raise self._faults.error(doing, error) from error
        finally:
            consumer.close()
        for where in found:
            if where.error is not None:
                raise self._faults.error(f"{doing} for {where.topic}[{where.partition}]", where.error)
        return {Partition(where.topic, where.partition): where.offset for where in found if where.offset >= 0}

    def at_time(self, partitions: Iterable[Partition], time_ms: int) -> dict[Partition, int]:
        """The first offset of each partition whose record is not older than a time; its end where there is none."""
        partitions = list(partitions)
        ends = self.stable_end(partitions)
        found = self._offsets(partitions, lambda: OffsetSpec.for_timestamp(time_ms))
        return {partition: offset if offset >= 0 else ends[partition] for partition, offset in found.items()}

    def members(self, group: str) -> dict[str, list[Partition]]:
        """The members of a consumer group by their client's host and id, with the partitions each of them has."""
        admin = self._admin
        futures = admin.describe_consumer_groups([group], request_timeout=self._timeout_s)
        try:
            described: Any = self._answer(f"asking for group {group}", futures[group])
        except KafkaException as error:
            if error.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND:
                return {}
            raise self._failure(f"asking for group {group}", error) from error
        return {
            f"{member.host} {member.member_id}": [
                Partition(where.topic, where.partition) for where in member.assignment.topic_partitions
            ]
            for member in described.members
        }

    def set_committed(self, group: str, offsets: Mapping[Partition, int]) -> None:
        """Set what the group has committed; the broker refuses while it has members."""
        wanted = [TopicPartition(*partition, offset) for partition, offset in offsets.items()]
        admin = self._admin
        (future,) = admin.alter_consumer_group_offsets(
            [ConsumerGroupTopicPartitions(group, wanted)], request_timeout=self._timeout_s
        ).values()
        altered: Any = self._result(f"setting the commits of group {group}", future)
        for where in altered.topic_partitions:
            if where.error is not None:
                raise self._failure(f"setting the commit of {where.topic}[{where.partition}]", where.error)

    def max_message_bytes(self, topic: str) -> int:
        """The topic's `max.message.bytes`."""
        return int(self.topic_config(topic)["max.message.bytes"])

    def topic_config(self, topic: str) -> dict[str, str]:
        """The topic's settings in force, by their names at the broker."""
        admin = self._admin
        (future,) = admin.describe_configs(
            [ConfigResource(ResourceType.TOPIC, topic)], request_timeout=self._timeout_s
        ).values()
        described = self._result(f"asking for the configuration of {topic}", future)
        return {name: entry.value or "" for name, entry in described.items()}

    def _result(self, doing: str, future: "Future[_T]") -> _T:
        try:
            return self._answer(doing, future)
        except KafkaException as error:
            raise self._failure(doing, error) from error

    def _answer(self, doing: str, future: "Future[_T]") -> _T:
        try:
            answer = future.result(self._timeout_s + 1)
        except TimeoutError as error:
            # This process stood still, or its clock jumped, and the client hasn't noticed yet.
            raise RetryableError(f"{doing}: no answer within {self._timeout_s:g} s") from error
        self._faults.answered()
        return answer

    def _failure(self, doing: str, failed: KafkaError | Exception) -> SyncWorkerError:
        # Why, a refused certificate or password, waits in the client until it is asked for.
        self._admin.poll(0)
        failure = self._faults.error(doing, failed)
        if isinstance(failure, RetryableError):
            # After an outage or an election librdkafka goes on asking by the leaders it knew, and waits for ever on the connection
            # to a coordinator that it has given up. The old client goes when nobody is asking by it any more: so the error, which its
            # question holds on to, may not hold on to the frames that know the client. Otherwise the threads of a hundred clients
            # pile up in an outage, until the collector comes by.
            if isinstance(failed, Exception):
                failed.__traceback__ = None
            self._admin = AdminClient(dict(self._config))
        return failure


def _has_other_leader(error: RetryableError) -> bool:
    cause = error.__cause__
    return isinstance(cause, KafkaException) and cause.args[0].code() in _OTHER_LEADER
