"""How long until a worker does its first work, how fast it catches up, and how long partitions rest when a worker joins or leaves."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from bench.cases.throughput import facts
from bench.checking import Expected, check_rows, check_topic
from bench.errors import WrongResult
from bench.frame import Case, Figure, Figures, Ground, Variant
from bench.load import Load, Published, as_published
from bench.site import BenchSite, wait_for
from bench.traffic import Route, Traffic, user_of_change


@dataclass(frozen=True, slots=True)
class Sizes:
    backlog: int = field(default=100_000, metadata={"help": "records that wait for the worker that starts"})
    rate: int = field(default=1000, metadata={"help": "events/s while workers come and go"})
    seconds: float = field(default=4.0, metadata={"help": "of traffic before and after each that comes or goes"})


def variants(ground: Ground, sizes: Sizes) -> list[Variant]:
    def under(protocol: str) -> Callable[[int], dict[str, Figures]]:
        return lambda round_: _backlog(ground, sizes, protocol, round_) | _rebalances(ground, sizes, protocol, round_)

    return [Variant(f"group protocol {protocol}", under(protocol)) for protocol in ("classic", "consumer")]


def _backlog(ground: Ground, sizes: Sizes, protocol: str, round_: int) -> dict[str, Figures]:
    load, expected, records = facts(Load(sizes.backlog, 1, seed=round_), ("adds",))
    with ground.site(group_protocol=protocol) as site:
        site.publish(site.settings.methods_topic, as_published(load.method_events))
        site.start_workers(1)
        wait_for(lambda: site.applied() >= len(load.method_events), "the methods are applied")
        site.stop_worker()
        site.publish(site.settings.membership_topic, records["adds"])
        reader = site.changes_reader()
        try:
            started = time.monotonic()
            site.spawn_worker()
            wait_for(lambda: site.logged("partition_started"), "the assignment", every_s=0.005)
            assigned = time.monotonic()
            topic = site.settings.membership_topic
            applied = f"select exists (select from position where topic = '{topic}' and next_offset > 0)"
            wait_for(lambda: site.one(applied)[0], "the first record", every_s=0.005)
            first = time.monotonic()
            reader.read_up_to(expected["adds"].changes, site)
            all_in = time.monotonic()
        finally:
            reader.close()
        _check(site, expected["adds"])
    return {
        "start-up, from the process to the first batch": {"seconds": first - started},
        "start-up, from the assignment to the first batch": {"seconds": first - assigned},
        f"catch-up: {sizes.backlog:,} records, from the process": {
            "seconds": all_in - started,
            "events_per_s": sizes.backlog / (all_in - first),
        },
    }  # fmt: skip


def _rebalances(ground: Ground, sizes: Sizes, protocol: str, round_: int) -> dict[str, Figures]:
    load = Load(int(sizes.rate * (8 * sizes.seconds + 60)), 1, seed=1000 + round_)
    records: list[Published] = as_published(load.adds)
    with ground.site(group_protocol=protocol) as site:
        site.publish(site.settings.methods_topic, as_published(load.method_events))
        site.start_workers(1)
        wait_for(lambda: site.applied() >= len(load.method_events), "the methods are applied")
        reader = site.changes_reader()
        route = Route(site.stack.kafka.bootstrap_servers, site.settings.membership_topic, user_of_change)
        traffic = Traffic(route, records, sizes.rate, reader)
        times = []
        try:
            with traffic.running():
                time.sleep(sizes.seconds)
                times.append(time.monotonic())
                time.sleep(sizes.seconds)
                times.append(time.monotonic())
                site.start_workers(1)
                time.sleep(sizes.seconds)
                times.append(time.monotonic())
                site.stop_worker()
                time.sleep(sizes.seconds)
                times.append(time.monotonic())
        finally:
            reader.close()
        wait_for(site.published, "the outbox is published")
        sent = len(traffic.sent)
        if sent == len(records):
            raise WrongResult("the traffic ended before the workers had come and gone: give it more seconds")
        found = site.one("select count(*) filter (where status = 'ACTIVE' and version = 1), count(*) from enrollment")
        if found != (sent, sent):
            raise WrongResult(f"{found} rows of {sent} people sent")
    names = ("nobody comes or goes", "a worker joins", "a worker leaves")
    longest = [traffic.latencies_ms(since, until)[-1] / 1e3 for since, until in pairwise(times)]
    return {
        f"longest wait of {sizes.rate:,} events/s while {name}": {"seconds": each}
        for name, each in zip(names, longest, strict=True)
    }


def _check(site: BenchSite, expected: Expected) -> None:
    check_rows(site, expected, "the backlog")
    check_topic(site, expected, decoded=False)


CASE = Case(
    name="starting",
    title="Start-up, catch-up, and workers that come and go",
    about="The longest wait is from the publisher's call to the receipt of EnrollmentChanged, of any event sent meanwhile.",
    sizes=Sizes,
    variants=variants,
    figures=(Figure("seconds", "seconds", 2), Figure("events_per_s", "events/s")),
)
