"""Results are read as they were written, and shown with the worst and the best round beside the median."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import results
from bench.cases import CASES
from bench.frame import Case, Measured, Run
from bench.plots import draw, drawn
from bench.report import _tables
from bench.results import Result, Spread, keep, read

CASE = CASES["roundtrip"]


@pytest.fixture
def result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Result:
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    rates = {"0 ms": (1000.0, 2000.0, 900.0), "2 ms": (900.0, 1900.0, 450.0)}
    run = Run([
        Measured("adds", variant, round_, {"events_per_s": rate})
        for variant, values in rates.items() for round_, rate in enumerate(values)
    ])  # fmt: skip
    return read(keep(CASE, "python -m bench run roundtrip", 3, CASE.sizes(), {}, {}, run))


def test_a_ratio_is_the_median_of_each_rounds_own_ratio_not_that_of_medians(result: Result) -> None:
    assert result.ratio("adds", "2 ms", "0 ms", "events_per_s") == 0.9


def test_a_spread_leaves_no_round_out(result: Result) -> None:
    assert result.spread("adds", "0 ms", "events_per_s") == Spread(900.0, 1000.0, 2000.0)


def test_a_table_has_a_row_per_variant_and_the_ratio_beside_the_first_figure(result: Result) -> None:
    assert list(_tables(CASE, result)) == [
        (
            "adds",
            ("variant", "events/s", "ratio"),
            [("0 ms", "900 / 1,000 / 2,000", ""), ("2 ms", "450 / 900 / 1,900", "0.90")],
        )
    ]


def test_a_plot_of_the_same_result_has_the_same_bytes(result: Result, tmp_path: Path) -> None:
    (figure,) = drawn(CASE)
    assert draw(CASE, result, figure, tmp_path / "one.svg")
    assert draw(CASE, result, figure, tmp_path / "two.svg")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert ">adds<" in (tmp_path / "one.svg").read_text("utf-8")


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_case_draws_figures_that_it_has(case: Case) -> None:
    assert case.sizes() is not None
    assert len(drawn(case)) == max(len(case.plots), 1)
