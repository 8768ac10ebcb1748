"""A fast wrong run is a failure: builds that were broken on purpose give no figures, a right one does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench import site
from bench.cases.throughput import end_to_end
from bench.errors import WrongResult
from bench.frame import TEMPLATE, Ground
from bench.load import Load
from devstack import Stack
from sync_worker.database.migrate import migrate

LOAD = Load(users=400, methods=2, segments=5, zipf=True)


@pytest.fixture(scope="module")
def bench_stack(stack: Stack) -> Stack:
    migrate(stack.postgres.create_database(TEMPLATE))
    return stack


def _measure(stack: Stack, folder: Path, doctored: str = "") -> dict[str, dict[str, float]]:
    # Small batches: who joins and leaves within one was never seen, by a wrong worker either.
    ground = Ground(stack, folder, lambda _: None, {"batch_max_records": "100"}, doctored)
    return end_to_end(ground, LOAD, 1)


def test_a_right_worker_gets_figures_of_every_phase(bench_stack: Stack, tmp_path: Path) -> None:
    found = _measure(bench_stack, tmp_path)
    assert list(found) == ["adds", "mixed", "removes", "replay"]
    assert all(figures["events_per_s"] > 0 for figures in found.values())


@pytest.mark.parametrize(
    ("doctored", "refused_for"),
    [
        pytest.param("any-version-wins", "after replay", id="replayed events count again"),
        pytest.param("random-event-id", "lost, doubled or out of order", id="changes have any id"),
    ],
)
def test_a_worker_that_was_broken_on_purpose_gets_none(
    bench_stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, doctored: str, refused_for: str
) -> None:
    monkeypatch.setattr(site, "TIMEOUT_S", 120.0)
    with pytest.raises(WrongResult, match=re.escape(refused_for)):
        _measure(bench_stack, tmp_path, doctored)
