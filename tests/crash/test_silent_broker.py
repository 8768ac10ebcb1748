"""A broker that falls silent in the middle of a question: no answer is never taken for one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from devstack import Stack
from sync_worker.errors import RetryableError
from sync_worker.events import Partition
from sync_worker.kafka.broker import Broker
from tests.support.site import Site


@pytest.fixture
def silent_broker(stack: Stack, site: Site) -> Iterator[Broker]:
    """It has answered before, so that the client knows where to ask; a second is what it is given now."""
    broker = Broker(site.settings, timeout_s=1.0)
    assert broker.earliest([Partition(site.topic("membership"), 0)])
    stack.kafka.pause()
    try:
        yield broker
    finally:
        stack.kafka.resume()


def test_offsets_that_the_broker_did_not_tell_in_time_are_an_outage_and_no_offsets(
    site: Site, silent_broker: Broker
) -> None:
    partitions = [Partition(site.topic("membership"), number) for number in range(2)]
    for ask in (silent_broker.earliest, silent_broker.end, silent_broker.stable_end):
        with pytest.raises(RetryableError, match="does not answer"):
            ask(partitions)
