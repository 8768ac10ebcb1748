"""`topics create` on a real broker: what it makes, that it may run again, and that it changes nothing it finds."""

from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from devstack import Stack
from sync_worker.errors import FatalError, RetryableError
from sync_worker.operations.topics import TopicReport, create_topics
from sync_worker.settings import Settings

SETTINGS = (
    "SYNC_WORKER_MEMBERSHIP_TOPIC", "SYNC_WORKER_METHODS_TOPIC", "SYNC_WORKER_SOURCES_TOPIC",
    "SYNC_WORKER_CHANGES_TOPIC", "SYNC_WORKER_DEAD_LETTERS_TOPIC", "SYNC_WORKER_CURSOR_TOPIC",
)  # fmt: skip


@pytest.fixture(scope="module")
def bootstrap_servers(stack: Stack) -> str:
    return stack.kafka.bootstrap_servers


@pytest.fixture
def settings(bootstrap_servers: str) -> Settings:
    """Settings with topics that no other test has."""
    prefix = uuid4().hex[:8]
    return Settings(
        kafka_bootstrap_servers=bootstrap_servers,
        membership_topic=f"{prefix}.membership",
        methods_topic=f"{prefix}.methods",
        sources_topic=f"{prefix}.sources",
        changes_topic=f"{prefix}.changes",
        dead_letters_topic=f"{prefix}.dead-letters",
        cursor_topic=f"{prefix}.cursor",
    )


@pytest.fixture
def admin(bootstrap_servers: str) -> AdminClient:
    return AdminClient({"bootstrap.servers": bootstrap_servers})


def own_configs(admin: AdminClient, topic: str) -> dict[str, str]:
    """What is set on the topic itself, without the broker's defaults."""
    resource = ConfigResource(ResourceType.TOPIC, topic)
    entries = admin.describe_configs([resource])[resource].result(60)
    return {name: entry.value for name, entry in entries.items() if entry.source == 1}


def make(admin: AdminClient, topic: str, partitions: int = 1, **config: str) -> None:
    named = {name.replace("_", "."): value for name, value in config.items()}
    admin.create_topics([NewTopic(topic, num_partitions=partitions, config=named)])[topic].result(60)


def by_setting(reports: list[TopicReport]) -> dict[str, TopicReport]:
    return {report.setting: report for report in reports}


def test_the_topics_are_made_as_the_contract_has_them(settings: Settings, admin: AdminClient) -> None:
    reports = create_topics(settings)
    assert tuple(report.setting for report in reports) == SETTINGS
    assert all(report.created and not report.differences for report in reports)
    assert [report.partitions for report in reports] == [6, 6, 6, 6, 6, 1]
    assert [report.replicas for report in reports] == [1] * 6
    day_ms = 24 * 60 * 60 * 1000
    assert own_configs(admin, settings.membership_topic) == {"cleanup.policy": "delete"}
    assert own_configs(admin, settings.methods_topic) == {"cleanup.policy": "compact"}
    assert own_configs(admin, settings.sources_topic) == {"cleanup.policy": "delete"}
    assert own_configs(admin, settings.changes_topic) == {
        "cleanup.policy": "compact",
        "min.compaction.lag.ms": str(7 * day_ms),
    }
    assert own_configs(admin, settings.dead_letters_topic) == {
        "cleanup.policy": "delete",
        "retention.ms": str(14 * day_ms),
        "max.message.bytes": str(1_048_588 + 64 * 1024),
    }
    assert own_configs(admin, settings.cursor_topic) == {"cleanup.policy": "compact"}


def test_a_second_run_makes_nothing_and_finds_no_difference(settings: Settings) -> None:
    create_topics(settings, partitions=3)
    again = create_topics(settings)
    assert not any(report.created or report.differences for report in again)
    assert [report.partitions for report in again] == [3, 3, 3, 3, 3, 1]


def test_topics_that_exist_are_compared_and_left_as_they_are(settings: Settings, admin: AdminClient) -> None:
    make(admin, settings.membership_topic, cleanup_policy="compact")
    make(admin, settings.changes_topic, cleanup_policy="compact", min_compaction_lag_ms="5")
    make(admin, settings.dead_letters_topic, retention_ms="1209600000")
    make(admin, settings.cursor_topic, partitions=2, cleanup_policy="compact")
    reports = by_setting(create_topics(settings))
    assert reports["SYNC_WORKER_MEMBERSHIP_TOPIC"].differences == ["cleanup.policy is compact, should be delete"]
    assert reports["SYNC_WORKER_CHANGES_TOPIC"].differences == ["min.compaction.lag.ms is 5, should be 604800000"]
    assert reports["SYNC_WORKER_DEAD_LETTERS_TOPIC"].differences == ["max.message.bytes is 1048588, should be 1114124"]
    assert reports["SYNC_WORKER_CURSOR_TOPIC"].differences == ["partitions is 2, should be 1"]
    assert reports["SYNC_WORKER_METHODS_TOPIC"].created
    assert own_configs(admin, settings.membership_topic) == {"cleanup.policy": "compact"}


def test_partitions_are_held_against_a_topic_only_when_they_were_given(settings: Settings) -> None:
    create_topics(settings, partitions=2)
    reports = by_setting(create_topics(settings, partitions=4))
    assert reports["SYNC_WORKER_METHODS_TOPIC"].differences == ["partitions is 2, should be 4"]
    assert reports["SYNC_WORKER_CURSOR_TOPIC"].differences == []


def test_dead_letters_hold_the_largest_record_of_any_input(settings: Settings, admin: AdminClient) -> None:
    make(admin, settings.methods_topic, cleanup_policy="compact", max_message_bytes="5000000")
    create_topics(settings)
    assert own_configs(admin, settings.dead_letters_topic)["max.message.bytes"] == str(5_000_000 + 64 * 1024)


def test_more_than_is_needed_is_no_difference(settings: Settings, admin: AdminClient) -> None:
    make(admin, settings.changes_topic, cleanup_policy="compact", min_compaction_lag_ms=str(30 * 86_400_000))
    make(admin, settings.dead_letters_topic, retention_ms="1209600000", max_message_bytes="9000000")
    assert not any(report.differences for report in create_topics(settings))


def test_an_empty_sources_topic_is_not_made(settings: Settings, admin: AdminClient) -> None:
    reports = create_topics(settings.model_copy(update={"sources_topic": ""}))
    assert "SYNC_WORKER_SOURCES_TOPIC" not in by_setting(reports)
    assert settings.sources_topic not in admin.list_topics(timeout=60).topics


def test_a_factor_that_the_cluster_cannot_give_is_an_error_that_names_topic_and_reason(settings: Settings) -> None:
    with pytest.raises(FatalError, match=rf"{settings.membership_topic}: .*replication factor"):
        create_topics(settings, replication_factor=3)


def test_two_runs_at_once_make_each_topic_once(settings: Settings) -> None:
    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(lambda _: create_topics(settings), range(4)))
    for position in range(6):
        assert sum(reports[position].created for reports in runs) == 1
    assert not any(report.differences for reports in runs for report in reports)


def test_a_broker_that_is_away_is_an_outage_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sync_worker.operations.topics._TIMEOUT_S", 5.0)
    with pytest.raises(RetryableError, match=r"Kafka at 127\.0\.0\.1:1 does not answer \(.*Connection refused"):
        create_topics(Settings(kafka_bootstrap_servers="127.0.0.1:1"))
