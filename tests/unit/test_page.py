"""What the page is made of, without a browser: its words and curves, what it remembers, and the verdict above it."""

from __future__ import annotations

import subprocess
import sys
import threading
import zipfile
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from sync_worker.errors import RetryableError
from sync_worker.service.document import StatusDocument
from sync_worker.service.health import Check
from sync_worker.service.history import EVERY_S, KEEP_S, Age, History, Sample
from sync_worker.service.page import words
from sync_worker.service.page.observing import WATCHED_FOR_S, Observer
from sync_worker.service.redaction import Redactor
from sync_worker.service.verdict import State, unreadable, verdict

ROOT = Path(__file__).parents[2]
PLACE = ("t", 0)


def sample(at: float, end: int, lag: int) -> Sample:
    return Sample(at, {PLACE: lag}, {PLACE: end}, 0, 0.0, 0.0, 0.0)


def document(lag: int = 0, unpublished: int = 0, **more: Any) -> dict[str, Any]:
    entry = {"topic": "t", "partition": 0, "position": 5, "end": 5 + lag, "lag": lag}
    return {
        "settled": not lag and not unpublished,
        "lag": [entry],
        "outbox": {"unpublished": unpublished, "oldest_age_s": None},
        "workers": [{"present": True, "records_per_s": 2.0, "published_per_s": 1.0}],
        **more,
    }


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0 s"), (0.04, "0 s"), (0.26, "0.3 s"), (0.97, "1 s"), (59.6, "1 min"), (61, "1 min 1 s"), (600, "10 min"),
     (3600, "1 h"), (7_505, "2 h 5 min"), (86_399.6, "1 d"), (273_600, "3 d 4 h")],
)  # fmt: skip
def test_durations_have_two_units_at_most(seconds: float, shown: str) -> None:
    assert words.duration(seconds) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0"), (0.04, "0"), (0.06, "0.1"), (9.94, "9.9"), (9.96, "10"), (31_500.4, "31,500")]
)
def test_rates_have_a_decimal_where_it_matters(value: float, shown: str) -> None:
    assert words.rate(value) == shown


def test_times_are_utc_wherever_they_come_from() -> None:
    moment = datetime(2026, 1, 31, 1, 2, 3, tzinfo=timezone(timedelta(hours=2)))
    assert (words.clock_time(moment), words.day_and_time(moment)) == ("23:02:03", "2026-01-30 23:02:03")


def test_a_curve_ends_at_the_right_and_its_highest_point_at_the_top() -> None:
    curve = words.spark([(100, 0), (150, 40), (200, 10)], span_s=200)
    points = [tuple(map(float, point.split(","))) for point in curve.line.split()]
    assert [x for x, _ in points] == [50, 75, 100]
    assert points[1][1] < points[2][1] < points[0][1] < words.SPARK_HEIGHT
    assert curve.label == "trend over 1 min 40 s: highest 40, now 10"
    assert words.spark([(0, 5)], span_s=10).line == ""


def test_a_flat_curve_lies_on_the_ground() -> None:
    (low, high) = {point.split(",")[1] for point in words.spark([(0, 0), (9, 0)], 9).area.split()}
    assert {float(low), float(high)} == {words.SPARK_HEIGHT, words.SPARK_HEIGHT - 1.5}


def test_history_keeps_ten_minutes_however_often_it_is_fed() -> None:
    history = History()
    for tick in range(5_000):
        history.add(sample(tick * 0.5, tick, 0))
    kept = history.samples
    assert len(kept) <= KEEP_S / EVERY_S + 2
    assert kept[-1].at - kept[0].at <= KEEP_S
    assert kept[-1].ends[PLACE] == 4_999


def test_a_backlog_is_as_old_as_its_oldest_record() -> None:
    history = History()
    history.add(sample(0, 10, 0))
    history.add(sample(5, 10, 0))
    history.add(sample(10, 30, 20))  # record 10 was written between 5 and 10
    history.add(sample(15, 30, 20))
    assert history.backlog_age() == Age(7.5, at_least=False)
    history.add(sample(20, 30, 0))
    assert history.backlog_age() == Age(0.0, at_least=False)


def test_a_backlog_older_than_the_memory_is_at_least_so_old() -> None:
    history = History()
    history.add(sample(0, 30, 20))
    history.add(sample(40, 31, 21))
    assert history.backlog_age() == Age(40, at_least=True)


def test_a_history_of_nothing_has_no_backlog() -> None:
    assert History().backlog_age() == Age(0.0, at_least=False)


@pytest.mark.parametrize(
    ("made", "state", "detail"),
    [
        (document(), State.SETTLED, "Every input is applied, and every change is published."),
        (document(1, 2_000), State.WORKING, "1 record to apply and 2,000 events to publish."),
        (document(backfills=[1, 2], settled=False), State.WORKING, "2 backfills to finish."),
        (document(settled=False), State.WORKING, "The last window is being acknowledged."),
        (document(releases=[1], settled=False), State.WORKING, "1 release to finish."),
        (document(holds=[{"held": 1}]), State.HELD, "1 removal of 1 segment waits for a decision."),
        (
            document(3, holds=[{"held": 2}]),
            State.HELD,
            "2 removals of 1 segment wait for a decision. 3 records to apply.",
        ),
        (document(3, workers=[{"present": False}]), State.STOPPED, "No worker runs. 3 records to apply."),
        (document(workers=[]), State.SETTLED, "Every input is applied, and every change is published."),
        ({}, State.WORKING, "The last window is being acknowledged."),
    ],
)
def test_the_verdict_says_what_is_left(made: dict[str, Any], state: State, detail: str) -> None:
    found = verdict(made)
    assert (found.state, found.detail) == (state, detail)


def test_a_worker_that_waits_says_for_what_and_a_hung_one_that_it_hangs() -> None:
    relay = Check("relay", ok=False, detail="no leader")
    database, broker = Check("database", ok=False, detail="refused"), Check("broker", ok=False, detail="refused")
    assert verdict(document(), unready=[relay])[1:] == ("Waiting for the relay", "no leader")
    # What waits for a service is no news beside it.
    assert verdict(document(), unready=[database, broker, relay])[1:] == (
        "Waiting for the database and Kafka",
        "refused",
    )
    assert unreadable("refused", [database])[1:] == ("Waiting for the database", "refused")
    assert unreadable("it takes long")[1:] == ("Waiting for an answer", "it takes long.")
    hung = verdict(document(), silent=[Check("intake", ok=False, detail="")], unready=[database])
    assert (hung.state, hung.detail) == (State.STOPPED, "This worker hangs (intake) and has to be restarted.")


class Watched:
    """An observer with a clock in the hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self.fault: Exception | None = None
        self.recent_reads = 0
        redactor = Redactor(["s3cr3t-w0rd"])
        self.observer = Observer(
            StatusDocument(self._read, redactor, lambda: self.now), self._recent, redactor, lambda: self.now
        )

    def _read(self) -> dict[str, Any]:
        if self.fault:
            raise self.fault
        return document()

    def _recent(self) -> list[dict[str, Any]]:
        self.recent_reads += 1
        if self.fault:
            raise self.fault
        return [{"n": self.recent_reads}]

    def observe_at(self, now: float) -> None:
        self.now = now
        self.observer.observe()


def test_recent_changes_are_read_only_while_somebody_looks() -> None:
    watched = Watched()
    watched.observe_at(5)
    assert watched.observer.look().recent.changes is None
    watched.observe_at(10)
    assert watched.observer.look().recent.changes == [{"n": 1}]
    watched.observe_at(11 + WATCHED_FOR_S)
    assert watched.recent_reads == 1


def test_what_was_known_stays_with_its_age_while_nothing_can_be_read() -> None:
    watched = Watched()
    watched.observe_at(5)
    watched.fault = RetryableError("refused: s3cr3t-w0rd")
    watched.observe_at(20)
    seen = watched.observer.look()
    assert seen.latest is not None
    assert seen.known is not None
    assert (seen.latest.document, seen.latest.error) == (None, "refused: ***")
    assert (seen.known.at, seen.known.document) == (5, document())


@pytest.mark.parametrize(
    ("fault", "said"),
    [(RetryableError("away: s3cr3t-w0rd"), "away: ***"), (ValueError("x"), "ValueError; the worker's log says more")],
)
def test_recent_changes_that_cannot_be_read_leave_the_last_ones(
    monkeypatch: pytest.MonkeyPatch, fault: Exception, said: str
) -> None:
    watched = Watched()
    watched.observer.look()
    watched.observe_at(5)

    def failing() -> list[dict[str, Any]]:
        raise fault

    monkeypatch.setattr(watched.observer, "_read_recent", failing)
    watched.observe_at(10)
    assert watched.observer.look().recent == ([{"n": 1}], said)


def test_an_observer_that_meets_a_defect_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    observer = Observer(StatusDocument(lambda: {"no": "status"}, Redactor()), list, Redactor())
    observed = threading.Semaphore(0)
    real = observer.observe

    def counted() -> None:
        observed.release()
        real()

    monkeypatch.setattr(observer, "observe", counted)
    observer.start()
    assert observed.acquire(timeout=10)
    observer.look()  # somebody begins to watch: it looks again at once
    assert observed.acquire(timeout=10)
    observer.close()


def test_the_wheel_holds_the_page(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"sync_worker/service/page/{name}" for name in ("page.html", "style.css", "script.js")} <= names
