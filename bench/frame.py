"""The frame of every case: variants that take turns in several rounds, on one stack, with the machine's noise measured around each.

A case says what it varies and which figures it gives; what is done with them is results.py's and report.py's. A round whose result
is not the one expected raises WrongResult, and then the run has no figures at all.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.errors import WrongResult
from bench.machine import Noise, calibrate
from bench.site import BenchSite, new_site
from devstack import Stack
from devstack.native import QUICK_JVM
from sync_worker.database.migrate import migrate

TEMPLATE = "bench_template"

Figures = dict[str, float]
"""By name; the unit is part of the name."""


@dataclass(frozen=True, slots=True)
class Figure:
    """How a figure is shown. `digits`: behind the point."""

    name: str
    heading: str
    digits: int = 0


@dataclass(frozen=True, slots=True)
class Ground:
    """What a case is measured on. settings: of the workers, by the names of contract §4. doctored: a mutant in the workers' place."""

    stack: Stack
    folder: Path
    say: Callable[[str], None]
    settings: Mapping[str, str] = field(default_factory=dict)
    doctored: str = ""

    @contextmanager
    def site(self, *, worker_url: Callable[[str], str] | None = None, **settings: str) -> Iterator[BenchSite]:
        """worker_url: by which way the workers reach the database, from its URL."""
        with new_site(
            self.stack,
            TEMPLATE,
            self.folder,
            {**self.settings, **settings},
            worker_url=worker_url,
            doctored=self.doctored,
        ) as site:
            yield site


@dataclass(frozen=True, slots=True)
class Variant:
    """One of what is compared. measure: figures by group (what is compared among itself), for a round's number."""

    name: str
    measure: Callable[[int], dict[str, Figures]]


@dataclass(frozen=True, slots=True)
class Case:
    """One of `python -m bench run`. sizes: a dataclass whose fields, with their defaults, are the options."""

    name: str
    title: str
    about: str
    sizes: type[Any]
    variants: Callable[[Ground, Any], list[Variant]]
    figures: tuple[Figure, ...]
    reference: str = ""
    """The variant that the first figure of the others is given as a ratio to, within a group and round."""
    plots: tuple[str, ...] = ()
    """Names of the figures that are drawn; the first one where there are none."""
    rounds: int = 3
    notes: Mapping[str, str] = field(default_factory=dict)
    """What must be said beside a variant's figures."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    """PostgreSQL's own, as far as a case needs other ones."""
    kafka_jvm: Sequence[str] = QUICK_JVM
    """Java's options for the broker. Its second compiler (none of them) costs more than it saves for the first minutes."""
    warm_up: Callable[[Ground, Any], None] | None = None
    """With the sizes, before the first round, where what warms up every case is not enough."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The figures of one variant in one round."""

    group: str
    variant: str
    round: int
    figures: Figures


@dataclass(slots=True)
class Run:
    """Everything measured in one run of a case, in the order it was."""

    measured: list[Measured] = field(default_factory=list)
    noise: list[Noise] = field(default_factory=list)


def run(case: Case, ground: Ground, sizes: Any, rounds: int, warm_up: Callable[[], object], only: str = "") -> Run:
    """Variants alternate; every other round goes backwards, so that who comes after whom isn't always the same.

    only: variants whose name has this in it. warm_up: what is done before the first, as a young broker is several times slower than
    one whose code is compiled.
    """
    found = Run()
    migrate(ground.stack.postgres.create_database(TEMPLATE))
    warm_up()
    if case.warm_up is not None:
        case.warm_up(ground, sizes)
    variants = [variant for variant in case.variants(ground, sizes) if only in variant.name]
    if not variants:
        raise WrongResult(f"no variant of {case.name} has {only!r} in its name")
    found.noise.append(calibrate())
    for round_ in range(rounds):
        for variant in _in_turn(variants, round_):
            for group, figures in variant.measure(round_).items():
                found.measured.append(Measured(group, variant.name, round_, figures))
                first = case.figures[0]
                value = figures.get(first.name)
                shown = "" if value is None else f" {value:,.{first.digits}f} {first.heading}"
                ground.say(f"round {round_ + 1}/{rounds}, {group}, {variant.name}:{shown}")
        found.noise.append(calibrate())
    return found


def _in_turn(variants: Sequence[Variant], round_: int) -> Sequence[Variant]:
    return variants if round_ % 2 == 0 else variants[::-1]
