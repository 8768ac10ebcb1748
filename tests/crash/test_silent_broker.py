"""A broker that falls silent in the middle of a question: no answer is never taken for one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from devstack import Stack
from sync_worker.errors import RetryableError
from sync_worker.events import Partition
from sync_worker.kafka.broker import Broker
from tests.support.site import Site, wait_for


@pytest.fixture
def silent_broker(stack: Stack, site: Site) -> Iterator[Broker]:
    """It has answered before, so that the client knows where to ask. A second is what it is given, which the first answers on
    a busy machine can take longer than.
    """
    broker = Broker(site.settings, timeout_s=1.0)
    wait_for(lambda: _answers(broker, Partition(site.topic("membership"), 0)), what="an answer of the broker")
    stack.kafka.pause()
    try:
        yield broker
    finally:
        stack.kafka.resume()


def _answers(broker: Broker, partition: Partition) -> bool:
    try:
        return partition in broker.earliest([partition])
    except RetryableError:
        return False


def test_offsets_that_the_broker_did_not_tell_in_time_are_an_outage_and_no_offsets(
    site: Site, silent_broker: Broker
) -> None:
    partitions = [Partition(site.topic("membership"), number) for number in range(2)]
    for ask in (silent_broker.earliest, silent_broker.end, silent_broker.stable_end):
        with pytest.raises(RetryableError, match=r"does not answer|no answer within"):
            ask(partitions)
