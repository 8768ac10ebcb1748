"""Several workers share the load; who comes, leaves, dies or freezes changes nothing in the result (design §4, §7).

On a Kafka of their own, whose groups notice a dead member within seconds.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from devstack import Stack
from sync_worker.database.migrate import migrate
from tests.model.events import Event
from tests.model.model import Model
from tests.model.traffic import random_history
from tests.support.check import assert_site_equals_model
from tests.support.facts import member, method, new_id
from tests.support.site import Site, WorkerProcess, wait_for

PROTOCOLS = {
    # Much shorter, and a busy machine throws out members that are alive.
    "classic": {"kafka_properties": json.dumps({"session.timeout.ms": "4000", "heartbeat.interval.ms": "500"})},
    "consumer": {"group_protocol": "consumer"},
}
KAFKA = {
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "group.consumer.min.session.timeout.ms": "1000",
    "group.consumer.session.timeout.ms": "4000",
    "group.consumer.min.heartbeat.interval.ms": "500",
    "group.consumer.heartbeat.interval.ms": "1000",
}
DEADLINE_S = 120.0
# For a worker's end on a machine that stands still meanwhile; by default it is 20 s.
DRAIN_S = "60"
# Several waits of DEADLINE_S, one after the other.
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def quick_groups() -> Iterator[Stack]:
    with Stack.start(durable=False, kafka_properties=KAFKA) as running:
        yield running


@pytest.fixture
def make_shared(quick_groups: Stack, tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Makes a site with six partitions per topic."""
    sites: list[tuple[Site, str]] = []

    def make(**settings: str) -> Site:
        name = f"workers_{new_id()[:8]}"
        url = quick_groups.postgres.create_database(name)
        migrate(url)
        site = Site(
            quick_groups, url, tmp_path, {f"SYNC_WORKER_{key.upper()}": value for key, value in settings.items()}
        )
        sites.append((site, name))
        site.create_topics(6)
        return site

    yield make
    for site, name in sites:
        site.close()
        quick_groups.postgres.drop_database(name)


@pytest.fixture(params=PROTOCOLS)
def shared(request: pytest.FixtureRequest, make_shared: Callable[..., Site]) -> Site:
    """A site, once for each group protocol."""
    return make_shared(**PROTOCOLS[request.param], batch_max_records="100", drain_timeout_s=DRAIN_S)


@pytest.mark.parametrize(
    "properties", [{"session.timeout.ms": "120000"}, {"max.poll.interval.ms": "400000", "session.timeout.ms": "90000"}]
)
def test_an_operator_may_want_more_patience_than_a_worker_has(
    make_shared: Callable[..., Site], properties: dict[str, str]
) -> None:
    site = make_shared(kafka_properties=json.dumps(properties))
    worker = site.start_worker()
    site.produce([method(new_id(), new_id())])
    site.wait_settled()
    assert worker.terminate() == 0


def _history(seed: int, events: int) -> list[Event]:
    return random_history(seed, events=events, segments=6, users=80, methods_per_segment=2, courses=6)


def _is_the_models(site: Site, history: list[Event]) -> None:
    site.wait_settled(DEADLINE_S)
    model = Model()
    model.apply_batch(history)
    assert_site_equals_model(site, model)


def _has_partitions(worker: WorkerProcess) -> Callable[[], bool]:
    return lambda: bool(worker.events("partition_started"))


def test_workers_that_join_leave_and_die_share_the_load_and_end_right(shared: Site) -> None:
    history = _history(21, 3000)
    parts = [history[start : start + 600] for start in range(0, len(history), 600)]
    first = shared.start_worker()
    shared.produce(parts[0])
    second = shared.start_worker()
    wait_for(_has_partitions(second), DEADLINE_S, "the second one's share")
    shared.produce(parts[1])
    hold = shared.directory / "hold"
    hold.touch()
    dies = shared.start_worker(failpoints=f"after_rows=hold:{hold}@1")
    wait_for(_has_partitions(dies), DEADLINE_S, "the third one's share")

    def under_way() -> bool:
        # Again where another one took all of it: which of them has partitions is the group's affair, and repetitions change nothing.
        shared.produce(parts[2])
        with suppress(AssertionError):
            wait_for(Path(f"{hold}.reached").exists, 10)
        return Path(f"{hold}.reached").exists()

    wait_for(under_way, DEADLINE_S, "a batch under way")
    dies.kill()
    shared.produce(parts[3])
    assert first.terminate(DEADLINE_S) == 0
    shared.produce(parts[4])
    _is_the_models(shared, history)
    assert second.process.poll() is None
    assert second.terminate(DEADLINE_S) == 0
    assert not any(worker.events("drain_timeout") for worker in (first, second))


def _is(found: Callable[[], object], expected: object) -> bool:
    return found() == expected


def test_every_topic_is_shared_out_by_itself(shared: Site) -> None:
    """Memberships are nearly all of the work: a worker with six partitions of other topics instead would be of no use."""
    admin = AdminClient({"bootstrap.servers": shared.stack.kafka.bootstrap_servers})
    group, inputs = shared.settings.consumer_group, shared.settings.input_topics

    def shares() -> set[tuple[int, ...]]:
        try:
            described = admin.describe_consumer_groups([group], request_timeout=30)[group].result(60)
        except KafkaException:  # the group is only now being made, or its coordinator is busy
            return set()
        held = [[each.topic for each in member.assignment.topic_partitions] for member in described.members]
        return {tuple(sorted(topics.count(topic) for topics in held)) for topic in inputs}

    workers = []
    for number in (1, 2, 3):
        workers.append(shared.start_worker())
        expected = {(6 // number,) * number}
        wait_for(partial(_is, shares, expected), DEADLINE_S, f"each topic shared out among {number}")
    assert workers.pop(0).terminate() == 0
    wait_for(partial(_is, shares, {(3, 3)}), DEADLINE_S, "each topic shared out among those who stay")


def test_a_worker_that_was_frozen_while_another_took_over_applies_and_publishes_nothing_twice(shared: Site) -> None:
    history = _history(22, 1500)
    hold = shared.directory / "hold"
    hold.touch()
    # It stands after its second transaction, with the next batch in its hands.
    frozen = shared.start_worker(failpoints=f"after_commit=hold:{hold}@2")
    shared.produce(history[:1000])
    wait_for(Path(f"{hold}.reached").exists, DEADLINE_S, "the second transaction")
    # Said when a batch waits, and the one after it is full.
    frozen.wait_for_event("intake_paused", DEADLINE_S)
    frozen.signal(signal.SIGSTOP)
    try:
        other = shared.start_worker()
        other.wait_for_event("partition_started", DEADLINE_S)
        shared.wait_settled(DEADLINE_S)
    finally:
        hold.unlink()
        frozen.signal(signal.SIGCONT)
    frozen.wait_for_event("batch_fenced", DEADLINE_S)
    shared.produce(history[1000:])
    _is_the_models(shared, history)
    assert (frozen.process.poll(), other.process.poll()) == (None, None)


def test_workers_that_were_frozen_when_they_were_told_to_end_do_so(shared: Site) -> None:
    """The kernel gives the signal to any of a process's threads then. Four, since by chance it is the right one."""
    workers = [shared.start_worker() for _ in range(4)]
    for worker in workers:
        worker.wait_for_event("worker_starts", DEADLINE_S)
    shared.produce([method(new_id(), new_id())])
    shared.wait_settled(DEADLINE_S)
    for worker in workers:
        for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGCONT):
            worker.signal(number)
    assert [worker.wait(DEADLINE_S) for worker in workers] == [0, 0, 0, 0]


def test_when_the_leader_is_killed_another_worker_leads_and_publishes(shared: Site) -> None:
    history = _history(23, 600)
    leader = shared.start_worker()
    leader.wait_for_event("relay_leads", DEADLINE_S)
    other = shared.start_worker()
    wait_for(_has_partitions(other), DEADLINE_S, "the other one's share")
    shared.produce(history[:300])
    leader.kill()
    other.wait_for_event("relay_leads", DEADLINE_S)
    shared.produce(history[300:])
    _is_the_models(shared, history)
    # Its lease lasts for five seconds at a time.
    wait_for(lambda: shared.status()["leader"], DEADLINE_S, "a leader")


def test_a_worker_whose_applying_waits_for_longer_than_the_group_allows_between_polls_stays_in_the_group(
    quick_groups: Stack, make_shared: Callable[..., Site]
) -> None:
    # Long enough for a worker that stands still for seconds; with the pauses between them, nine tries take some eighteen.
    limits = {"max.poll.interval.ms": "12000", "session.timeout.ms": "12000", "heartbeat.interval.ms": "500"}
    site = make_shared(kafka_properties=json.dumps(limits))
    enabled = method(new_id(), new_id())
    joins, leaves = (
        member(enabled.segment_id, user := new_id(), 1),
        member(enabled.segment_id, user, 2, is_member=False),
    )
    worker = site.start_worker(batch_max_records="10")
    site.produce([enabled, joins])
    site.wait_settled(DEADLINE_S)
    more: list[Event] = [member(enabled.segment_id, new_id(), 1) for _ in range(100)]
    with site.connect() as lms:
        lms.execute("begin")
        lms.execute("select from enrollment where user_id = %s for update", (user,))
        site.produce([leaves, *more])
        wait_for(lambda: len(worker.events("lock_wait")) >= 9, DEADLINE_S, "nine tries of most of a second each")
        lms.execute("rollback")
    _is_the_models(site, [enabled, joins, leaves, *more])
    assert worker.events("intake_paused")
    assert not worker.events("partitions_lost") + worker.events("partitions_revoked") + worker.events("rejoining_group")
