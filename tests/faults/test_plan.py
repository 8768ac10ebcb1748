"""Everything of a run follows from its seed, and what the traffic must come to doesn't depend on the order of reading."""

from __future__ import annotations

from collections import defaultdict
from random import Random

import pytest

from tests.faults.kinds import BY_NAME, KINDS
from tests.faults.nemesis.director import FAULTS
from tests.faults.plan import Options, make_plan
from tests.faults.sending import Garbage, Sending, Traffic
from tests.faults.traffic import make_traffic
from tests.model.model import Model

SEEDS = range(1, 13)


def committed(traffic: Traffic) -> list[Sending]:
    """All that is to count, in order of time."""
    plain = [sending for producer in traffic.plain for sending in producer]
    rest = [each for producer in traffic.transactional for tx in producer if not tx.aborted for each in tx.records]
    return sorted([*plain, *rest], key=lambda sending: sending.at_s)


def outcome(sendings: list[Sending], partitions: int, random: Random) -> tuple[object, ...]:
    """Newest facts and rejected records where partitions are read in turns, as chance has it."""
    lanes: defaultdict[tuple[str, int], list[Sending]] = defaultdict(list)
    for sending in sendings:
        lanes[sending.topic, sending.partition % partitions].append(sending)
    model = Model()
    rejected: set[str] = set()
    while lanes:
        lane = random.choice(sorted(lanes))
        sending = lanes[lane].pop(0)
        if not lanes[lane]:
            del lanes[lane]
        if sending.content is not None and not isinstance(sending.content, Garbage):
            rejected.update(letter.event.event_id for letter in model.apply_batch([sending.content]).dead_letters)
    facts = (model.memberships, model.sources, model.suspensions, model.methods)
    # A repetition may have another id; which of them came first is of no account.
    plain = [{key: (fact.version, getattr(fact, "is_member", None)) for key, fact in each.items()} for each in facts]
    return (*plain, rejected)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_same_seed_gives_the_same_plan_and_traffic(seed: int) -> None:
    assert make_plan(seed) == make_plan(seed)
    assert make_plan(seed) != make_plan(seed + 1)
    traffic = make_traffic(seed, 10.0, 3, registry=False)
    assert traffic == make_traffic(seed, 10.0, 3, registry=False)
    assert traffic != make_traffic(seed + 1, 10.0, 3, registry=False)


@pytest.mark.parametrize("seed", SEEDS)
def test_newest_facts_and_dead_letters_are_the_same_in_whatever_order_partitions_are_read(seed: int) -> None:
    plan = make_plan(seed)
    sendings = committed(make_traffic(seed, 6.0, plan.partitions, registry=plan.registry))[:4000]
    first, second = (outcome(sendings, plan.partitions, Random(order)) for order in (1, 2))
    assert first == second


def test_seeds_between_them_plan_every_kind_of_fault() -> None:
    planned = {fault.kind for seed in range(1, 30) for fault in make_plan(seed).faults}
    assert planned == set(BY_NAME)


def test_every_kind_of_fault_is_done_by_a_function_of_its_name() -> None:
    assert set(FAULTS) == {kind.name for kind in KINDS}


def test_what_a_machine_does_not_have_is_not_planned() -> None:
    for seed in SEEDS:
        kinds = {fault.kind for fault in make_plan(seed, Options(registry=False), available=()).faults}
        assert not kinds & {kind.name for kind in KINDS if kind.needs}
