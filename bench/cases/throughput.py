"""Events per second and CPU per event, end to end: from records waiting in Kafka to EnrollmentChanged committed, beside the ceiling.

All variants of a round get the same facts; after each phase every row, and in the end every change, is compared with the model's.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial

from bench.cases import ceiling
from bench.checking import Expected, check_rows, check_topic, expected_of
from bench.frame import Case, Figure, Figures, Ground, Variant
from bench.load import PHASES, Load, Published, as_published
from bench.machine import cpu_seconds
from bench.site import BenchSite, ChangesReader, wait_for

CEILING = "ceiling: leanest SQL, one session"
OWN = "the worker's SQL, one session"


@dataclass(frozen=True, slots=True)
class Sizes:
    events: int = field(default=50_000, metadata={"help": "per phase; divided by the methods where there are several"})
    methods: tuple[int, ...] = field(default=(1, 5), metadata={"help": "per segment"})
    workers: tuple[int, ...] = field(default=(1, 2, 3), metadata={"help": "processes"})
    shapes: tuple[str, ...] = field(default=("uniform", "zipf"), metadata={"help": "how people spread over segments"})
    segments: int = field(default=100, metadata={"help": "segments"})


@lru_cache(maxsize=2)
def facts(load: Load, phases: tuple[str, ...] = PHASES) -> tuple[Load, dict[str, Expected], dict[str, list[Published]]]:
    """The load, what must come of it, and its records: made once for all that are compared in a round."""
    expected = expected_of(load, phases)
    return load, expected, {phase: as_published(load.phase(phase)) for phase in phases}


def maximum(ground: Ground, events: int) -> float:
    """What one worker adds at most, events per second: others' rates are shares of it."""
    load, expected, records = facts(Load(events, 1), ("adds",))
    with ground.site() as site:
        flow = Flow(site, load, 1)
        try:
            found = flow.run(records["adds"], expected["adds"].changes)["events_per_s"]
        finally:
            flow.close()
        check_rows(site, expected["adds"], "adds")
    ground.say(f"the maximum: {found:,.0f} events/s")
    return found


def variants(ground: Ground, sizes: Sizes) -> list[Variant]:
    kinds = [(shape, methods) for shape in sizes.shapes for methods in sizes.methods]

    def every(
        measure: Callable[[Load], dict[str, Figures]], kind: tuple[str, int]
    ) -> Callable[[int], dict[str, Figures]]:
        shape, methods = kind

        def measured(round_: int) -> dict[str, Figures]:
            # A new seed each round, the same for all that are compared in it.
            load = Load(sizes.events // methods, methods, sizes.segments, seed=round_, zipf=shape == "zipf")
            title = f"{methods} method{'s' if methods > 1 else ''} per segment, {shape}"
            return {f"{title}: {phase}": figures for phase, figures in measure(load).items()}

        return measured

    found = []
    for kind in kinds:
        found.append(
            Variant(CEILING, every(lambda load: ceiling.measure(ground, *facts(load)[:2], ceiling.leanest), kind))
        )
        found.append(Variant(OWN, every(lambda load: ceiling.measure(ground, *facts(load)[:2], ceiling.own), kind)))
        for number in sizes.workers:
            name = f"end to end, {number} worker{'s' if number > 1 else ''}"
            found.append(Variant(name, every(partial(end_to_end, ground, workers=number), kind)))
    return found


def end_to_end(
    ground: Ground, load: Load, workers: int, worker_url: Callable[[str], str] | None = None
) -> dict[str, Figures]:
    """Each phase with all its records waiting in Kafka when the clock starts; in the end all of them once more, which changes nothing."""
    load, expected, records = facts(load)
    found = {}
    with ground.site(worker_url=worker_url) as site:
        flow = Flow(site, load, workers)
        try:
            for phase, part in records.items():
                found[phase] = flow.run(part, expected[phase].changes)
                found[phase]["changes_per_s"] = found[phase]["events_per_s"] * load.methods
                check_rows(site, expected[phase], phase)
            found["replay"] = flow.run([record for part in records.values() for record in part])
            check_rows(site, expected["replay"], "replay")
        finally:
            flow.close()
        wait_for(site.published, "the outbox is published")
        check_topic(site, expected["replay"])
    return found


class Flow:
    """Workers that have the methods and wait, and a reader of what they publish."""

    def __init__(self, site: BenchSite, load: Load, workers: int) -> None:
        self._site = site
        self._reader: ChangesReader = site.changes_reader()
        self._sent = len(load.method_events)
        site.publish(site.settings.methods_topic, as_published(load.method_events))
        site.start_workers(workers)
        wait_for(lambda: site.applied() >= self._sent, "the methods are applied")

    def run(self, records: Sequence[Published], changes: int | None = None) -> Figures:
        """Until so many changes have come since the beginning, or, without a number, until all records are applied."""
        site = self._site
        with site.frozen():
            site.publish(site.settings.membership_topic, records)
            self._sent += len(records)
            before = cpu_seconds(site.stack, site.pids)
            started = time.perf_counter()
        if changes is None:
            self._wait_applied()
        else:
            self._reader.read_up_to(changes, site)
        seconds = time.perf_counter() - started
        per_event = cpu_seconds(site.stack, site.pids).since(before).us_per(len(records))
        self._wait_applied()
        return {
            "events_per_s": len(records) / seconds,
            **{f"cpu_us_{name}": value for name, value in per_event.items()},
        }

    def _wait_applied(self) -> None:
        wait_for(lambda: self._site.applied() >= self._sent, "all records are applied")

    def close(self) -> None:
        self._reader.close()


CASE = Case(
    name="throughput",
    title="Events per second and CPU per event, end to end",
    about="A replay is every record once more, which changes nothing. With several methods each event makes as many enrollments.",
    sizes=Sizes,
    variants=variants,
    figures=(
        Figure("events_per_s", "events/s"),
        Figure("changes_per_s", "changes/s"),
        Figure("cpu_us_all", "CPU µs/event", 1),
        Figure("cpu_us_postgres", "PostgreSQL", 1),
        Figure("cpu_us_kafka", "Kafka", 1),
        Figure("cpu_us_workers", "workers", 1),
    ),
    reference=CEILING,
    plots=("events_per_s", "cpu_us_all"),
)  # fmt: skip
