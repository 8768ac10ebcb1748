"""The properties of the client that reads the input topics, and why each is what it is.

Which of them an operator may set is kafka/properties.py's to say; none here may let a record be skipped or a commit be made
behind the worker's back.
"""

from typing import Any

from sync_worker.settings import Settings


def consumer_properties(settings: Settings) -> dict[str, Any]:
    """librdkafka's, by name. Where the worker's work depends on one it comes last, so that no setting overrides it."""
    # The group waits this long for a member that froze in the middle of a rebalance; the default of five minutes is for consumers
    # that process between two polls. This one polls every second, or waits for half of the drain limit to give up partitions.
    client = settings.kafka_client_config()
    patience_ms = max(60_000, int(settings.drain_timeout_s * 1000), int(client.get("session.timeout.ms", 0)))
    config: dict[str, Any] = {"max.poll.interval.ms": patience_ms}
    # Both ways share out each topic by itself. The defaults, and `cooperative-sticky`, count partitions alone: of two workers one would get
    # all memberships, the other what is left (ADR 15). What they are for, partitions that stay where they are, gains nothing here.
    if settings.group_protocol == "classic":
        # How long the partitions of a worker that was killed stand still. Compare-and-set makes a short one safe.
        config["session.timeout.ms"] = 10_000
        # By its answer a worker learns that others join or leave; with the default of 3 s partitions on their way wait for that.
        config["heartbeat.interval.ms"] = 500
        config["partition.assignment.strategy"] = "roundrobin"
    else:
        config["group.remote.assignor"] = "range"
    config |= client
    return config | {
        "group.id": settings.consumer_group,
        "group.protocol": settings.group_protocol,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        # A position outside of the topic is never a reason to skip (design §4).
        "auto.offset.reset": "error",
        # Control records move the end of a partition without a record to apply.
        "enable.partition.eof": True,
        "isolation.level": "read_committed",
        # A partition that a topic got later is noticed within this time.
        "topic.metadata.refresh.interval.ms": 30_000,
        # Per partition, fetched ahead of what is applied; the defaults of 100,000 records and 64 MB each are memory for nothing, and a
        # megabyte at once is 6,000 of them. What is fetched ahead is looked at again after 20 ms, not after a second: by then
        # a partition would have run dry. A larger record is fetched all the same.
        "queued.min.messages": 5_000,
        "fetch.message.max.bytes": 524_288,
        "queued.max.messages.kbytes": 16_384,
        "fetch.queue.backoff.ms": 20,
        "fetch.wait.max.ms": 100,
        "fetch.error.backoff.ms": 50,
    }
