"""What runs came to: tables for the terminal, Markdown and plots for docs/performance.md.

Minimum, median and maximum over the rounds. Must never round a figure to a better one than was measured, nor leave out a round.
"""

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import plots
from bench.cases import CASES
from bench.frame import Case, Figure
from bench.results import KEPT, Result, Spread, read

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
IMAGES = DOCUMENT.parent / "images" / "bench"
BEGIN, END = "<!-- measured: written by `python -m bench report` -->", "<!-- /measured -->"


def show(result: Result, console: Console) -> None:
    """On the terminal."""
    case = CASES[result.case]
    for group, columns, rows in _tables(case, result):
        table = Table(*columns, title=group)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    table = Table(*_NOISE, title="the machine by itself")
    for row in _noise(result):
        table.add_row(*row)
    console.print(table)


def write(files: Sequence[Path]) -> int:
    """Keep these results, each in the place of its case's, and write the document's measured part from all that are kept.

    A file of another name that was put among them (growth-rows.json) comes after its case's own: what takes too long for one run.
    """
    KEPT.mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copyfile(file, KEPT / f"{read(file).case}.json")
    order = list(CASES)
    found = {path.stem: read(path) for path in KEPT.glob("*.json")}
    names = sorted(found, key=lambda name: (order.index(found[name].case), name))
    parts = [_section(CASES[found[name].case], found[name], name) for name in names]
    text = DOCUMENT.read_text("utf-8")
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    if not rest:
        sys.stderr.write(f"{DOCUMENT} has no line {BEGIN}\n")
        return 1
    DOCUMENT.write_text(f"{head}{BEGIN}\n\n" + "\n".join(parts) + f"\n{END}{tail}", "utf-8")
    return 0


def _section(case: Case, result: Result, name: str) -> str:
    IMAGES.mkdir(parents=True, exist_ok=True)
    pictures = []
    for figure in plots.drawn(case):
        path = IMAGES / f"{name}-{figure.name.replace('_', '-')}.svg"
        if plots.draw(case, result, figure, path):
            pictures += [f"![{case.title}: {figure.heading}](images/bench/{path.name})", ""]
    beside = name.removeprefix(case.name).replace("-", ", ")
    lines = [
        f"## {case.title}{beside}", "", case.about, "",
        f"`make bench CASE={case.name}`; measured {result.started} by `{result.command}`, {result.rounds} rounds, sizes {_sizes(result)}"
        + (f", settings {result.settings}" if result.settings else "") + ".", "",
        *pictures,
    ]  # fmt: skip
    for group, columns, rows in _tables(case, result):
        lines += [f"**{group}**", "", *_markdown(columns, rows), ""]
    lines += [
        "The machine by itself: " + machine_text(result.machine),
        "",
        *_markdown(_NOISE, list(_noise(result))),
        "",
    ]
    return "\n".join(lines)


def _sizes(result: Result) -> str:
    return ", ".join(
        f"{name} {' '.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in result.sizes.items()
    )


def machine_text(card: Mapping[str, Any]) -> str:
    """A card of the machine in a sentence."""
    postgresql = ", ".join(f"{name} {value}" for name, value in card["postgresql"].items())
    return (
        f"{card['processors']} of {card['processor']}, {card['memory_gib']} GiB, Linux {card['kernel']}, Python {card['python']}, "
        f"librdkafka {card['librdkafka']}, PostgreSQL with {postgresql}; Kafka, PostgreSQL, workers and publisher share it."
    )


def _tables(case: Case, result: Result) -> Iterator[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    for group in result.groups:
        shown = [
            figure for figure in case.figures
            if any(result.spread(group, variant, figure.name) for variant in result.variants(group))
        ]  # fmt: skip
        columns = ["variant", *(figure.heading for figure in shown)]
        if case.reference in result.variants(group):
            columns.insert(2, "ratio")
        if case.notes:
            columns.append("what it lacks")
        rows = [
            _row(case, result, group, variant, shown, with_ratio="ratio" in columns)
            for variant in result.variants(group)
        ]
        yield group, tuple(columns), rows


def _row(
    case: Case, result: Result, group: str, variant: str, shown: Sequence[Figure], *, with_ratio: bool
) -> tuple[str, ...]:
    cells = [_cell(result.spread(group, variant, figure.name), figure) for figure in shown]
    if with_ratio:
        ratio = None if variant == case.reference else result.ratio(group, variant, case.reference, shown[0].name)
        cells.insert(1, "" if ratio is None else f"{ratio:.2f}")
    if case.notes:
        cells.append(case.notes.get(variant, ""))
    return variant, *cells


def _cell(spread: Spread | None, figure: Figure) -> str:
    if spread is None:
        return ""
    low, median, high = (f"{value:,.{figure.digits}f}" for value in (spread.low, spread.median, spread.high))
    return median if low == high else f"{low} / {median} / {high}"


_NOISE = ("noise", "CPU ms min / median / max", "fsync ms min / median / p99", "late ms min / median / p99", "load")


def _noise(result: Result) -> Iterator[tuple[str, ...]]:
    for n, each in enumerate(result.noise):
        three = (" / ".join(f"{value:g}" for value in each[name]) for name in ("cpu_ms", "fsync_ms", "wake_ms"))
        yield ("before" if n == 0 else f"after round {n}", *three, f"{each['load']:.1f}")


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(columns)} |",
        f"| {' | '.join('---' for _ in columns)} |",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
