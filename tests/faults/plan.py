"""What one run is to be, from its seed alone: how many workers, which settings, and which fault when, how long, how hard.

The same seed and options give the same plan in every process. Nothing here may look at a clock or at what is running.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import asdict, dataclass
from random import Random
from typing import Any, Literal

from tests.faults.kinds import KINDS, Kind

REGISTRY_EVERY = 5
HOLDS_EVERY = 3
FIRST_FAULT_S = 3.0
Protocol = Literal["classic", "consumer"]


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is to go wrong. `pick` chooses among what there is (a worker, a row), `strength` from 0 to 1 is the kind's own."""

    at_s: float
    kind: str
    duration_s: float
    pick: int
    strength: float


@dataclass(frozen=True, slots=True)
class Options:
    """What is asked for beside the seed."""

    duration_s: float = 25.0
    faults: int = 60
    workers: int | None = None
    """None: the seed decides, 2 to 4."""
    registry: bool | None = None
    """None: every fifth seed has one."""
    holds: bool | None = None
    """The removal breaker on, with limits that are crossed all the time; what it held is released in the end. None: every third seed."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A run."""

    seed: int
    options: Options
    workers: int
    partitions: int
    protocol: Protocol
    registry: bool
    holds: bool
    clocks: bool
    """Workers run with a library that lets their wall clock be set."""
    batch_max_records: int
    faults: tuple[Fault, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def settings(self) -> dict[str, str]:
        """Of the workers, by the names of contract §4."""
        limits = ("5", "20") if self.holds else ("0", "0")
        return {
            "SYNC_WORKER_GROUP_PROTOCOL": self.protocol,
            "SYNC_WORKER_BATCH_MAX_RECORDS": str(self.batch_max_records),
            "SYNC_WORKER_DRAIN_TIMEOUT_S": "8",
            "SYNC_WORKER_REMOVAL_HOLD_MIN": limits[0],
            "SYNC_WORKER_REMOVAL_HOLD_PERCENT": limits[1],
        }


def make_plan(seed: int, options: Options = Options(), *, available: Collection[str] = ("disk", "clock")) -> Plan:
    """`available`: what this machine has of what faults need; a kind that it has not is not planned."""
    # A string seeds by its digest, so that neighbouring seeds have nothing in common.
    random = Random(f"plan {seed}")
    workers = random.choice((2, 2, 3, 3, 4))
    registry = seed % REGISTRY_EVERY == 0 if options.registry is None else options.registry
    clocks = random.random() < 0.5
    protocol: Protocol = random.choice(("classic", "classic", "consumer"))
    partitions = random.randint(2, 5)
    batch = random.choice((20, 100, 500, 2000))
    has = {*available} - (set() if clocks else {"clock"}) | ({"registry"} if registry else set())
    possible = [kind for kind in KINDS if not kind.needs or kind.needs in has]
    # Singly and in combination: what one kind alone breaks is found more easily alone.
    alone = random.random() < 0.3
    faults = _few_kinds(random, possible, options) if alone else _all_kinds(random, possible, options)
    return Plan(
        seed=seed,
        options=options,
        workers=options.workers or workers,
        partitions=partitions,
        protocol=protocol,
        registry=registry,
        holds=seed % HOLDS_EVERY == 0 if options.holds is None else options.holds,
        clocks=clocks and "clock" in available,
        batch_max_records=batch,
        faults=tuple(sorted(faults, key=lambda fault: fault.at_s)),
    )


def _few_kinds(random: Random, possible: list[Kind], options: Options) -> list[Fault]:
    chosen = random.sample(possible, 3)
    repeatable = random.choice([kind for kind in possible if kind.at_most > 10])
    return _draw(random, [*chosen, repeatable], options)


def _all_kinds(random: Random, possible: list[Kind], options: Options) -> list[Fault]:
    return _draw(random, possible, options)


def _draw(random: Random, kinds: list[Kind], options: Options) -> list[Fault]:
    planned: Counter[str] = Counter()
    faults: list[Fault] = []
    while len(faults) < options.faults:
        open_ = [kind for kind in kinds if planned[kind.name] < kind.at_most]
        (kind,) = random.choices(open_, [kind.weight for kind in open_])
        planned[kind.name] += 1
        faults.append(
            Fault(
                at_s=round(random.uniform(FIRST_FAULT_S, options.duration_s), 2),
                kind=kind.name,
                duration_s=round(random.uniform(kind.shortest_s, kind.longest_s), 2),
                pick=random.randrange(1_000_000),
                strength=round(random.random(), 3),
            )
        )
    return faults
