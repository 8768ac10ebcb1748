"""What a run came to, as JSON: one file per run of a case, everything in it that the report shows.

Files are made in results/ and forgotten there; those that the documents show are copied to results/kept/ by `python -m bench report`.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from bench.frame import Case, Measured, Run

RESULTS = Path(__file__).with_name("results")
KEPT = RESULTS / "kept"


@dataclass(frozen=True, slots=True)
class Spread:
    """Of a figure over the rounds."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        return cls(min(values), statistics.median(values), max(values))


@dataclass(frozen=True, slots=True)
class Result:
    """A run of a case as its file has it."""

    case: str
    started: str
    command: str
    rounds: int
    sizes: dict[str, Any]
    settings: dict[str, str]
    machine: dict[str, Any]
    noise: list[dict[str, Any]]
    measured: list[Measured]

    @property
    def groups(self) -> list[str]:
        return list(dict.fromkeys(each.group for each in self.measured))

    def variants(self, group: str) -> list[str]:
        """In the order of the first round."""
        return list(dict.fromkeys(each.variant for each in self.measured if each.group == group))

    def spread(self, group: str, variant: str, figure: str) -> Spread | None:
        values = list(self._by_round(group, variant, figure).values())
        return Spread.of(values) if values else None

    def ratio(self, group: str, variant: str, reference: str, figure: str) -> float | None:
        """The median of the ratios of each round: both were measured within minutes."""
        ours, theirs = self._by_round(group, variant, figure), self._by_round(group, reference, figure)
        ratios = [value / theirs[round_] for round_, value in ours.items() if theirs.get(round_)]
        return statistics.median(ratios) if ratios else None

    def _by_round(self, group: str, variant: str, figure: str) -> dict[int, float]:
        return {
            each.round: each.figures[figure]
            for each in self.measured
            if (each.group, each.variant) == (group, variant) and figure in each.figures
        }


def keep(
    case: Case, command: str, rounds: int, sizes: Any, settings: dict[str, str], machine: dict[str, Any], found: Run
) -> Path:
    """Write the run's file; where it is."""
    now = datetime.now(UTC)
    result = Result(
        case.name, now.isoformat(timespec="seconds"), command, rounds, asdict(sizes), settings, machine,
        [asdict(each) for each in found.noise], found.measured,
    )  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{case.name}-{now:%Y%m%dT%H%M%SZ}.json"
    path.write_text(json.dumps(asdict(result), indent=1) + "\n", "utf-8")
    return path


def read(path: Path) -> Result:
    document = json.loads(path.read_text("utf-8"))
    return Result(**{**document, "measured": [Measured(**each) for each in document["measured"]]})
