"""The relay's producer against a real broker: whatever fails in a transaction is waited for, and a refusal for size is named.

librdkafka tells the next call after a failure in the background only that the state is erroneous; an error that means "start
a new term" must not be taken for one that means "stop the worker".
"""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]  # re-exported

from devstack import Stack
from sync_worker.errors import RetryableError
from sync_worker.outbox.publisher import Publisher, Record, RecordTooLarge
from tests.support.kafka import read_all
from tests.support.site import wait_for

CURSOR = b"cursor"


@pytest.fixture
def topics(stack: Stack) -> tuple[str, str]:
    """A topic for records of at most 100 kB, and one for cursors."""
    name = uuid4().hex[:8]
    records, cursors = f"{name}.records", f"{name}.cursors"
    admin = AdminClient({"bootstrap.servers": stack.kafka.bootstrap_servers})
    made = admin.create_topics(
        [
            NewTopic(records, num_partitions=1, config={"max.message.bytes": "100000"}),
            NewTopic(cursors, num_partitions=1),
        ]
    )
    for future in made.values():
        future.result(60)
    wait_for(lambda: {records, cursors} <= admin.list_topics(timeout=60).topics.keys(), what="the topics")
    return records, cursors


def publisher(stack: Stack, group: str) -> Publisher:
    """Tried again as a relay does: before its first transaction a broker makes a topic for them, which may take long."""
    address = stack.kafka.bootstrap_servers

    def fenced() -> Publisher | None:
        made = Publisher({"bootstrap.servers": address}, group, address, 90_000)
        try:
            made.fence()
        except RetryableError:
            return None
        return made

    made: Publisher = wait_for(fenced, what="a publisher")
    return made


def records(topic: str, number: int, *, size: int = 100) -> list[Record]:
    return [(topic, b"%d" % n, b"x" * size, [], None) for n in range(number)]


def test_a_relay_that_is_fenced_in_the_middle_of_its_records_may_lead_again_later(
    stack: Stack, topics: tuple[str, str]
) -> None:
    topic, cursors = topics
    group = uuid4().hex
    former = publisher(stack, group)

    def frozen_in_the_middle() -> Iterator[Record]:
        for n, record in enumerate(records(topic, 4000)):
            if n == 2000:
                publisher(stack, group).publish(records(topic, 3), (cursors, CURSOR, b"2"))
            yield record

    with pytest.raises(RetryableError):
        former.publish(frozen_in_the_middle(), (cursors, CURSOR, b"1"))
    published = read_all(stack.kafka.bootstrap_servers, topic)
    assert len(published) == 3, "nothing of the fenced one is committed"
    assert [record.value for record in read_all(stack.kafka.bootstrap_servers, cursors)] == [b"2"]


def test_a_record_that_is_too_large_is_named_among_many(stack: Stack, topics: tuple[str, str]) -> None:
    topic, cursors = topics
    relay = publisher(stack, uuid4().hex)
    mixed = [*records(topic, 500), (topic, b"large", b"y" * 200_000, [], 17), *records(topic, 500)]
    with pytest.raises(RecordTooLarge, match=r"max\.message\.bytes") as refused:
        relay.publish(mixed, (cursors, CURSOR, b"1"))
    assert refused.value.tag == 17
    assert read_all(stack.kafka.bootstrap_servers, topic) == []


def test_a_change_that_is_too_large_is_waited_for_with_its_key(stack: Stack, topics: tuple[str, str]) -> None:
    """An operator raises the topic's limit while the worker waits: nothing is left out, nothing stops."""
    topic, cursors = topics
    relay = publisher(stack, uuid4().hex)
    with pytest.raises(RecordTooLarge, match="b'course:user'") as refused:
        relay.publish([(topic, b"course:user", b"y" * 200_000, [], None)], (cursors, CURSOR, b"1"))
    assert refused.value.tag is None
