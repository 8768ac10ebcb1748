"""What a database that is two milliseconds away costs: end to end through a proxy that delays, beside the same proxy without delay."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import psycopg

from bench.cases.throughput import end_to_end
from bench.delay import delayed
from bench.frame import Case, Figure, Figures, Ground, Variant
from bench.load import Load


@dataclass(frozen=True, slots=True)
class Sizes:
    events: int = field(default=60_000, metadata={"help": "per phase"})
    round_trips: tuple[float, ...] = field(default=(2.0,), metadata={"help": "milliseconds"})
    workers: int = field(default=1, metadata={"help": "processes"})


def variants(ground: Ground, sizes: Sizes) -> list[Variant]:
    def at(round_trip_ms: float) -> Callable[[int], dict[str, Figures]]:
        def measured(round_: int) -> dict[str, Figures]:
            with delayed(ground.stack.postgres.url(), round_trip_ms / 2e3) as through:
                found = end_to_end(ground, Load(sizes.events, 1, seed=round_), sizes.workers, through)
                took = _round_trip_ms(through(ground.stack.postgres.url()))
            return {phase: {**figures, "round_trip_ms": took} for phase, figures in found.items()}

        return measured

    return [Variant(_name(each), at(each)) for each in (0.0, *sizes.round_trips)]


def _name(round_trip_ms: float) -> str:
    return f"{round_trip_ms:g} ms"


def _round_trip_ms(url: str) -> float:
    """As a session feels it."""
    taken = []
    with psycopg.connect(url, autocommit=True) as session:
        for _ in range(50):
            started = time.monotonic()
            session.execute("select 1")
            taken.append((time.monotonic() - started) * 1e3)
    return statistics.median(taken)


CASE = Case(
    name="roundtrip",
    title="A database two milliseconds away",
    about="Workers reach the database through a proxy that holds back what passes, in both directions; 0 ms is the same proxy.",
    sizes=Sizes,
    variants=variants,
    figures=(
        Figure("events_per_s", "events/s"),
        Figure("round_trip_ms", "round trip ms", 2),
        Figure("cpu_us_all", "CPU µs/event", 1),
    ),
    reference=_name(0.0),
)
