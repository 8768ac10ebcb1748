"""What a run came to: a table for the terminal, JSON for machines, Markdown for the documents.

Minimum, median and maximum over the rounds. Must never round a figure to a better one than was measured, nor leave out a round.
"""

import json
import os
import platform
import statistics
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.latency import Latency
from bench.machine import Noise
from bench.throughput import Span

RESULTS = Path(__file__).with_name("results")
CEILING = "bare SQL, one session"
COLUMNS = (
    "phase",
    "what",
    "events/s min / median / max",
    "of the ceiling",
    "CPU µs per event = PostgreSQL + Kafka + workers",
)


@dataclass(slots=True)
class Report:
    """Everything measured in one run, in the order it was."""

    options: dict[str, Any]
    throughput: list[tuple[int, str, int, Span]] = field(default_factory=list)  # methods, what, round, span
    latencies: list[Latency] = field(default_factory=list)
    noise: list[Noise] = field(default_factory=list)

    def rows(self, methods: int) -> list[tuple[str, ...]]:
        """The throughput table for so many methods per segment."""
        groups: defaultdict[tuple[str, str], dict[int, Span]] = defaultdict(dict)
        for of, what, round_, span in self.throughput:
            if of == methods:
                groups[span.phase, what][round_] = span
        rows: list[tuple[str, ...]] = []
        for (phase, what), spans in sorted(groups.items(), key=lambda item: _PHASES.index(item[0][0])):
            rates = sorted(span.rate for span in spans.values())
            ceilings = groups.get((phase, CEILING), {})
            ratios = [span.rate / ceilings[round_].rate for round_, span in spans.items() if round_ in ceilings]
            cpu = [span.cpu.us_per(span.events) for span in spans.values()]
            total, *parts = (f"{statistics.median(each[part] for each in cpu):.1f}" for part in _PARTS)
            rows.append((
                phase, what, " / ".join(f"{rate:,.0f}" for rate in (rates[0], statistics.median(rates), rates[-1])),
                f"{statistics.median(ratios):.2f}" if ratios and what != CEILING else "",
                f"{total} = {' + '.join(parts)}" if what != CEILING else parts[0],
            ))  # fmt: skip
        return rows

    def latency_rows(self) -> list[tuple[str, ...]]:
        return [
            tuple(f"{value:,.1f}" for value in (each.rate, each.achieved, each.p50, each.p99, each.max))
            for each in self.latencies
        ]

    def noise_rows(self) -> list[tuple[str, ...]]:
        return [
            (
                when,
                *(" / ".join(f"{value:g}" for value in three) for three in (each.cpu_ms, each.fsync_ms, each.wake_ms)),
                f"{each.load:.1f}",
            )
            for when, each in zip(("before", *("between",) * (len(self.noise) - 2), "after"), self.noise, strict=False)
        ]

    def show(self, console: Console) -> None:
        for title, columns, rows in self._tables():
            table = Table(*columns, title=title)
            for row in rows:
                table.add_row(*row)
            console.print(table)

    def markdown(self) -> str:
        parts = []
        for title, columns, rows in self._tables():
            lines = [
                f"**{title}**",
                "",
                "| " + " | ".join(columns) + " |",
                "| " + " | ".join("---" for _ in columns) + " |",
            ]
            parts.append("\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]))
        return "\n\n".join(parts) + "\n"

    def write_json(self) -> Path:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}.json"
        spans = [
            {"methods": methods, "what": what, "round": round_, **asdict(span), "events_per_s": span.rate}
            for methods, what, round_, span in self.throughput
        ]
        document = {
            "options": self.options, "machine": _machine(), "throughput": spans,
            "latency": [asdict(each) for each in self.latencies], "noise": [asdict(each) for each in self.noise],
        }  # fmt: skip
        path.write_text(json.dumps(document, indent=1), "utf-8")
        return path

    def _tables(self) -> list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
        tables: list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]] = []
        for methods in sorted({of for of, *_ in self.throughput}):
            title = (
                f"{methods} method{'s' if methods > 1 else ''} per segment, {self.options['rounds']} alternating rounds"
            )
            tables.append((title, COLUMNS, self.rows(methods)))
        if self.latencies:
            columns = ("events/s", "achieved", "p50 ms", "p99 ms", "max ms")
            tables.append(("Publish to EnrollmentChanged, one worker", columns, self.latency_rows()))
        columns = (
            "noise",
            "CPU ms min / median / max",
            "fsync ms min / median / p99",
            "late ms min / median / p99",
            "load",
        )
        tables.append(("The machine by itself", columns, self.noise_rows()))
        return tables


_PHASES = ("adds", "removes", "replay")
_PARTS = ("all", "postgres", "kafka", "workers")


def _machine() -> dict[str, Any]:
    return {
        "cpus": os.cpu_count(),
        "architecture": platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
