"""The part of a Deployment that a run plays: who hangs is replaced, who starts or answers again isn't."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import liveness, workers
from tests.faults.liveness import Liveness
from tests.faults.workers import Fleet

STARTED = """import sys, time; print('{"event": "worker_starts", "http_port": 1}', flush=True); time.sleep(600)"""
STARTING = "import time; time.sleep(600)"


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    """Of processes that only say that they have started."""
    monkeypatch.setattr(workers, "command", lambda: [sys.executable, "-c", STARTED])
    monkeypatch.setattr(liveness, "PERIOD_S", 0.0)
    made = Fleet({}, tmp_path)
    yield made
    made.close()


def started(fleet: Fleet) -> None:
    worker = fleet.start()
    while not worker.says("worker_starts"):
        assert worker.running


def test_a_worker_that_hangs_three_looks_in_a_row_is_killed_and_replaced(fleet: Fleet) -> None:
    started(fleet)
    started(fleet)
    looking = Liveness(fleet, lambda worker: worker.name != "worker-0")
    looking.look()
    looking.look()
    assert looking.replaced == []
    looking.look()
    assert looking.replaced == ["worker-0"]
    assert [worker.name for worker in fleet.running] == ["worker-1", "worker-2"]
    # As any other that was killed: its end is no finding.
    assert next((end.told, end.code) for end in fleet.ends()) == ("killed", -9)


def test_one_that_answers_again_is_left_alone(fleet: Fleet) -> None:
    started(fleet)
    answers = iter([False, False, True, False, False])
    looking = Liveness(fleet, lambda _: next(answers))
    for _ in range(5):
        looking.look()
    assert looking.replaced == []


def test_one_that_still_starts_is_left_alone(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "command", lambda: [sys.executable, "-c", STARTING])
    fleet.start()
    looking = Liveness(fleet, lambda _: False)
    for _ in range(5):
        looking.look()
    assert looking.replaced == []
