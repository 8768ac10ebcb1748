"""Does it get slower as it grows? The same additions over an empty database and over large ones, and over unlike shapes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bench.cases.latency import timed_traffic
from bench.cases.memory import sampled
from bench.cases.throughput import Flow, facts
from bench.checking import check_rows, check_topic
from bench.filling import fill_methods, fill_rows, fill_segment
from bench.frame import Case, Figure, Figures, Ground, Variant
from bench.load import Load
from bench.site import BenchSite, wait_for
from bench.traffic import Route, user_of_change

EMPTY = "an empty database"
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Sizes:
    events: int = field(
        default=60_000, metadata={"help": "additions measured; a tenth where each touches many methods"}
    )
    rows: tuple[int, ...] = field(
        default=(500_000, 2_000_000), metadata={"help": "enrollment rows that are there before; 0 = none"}
    )
    methods: int = field(default=10_000, metadata={"help": "methods that are there before"})
    segment: int = field(default=1_000_000, metadata={"help": "members of one large segment, which the additions join"})
    of_each: int = field(default=500, metadata={"help": "segments that each person joins"})
    rate: int = field(default=500, metadata={"help": "events/s with which latency is measured beside so many rows"})
    seconds: float = field(default=20.0, metadata={"help": "of such a rate; 0 = not"})
    course: int = field(default=200, metadata={"help": "methods of one course on one segment"})


def variants(ground: Ground, sizes: Sizes) -> list[Variant]:
    paced = int(sizes.rate * sizes.seconds)

    def over(
        fill: Callable[[BenchSite, Load], int], events: int = sizes.events, methods: int = 1, **shape: Any
    ) -> Callable[[int], dict[str, Figures]]:
        return lambda round_: {"adds": _adds(ground, Load(events, methods, seed=round_, **shape), fill)}

    def over_rows(number: int) -> Callable[[int], dict[str, Figures]]:
        return lambda round_: {
            "adds": _adds(ground, Load(sizes.events + paced, 1, seed=round_), rows(number), paced, sizes.rate)
        }

    def nothing(_site: BenchSite, _load: Load) -> int:
        return 0

    def rows(number: int) -> Callable[[BenchSite, Load], int]:
        def filled(site: BenchSite, _load: Load) -> int:
            if number:
                fill_rows(site, number, say=ground.say)
            return number

        return filled

    def methods(site: BenchSite, _load: Load) -> int:
        fill_methods(site, sizes.methods)
        return 0

    def members(site: BenchSite, load: Load) -> int:
        fill_segment(site, load.segment_ids[0], sizes.segment, enrolled=True)
        return sizes.segment

    return [
        Variant(EMPTY, over_rows(0)),
        *(Variant(f"{number:,} rows", over_rows(number)) for number in sizes.rows if number),
        Variant(f"{sizes.methods:,} methods", over(methods)),
        Variant(f"a segment of {sizes.segment:,}", over(members, segments=1)),
        Variant(
            f"each person in {sizes.of_each} segments", over(nothing, segments=sizes.of_each, of_each=sizes.of_each)
        ),
        Variant(
            f"a course with {sizes.course} methods",
            over(nothing, sizes.events // 10, sizes.course, segments=1, one_course=True),
        ),
    ]


def _adds(
    ground: Ground, load: Load, fill: Callable[[BenchSite, Load], int], paced: int = 0, rate: float = 0
) -> Figures:
    """All but the last `paced` as fast as they go, these at a steady rate."""
    load, expected, records = facts(load, ("adds",))
    adds = records["adds"]
    at_once = len(adds) - paced
    # Each addition makes as many changes.
    changes = expected["adds"].changes * at_once // len(adds)
    with ground.site() as site:
        flow = Flow(site, load, 1)
        try:
            filled = fill(site, load)
            with sampled(site) as memory:
                figures = flow.run(adds[:at_once], changes)
        finally:
            flow.close()
        if paced:
            route = Route(site.stack.kafka.bootstrap_servers, site.settings.membership_topic, user_of_change)
            timed = timed_traffic(site.changes_reader(), route, adds[at_once:], rate, paced / rate / 4)
            figures |= {name: timed[name] for name in ("p50_ms", "p99_ms")}
        wait_for(site.published, "the outbox is published")
        check_rows(site, expected["adds"], "adds", filled=filled)
        check_topic(site, expected["adds"])
        size = site.one("select pg_database_size(current_database())")[0] / _MIB
        return {**figures, "worker_mb": memory()["peak_mb"], "size_mb": size}


CASE = Case(
    name="growth",
    title="Larger databases and other shapes",
    about="Additions end to end by one worker, then latency at a steady rate, of which the first quarter isn't counted. "
    "Where each addition touches many methods it makes as many contributions.",
    sizes=Sizes,
    variants=variants,
    figures=(
        Figure("events_per_s", "events/s"), Figure("cpu_us_all", "CPU µs/event", 1), Figure("cpu_us_postgres", "PostgreSQL", 1),
        Figure("p50_ms", "p50 ms", 1), Figure("p99_ms", "p99 ms", 1), Figure("worker_mb", "worker MiB", 1),
        Figure("size_mb", "database MiB"),
    ),
    reference=EMPTY,
    plots=("events_per_s", "cpu_us_all"),
    rounds=2,
)  # fmt: skip
