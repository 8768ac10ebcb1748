"""A stack for tests that crash things: PostgreSQL durable, and consumer groups that notice a dead member within seconds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from devstack import Stack
from sync_worker.database.migrate import migrate
from tests.support.site import Site

GROUPS = {
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "group.consumer.min.session.timeout.ms": "1000",
    "group.consumer.session.timeout.ms": "4000",
    "group.consumer.min.heartbeat.interval.ms": "500",
    "group.consumer.heartbeat.interval.ms": "1000",
}
# For the classic protocol, where the member says it. Much shorter, and a busy machine throws out members that are alive.
SHORT_SESSION = json.dumps({"session.timeout.ms": "4000", "heartbeat.interval.ms": "500"})


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """Kafka and PostgreSQL of these tests alone."""
    with Stack.start(durable=True, kafka_properties=GROUPS) as running:
        yield running


@pytest.fixture(scope="session")
def template(stack: Stack) -> str:
    name = "sync_worker_crash_template"
    migrate(stack.postgres.create_database(name))
    return name


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    """A site whose workers' deaths are noticed soon."""
    return make_site(kafka_properties=SHORT_SESSION)
