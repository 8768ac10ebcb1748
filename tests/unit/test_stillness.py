"""A standstill is named once it has lasted, and only where records wait."""

import pytest

from sync_worker.events import Partition
from sync_worker.loops.stillness import STILL_FOR_S, Stillness

ONE, OTHER = Partition("membership", 0), Partition("membership", 1)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def stillness(clock: Clock) -> Stillness:
    return Stillness(clock)


def test_a_partition_that_stands_still_with_records_waiting_is_named_and_again_only_after_as_long(
    clock: Clock, stillness: Stillness
) -> None:
    def look() -> frozenset[Partition]:
        return stillness.observe(frozenset({ONE, OTHER}), {ONE: 5, OTHER: 9}, {ONE: 7, OTHER: 9})

    assert look() == frozenset()
    clock.now += STILL_FOR_S - 1
    assert look() == frozenset()
    clock.now += 1
    assert look() == {ONE}
    clock.now += STILL_FOR_S - 1
    assert look() == frozenset()
    clock.now += 1
    assert look() == {ONE}


def test_one_that_moves_or_reaches_its_end_is_not_named(clock: Clock, stillness: Stillness) -> None:
    for position, end in ((5, 90), (6, 90), (7, 90), (90, 90), (90, 95), (91, 95)):
        assert stillness.observe(frozenset({ONE}), {ONE: position}, {ONE: end}) == frozenset()
        clock.now += STILL_FOR_S - 1


def test_a_worker_without_partitions_looks_at_all_and_one_that_has_some_at_its_own(
    clock: Clock, stillness: Stillness
) -> None:
    ends = {ONE: 7, OTHER: 3}
    stillness.observe(frozenset(), {ONE: 7}, ends)
    clock.now += STILL_FOR_S
    assert stillness.observe(frozenset(), {ONE: 7}, ends) == {OTHER}
    assert stillness.observe(frozenset({ONE}), {ONE: 7}, ends) == frozenset()


def test_an_outage_explains_it(clock: Clock, stillness: Stillness) -> None:
    stillness.observe(frozenset({ONE}), {ONE: 5}, {ONE: 7})
    clock.now += STILL_FOR_S
    stillness.forget()
    assert stillness.observe(frozenset({ONE}), {ONE: 5}, {ONE: 7}) == frozenset()
