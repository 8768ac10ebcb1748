"""Numbers, times and curves as people read them. Pure functions; must never depend on a locale or on the machine's time zone."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

SPARK_WIDTH: Final = 100.0
SPARK_HEIGHT: Final = 24.0
_MARGIN: Final = 1.5


class Spark(NamedTuple):
    """A small curve as SVG coordinates, and what it says to those who don't see it. No points: nothing to draw yet."""

    line: str
    area: str
    label: str


def number(value: float | None) -> str:
    """1234567 as 1,234,567; a dash where there is none."""
    return "—" if value is None else f"{value:,.0f}"


def rate(value: float) -> str:
    """Per second, with a decimal below ten."""
    return f"{value:.1f}" if 0.05 <= value < 9.95 else f"{value:,.0f}"


def duration(seconds: float) -> str:
    """In the two largest units that matter: 3 s, 4 min 10 s, 2 h 5 min, 3 d 4 h."""
    if seconds < 0.95:
        return "0 s" if seconds < 0.05 else f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, size, smaller, smaller_size in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // smaller_size
            return f"{whole // size} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole} s"


def clock_time(moment: datetime) -> str:
    """The time of day in UTC."""
    return moment.astimezone(UTC).strftime("%H:%M:%S")


def day_and_time(moment: datetime) -> str:
    """Date and time in UTC, to the second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def spark(series: Sequence[tuple[float, float]], span_s: float) -> Spark:
    """A curve over the last `span_s` seconds that ends at the right; a series shorter than that begins further right."""
    if len(series) < 2:
        return Spark("", "", "no trend yet")
    newest = series[-1][0]
    highest = max(value for _, value in series)
    height = SPARK_HEIGHT - 2 * _MARGIN
    points = [
        (
            SPARK_WIDTH * max(0.0, 1 - (newest - at) / span_s),
            SPARK_HEIGHT - _MARGIN - height * (value / highest if highest else 0.0),
        )
        for at, value in series
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    ground = f"{SPARK_HEIGHT:.0f}"
    area = f"{points[0][0]:.1f},{ground} {line} {points[-1][0]:.1f},{ground}"
    seen = duration(newest - series[0][0])
    return Spark(line, area, f"trend over {seen}: highest {number(highest)}, now {number(series[-1][1])}")
