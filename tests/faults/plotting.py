"""A soak's samples as a picture, and how sure it is that what they show is flat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path
from typing import Any

from tests.faults.nemesis import Entry

FIGURES = {
    "rss_mb": "memory per worker, MB",
    "threads": "threads per worker",
    "connections": "connections",
    "table_mb": "tables without outbox, MB",
    "index_mb": "their indexes, MB",
    "outbox_mb": "outbox with index, MB",
    "dead_tuples": "dead tuples",
    "outbox_rows": "outbox, rows",
    "rate": "applied, events/s",
}
_UNITS = {"rss_mb": "MB", "table_mb": "MB", "index_mb": "MB", "outbox_mb": "MB"}
_SLOPES = ("rss_mb", "threads", "connections", "table_mb", "index_mb", "outbox_mb", "dead_tuples")
# Samples close to one another say nearly the same, so that they can't count each: a mean of these stands for its minutes.
_BLOCK_S = 120.0


@dataclass(frozen=True, slots=True)
class Slope:
    """Of a line through the second half, per hour, with the 95 % confidence interval."""

    mean: float
    unit: str
    per_hour: float
    low: float
    high: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def slopes(samples: Sequence[dict[str, float]]) -> dict[str, Slope]:
    """Of what must stay flat."""
    shown = _shown(samples)
    if not shown:
        return {}
    half = [sample for sample in shown if sample["at_s"] >= shown[-1]["at_s"] / 2]
    found = {name: _slope([(s["at_s"], s[name]) for s in half if name in s], _UNITS.get(name, "")) for name in _SLOPES}
    return {name: slope for name, slope in found.items() if slope is not None}


def _slope(points: Sequence[tuple[float, float]], unit: str) -> Slope | None:
    """Least squares over means of blocks; Student's t for how sure that is. None where there are too few."""
    blocks: dict[int, list[tuple[float, float]]] = {}
    for at_s, value in points:
        blocks.setdefault(int(at_s // _BLOCK_S), []).append((at_s / 3600, value))
    means = [(sum(x for x, _ in b) / len(b), sum(y for _, y in b) / len(b)) for b in blocks.values()]
    n = len(means)
    if n < 3:
        return None
    mean_x, mean_y = (sum(each[i] for each in means) / n for i in (0, 1))
    spread = sum((x - mean_x) ** 2 for x, _ in means)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in means) / spread
    rest = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in means)
    error = sqrt(rest / (n - 2) / spread) * _student(n - 2)
    return Slope(round(mean_y, 2), unit, round(slope, 3), round(slope - error, 3), round(slope + error, 3))


def _student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t."""
    table = {
        1: 12.71,
        2: 4.30,
        3: 3.18,
        4: 2.78,
        5: 2.57,
        6: 2.45,
        7: 2.36,
        8: 2.31,
        9: 2.26,
        10: 2.23,
        15: 2.13,
        20: 2.09,
        30: 2.04,
    }
    return next((value for degrees, value in sorted(table.items(), reverse=True) if degrees <= freedom), 1.96)


def _shown(samples: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """With what is worked out of the samples: megabytes, and the rate from one to the next."""
    shown = []
    before: dict[str, float] | None = None
    for sample in samples:
        sizes = {f"{name}_mb": sample[f"{name}_bytes"] / 1e6 for name in ("table", "index", "outbox")}
        passed_s = sample["at_s"] - before["at_s"] if before else 0.0
        rate = {"rate": (sample["applied"] - before["applied"]) / passed_s} if before and passed_s else {}
        shown.append({**sample, **sizes, **rate})
        before = sample
    return shown


def plot(samples: Sequence[dict[str, float]], faults: Sequence[Entry], path: Path) -> None:
    """One figure below the other, the faults as lines through all of them."""
    import matplotlib as mpl  # noqa: PLC0415 - only who plots needs it

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - as above

    shown = _shown(samples)
    figure, axes = plt.subplots(len(FIGURES), 1, figsize=(11, 1.7 * len(FIGURES)), sharex=True, layout="constrained")
    for axis, (name, title) in zip(axes, FIGURES.items(), strict=True):
        points = [(sample["at_s"] / 60, sample[name]) for sample in shown if name in sample]
        axis.plot([x for x, _ in points], [y for _, y in points], linewidth=0.9, color="#1f4e79")
        for fault in faults:
            axis.axvspan(
                fault.began_s / 60, max(fault.ended_s, fault.began_s + 2) / 60, color="#c0504d", alpha=0.25, linewidth=0
            )
        axis.set_ylim(0, 1.15 * max([y for _, y in points], default=1.0) or 1.0)
        axis.set_title(title, loc="left", fontsize=9)
        axis.grid(alpha=0.25)
    axes[-1].set_xlabel("minutes; red: a fault")
    figure.savefig(path, dpi=90)
    plt.close(figure)
