"""What the ledger's lines come to: tables between markers, seeds that go on, slopes with their confidence."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from tests.faults import ledger, report
from tests.faults.kinds import KINDS
from tests.faults.nemesis import Entry
from tests.faults.plotting import plot, slopes

TEXT = "before\n<!-- ledger: {0} -->\nold\n<!-- /ledger -->\nafter\n"


def a_run(seed: int, faults: dict[str, int], **verdict: int) -> dict[str, object]:
    return {
        "what": "run", "seed": seed, "seconds": 1800.0, "records": 1000, "changes": 2000, "dead_letters": 3, "edits": 4, "faults": faults,
        "verdict": verdict, "settle_s": float(seed),
    }  # fmt: skip


RUNS = [a_run(1, {"worker_killed": 5}), a_run(2, {"worker_killed": 2, "disk_full": 1}, lost=7), a_run(2, {})]


def test_totals_are_sums_over_all_runs_and_name_the_seeds_that_found_something() -> None:
    text = report.render(TEXT.format("totals"), RUNS)
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    for line in ("| runs, seeds | 3, 2 |", "| hours | 1.5 |", "| faults that took effect | 8 |", "| lost | 7 |", "| repeated | 0 |",
                 "| runs that found something | 1 (seeds 2) |"):  # fmt: skip
        assert line in text


def test_what_a_run_that_did_not_settle_left_undone_is_late_and_not_lost() -> None:
    text = report.render(TEXT.format("totals"), [a_run(1, {}, lost=9, wrong=4, worker=1, unsettled=1)])
    for line in (
        "| lost | 0 |",
        "| wrong | 0 |",
        "| worker | 1 |",
        "| unsettled | 1 |",
        "found something | 1 (seeds 1) |",
    ):
        assert line in text


def test_a_mistake_of_the_harness_is_taken_back_and_told() -> None:
    mistaken: dict[str, object] = {
        "what": "mistaken",
        "of": ["run", 7, "then"],
        "why": "it believed what it should not",
    }
    lines = [a_run(7, {}, wrong=3) | {"at": "then"}, a_run(7, {}, lost=2) | {"at": "later"}, mistaken]
    text = report.render(TEXT.format("totals"), lines)
    for line in (
        "| wrong | 0 |",
        "| lost | 2 |",
        "mistake of the harness | 1 (seeds 7) |",
        "found something | 1 (seeds 7) |",
    ):
        assert line in text


def test_mutants_stand_with_what_noticed_them() -> None:
    caught = {"what": "mutant", "mutant": "no-lock", "leaves_out": "the lock", "seed": 3, "by": {"chains: wrong": 12}}
    assert "| no-lock | the lock | 3 | chains: wrong 12 |" in report.render(TEXT.format("mutants"), [caught])


def test_deaths_at_failpoints_are_summed_over_histories() -> None:
    histories = [
        {"what": "failpoints", "kinds": {"failpoint:drain": 2, "failpoint:on_lost": 1}, "changes": 5000, "verdict": {}},
        {"what": "failpoints", "kinds": {"failpoint:drain": 1}, "changes": 6000, "verdict": {"wrong": 1}},
    ]
    text = report.render(TEXT.format("failpoints"), histories)
    assert "4 deaths in 2 histories with 11,000 EnrollmentChanged; histories in which something was lost" in text
    assert "or wrong: 1." in text
    assert "| drain | 3 |\n| on lost | 1 |" in text


def test_every_kind_of_fault_has_a_row_with_what_its_runs_found() -> None:
    text = report.render(TEXT.format("faults"), RUNS)
    assert "| worker killed | 7 | 2 | 7 | 0 | 0 | 0 |" in text
    assert "| disk full | 1 | 1 | 7 | 0 | 0 | 0 |" in text
    assert text.count("| 0 | 0 | 0 | 0 | 0 | 0 |") == len(KINDS) - 2


def test_rendering_twice_changes_nothing() -> None:
    once = report.render(report.DOCUMENT.read_text("utf-8"), RUNS)
    assert report.render(once, RUNS) == once


def test_a_run_that_kafka_spoiled_is_left_out_whole_and_told() -> None:
    spoiled: dict[str, object] = {"what": "spoiled", "of": ["run", 7, "then"], "why": "an acknowledged record was gone"}
    lines = [
        a_run(7, {"worker_killed": 5}, lost=3) | {"at": "then"},
        a_run(7, {"worker_killed": 2}) | {"at": "later"},
        spoiled,
    ]
    text = report.render(TEXT.format("totals"), lines)
    for line in (
        "| runs, seeds | 1, 1 |",
        "| faults that took effect | 2 |",
        "| lost | 0 |",
        "Kafka broke its own word | 1 (seeds 7) |",
        "| runs that found something | 0 |",
    ):
        assert line in text


def test_a_marker_that_names_no_table_is_a_mistake() -> None:
    with pytest.raises(KeyError):
        report.render(TEXT.format("nothing"), RUNS)


def test_seeds_go_on_after_the_last_one_in_the_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    assert ledger.next_seed(path) == 1
    for line in RUNS:
        ledger.append(line, path)
    ledger.append({"what": "soak", "seed": 90}, path)
    assert ledger.next_seed(path) == 3


def samples(growth_per_hour: float) -> list[dict[str, float]]:
    random = Random(1)
    return [
        {
            "at_s": at_s, "rss_mb": 100 + growth_per_hour * at_s / 3600 + random.gauss(0, 2), "threads": 30.0, "connections": 10.0,
            "outbox_rows": 5.0, "table_bytes": 5e6, "index_bytes": 6e6, "outbox_bytes": 7e6, "dead_tuples": 100.0, "applied": at_s * 500,
        }
        for at_s in map(float, range(0, 3600, 5))
    ]  # fmt: skip


def test_noise_has_a_slope_that_may_be_zero_and_growth_has_not() -> None:
    flat, growing = slopes(samples(0.0))["rss_mb"], slopes(samples(20.0))["rss_mb"]
    assert flat.low < 0 < flat.high
    assert growing.low > 10
    assert growing.high < 30
    assert slopes(samples(0.0))["threads"].per_hour == 0


def test_a_soak_becomes_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "soak.png"
    plot(samples(0.0), [Entry("worker_killed", 60.0, 61.0, "worker-0")], path)
    assert path.read_bytes().startswith(b"\x89PNG")
