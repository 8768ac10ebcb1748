"""A few seeds with short runs, so that nobody breaks a promise unnoticed; the long ones are `make faults` (docs/reliability.md)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import failure
from tests.faults.arena import Arena, open_arena
from tests.faults.plan import Options, make_plan
from tests.faults.run import run
from tests.faults.workers import clock_library

# Between them every protocol, and most kinds of faults; the last has a registry.
SEEDS = (36, 56, 10)
OPTIONS = Options(duration_s=14.0, faults=30, workers=2)
FAULTS_MIN = 5  # of those planned; on a machine that is busy with other things not all have their turn

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def arena() -> Iterator[Arena]:
    with open_arena(registry=True) as running:
        yield running


@pytest.mark.parametrize("seed", SEEDS)
def test_a_run_full_of_faults_loses_repeats_and_reorders_nothing(arena: Arena, seed: int, tmp_path: Path) -> None:
    available = [*(["disk"] if arena.disk else []), *(["clock"] if clock_library() else [])]
    for _ in range(3):
        result = run(arena, make_plan(seed, OPTIONS, available=available), tmp_path / f"seed-{seed}")
        print("\n".join(map(str, result.faults)))
        assert not result.violations, failure.describe(result)
        assert result.history.changes
        # Faults come by the clock: a run during which the machine stood still had no time for them, and another one may.
        if sum(result.taken.values()) >= FAULTS_MIN:
            break
    assert sum(result.taken.values()) >= FAULTS_MIN
