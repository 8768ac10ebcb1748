"""Renders the ledger into docs/reliability.md, between its markers: what was injected how often, and what came of it.

Figures are sums of the ledger's lines and nothing else; the text around them is written by hand and stays.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.faults import ledger
from tests.faults.kinds import KINDS
from tests.faults.workers import ROOT

CAUGHT = Path(__file__).parent / "mutants" / "caught.jsonl"
FAILPOINTS = ROOT / "tests" / "crash" / "failpoints.jsonl"
DOCUMENT = ROOT / "docs" / "reliability.md"
_VERDICTS = ("lost", "repeated", "reordered", "wrong")
_MARKERS = re.compile(r"(<!-- ledger: (\w+) -->\n).*?(<!-- /ledger -->)", re.DOTALL)


def add_to(what: Any) -> None:
    """The subcommand."""
    parser: argparse.ArgumentParser = what.add_parser("report", help="docs/reliability.md's tables from the ledger")
    parser.set_defaults(what="report")


def main() -> int:
    lines = [*ledger.read()]
    for path in (CAUGHT, FAILPOINTS):
        lines += map(json.loads, path.read_text("utf-8").splitlines())
    text = DOCUMENT.read_text("utf-8")
    DOCUMENT.write_text(render(text, lines), "utf-8")
    sys.stdout.write(f"{DOCUMENT.relative_to(ROOT)}: {len(lines)} lines of the ledger\n")
    return 0


def render(text: str, lines: Sequence[dict[str, Any]]) -> str:
    """The document with its tables made anew. A marker that names no table is a mistake."""
    tables = {
        "totals": _totals,
        "faults": _faults,
        "recovery": _recovery,
        "outages": _outages,
        "soaks": _soaks,
        "mutants": _mutants,
        "failpoints": _failpoints,
    }
    return _MARKERS.sub(lambda found: f"{found[1]}{chr(10).join(tables[found[2]](lines))}\n{found[3]}", text)


def _runs(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs, without what was corrected.

    What one that didn't settle left undone still stands in the topics: it is late, and as yet neither lost nor wrong."""
    runs = [line for line in ledger.corrected(lines)[0] if line["what"] == "run"]
    return [run | {"verdict": _settled(run["verdict"])} for run in runs]


def _settled(verdict: dict[str, int]) -> dict[str, int]:
    return {kind: n for kind, n in verdict.items() if "unsettled" not in verdict or kind not in _VERDICTS}


def _totals(lines: Sequence[dict[str, Any]]) -> Iterator[str]:
    runs = _runs(lines)
    verdicts = Counter(dict.fromkeys(_VERDICTS, 0))
    for run in runs:
        verdicts.update(run["verdict"])
    yield "| | |"
    yield "| --- | --- |"
    yield f"| runs, seeds | {len(runs):,}, {len({run['seed'] for run in runs}):,} |"
    yield f"| hours | {sum(run['seconds'] for run in runs) / 3600:.1f} |"
    yield f"| faults that took effect | {sum(sum(run['faults'].values()) for run in runs):,} |"
    yield f"| records in | {sum(run['records'] for run in runs):,} |"
    yield f"| EnrollmentChanged out | {sum(run['changes'] for run in runs):,} |"
    yield f"| dead letters | {sum(run['dead_letters'] for run in runs):,} |"
    yield f"| edits by hand beside them | {sum(run['edits'] for run in runs):,} |"
    for kind, number in verdicts.items():
        yield f"| {kind.replace('_', ' ')} | {number:,} |"
    _, corrections = ledger.corrected(lines)
    for what, told in (
        ("mistaken", "found, but a mistake of the harness"),
        ("spoiled", "left out, as Kafka broke its own word"),
    ):
        seeds = sorted(line["of"][1] for line in corrections if line["what"] == what and line["of"][0] == "run")
        if seeds:
            yield f"| {told} | {len(seeds):,} (seeds {_shortly(seeds)}) |"
    failed = sorted({run["seed"] for run in runs if run["verdict"]})
    yield f"| runs that found something | {sum(bool(run['verdict']) for run in runs):,}{f' (seeds {_shortly(failed)})' if failed else ''} |"


def _faults(lines: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Of each kind: how often, in how many runs, and what the runs that had it lost, repeated, reordered or got wrong."""
    yield "| fault | injected | in runs | lost | repeated | reordered | wrong rows |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    runs = _runs(lines)
    for kind in KINDS:
        had = [run for run in runs if run["faults"].get(kind.name)]
        times = sum(run["faults"][kind.name] for run in had)
        found = " | ".join(f"{sum(run['verdict'].get(verdict, 0) for run in had):,}" for verdict in _VERDICTS)
        yield f"| {kind.name.replace('_', ' ')} | {times:,} | {len(had):,} | {found} |"


def _recovery(lines: Sequence[dict[str, Any]]) -> Iterator[str]:
    """How long after the last fault of a run everything was applied and published."""
    settled = sorted(run["settle_s"] for run in _runs(lines) if "unsettled" not in run["verdict"])
    yield "| runs | median s | 95 % s | longest s |"
    yield "| ---: | ---: | ---: | ---: |"
    if settled:
        median, late = settled[len(settled) // 2], settled[min(len(settled) - 1, int(len(settled) * 0.95))]
        yield f"| {len(settled):,} | {median:.1f} | {late:.1f} | {settled[-1]:.1f} |"


def _outages(lines: Sequence[dict[str, Any]]) -> Iterator[str]:
    columns = (
        "away", "minutes", "at events/s", "first applied after, s", "catch-up events/s", "times the rate", "worker's CPU meanwhile",
        "dead letters", "readiness, liveness",
    )  # fmt: skip
    yield f"| {' | '.join(columns)} |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |"
    for line in lines:
        if line["what"] == "outage":
            yield (
                f"| {line['part']} | {line['minutes']:g} | {line['rate']:,.0f} | {line['first_applied_s']:.1f} "
                f"| {line['catch_up_rate']:,.0f} "
                f"| {line['catch_up_rate'] / line['rate']:.1f} | {line['cpu_share']:.1%} of a core | {line['dead_letters']} "
                f"| {line['health']} |"
            )


def _soaks(lines: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "| minutes | events/s | faults | figure | mean | slope per hour, second half | 95 % |"
    yield "| ---: | ---: | ---: | --- | ---: | ---: | --- |"
    for line in lines:
        if line["what"] == "soak":
            for name, slope in line["slopes"].items():
                yield (
                    f"| {line['minutes']:g} | {line['rate']:,.0f} | {line['faults']} | {name} | {slope['mean']:,.1f} {slope['unit']} "
                    f"| {slope['per_hour']:+,.2f} | {slope['low']:+,.2f} … {slope['high']:+,.2f} |"
                )


def _mutants(lines: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "| mutant | leaves out | noticed at seed | by |"
    yield "| --- | --- | ---: | --- |"
    for line in sorted((line for line in lines if line["what"] == "mutant"), key=lambda line: str(line["mutant"])):
        by = ", ".join(f"{checker} {number:,}" for checker, number in line["by"].items())
        yield f"| {line['mutant']} | {line['leaves_out']} | {line['seed']} | {by} |"


def _failpoints(lines: Sequence[dict[str, Any]]) -> Iterator[str]:
    histories = [line for line in ledger.corrected(lines)[0] if line["what"] == "failpoints"]
    deaths: Counter[str] = Counter()
    for line in histories:
        deaths.update(line["kinds"])
    wrong = sum(bool(line["verdict"]) for line in histories)
    yield (
        f"{deaths.total():,} deaths in {len(histories):,} histories with {sum(line['changes'] for line in histories):,} EnrollmentChanged;"
        f" histories in which something was lost, repeated, out of order or wrong: {wrong:,}."
    )
    yield ""
    yield "| failpoint | workers killed there |"
    yield "| --- | ---: |"
    for name, number in sorted(deaths.items()):
        yield f"| {name.removeprefix('failpoint:').replace('_', ' ')} | {number:,} |"


def _shortly(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds[:12])) + (", …" if len(seeds) > 12 else "")
