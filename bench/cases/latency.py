"""From a publisher's call to a read_committed consumer's receipt of EnrollmentChanged, at steady rates, beside a bare echo.

The echo's records are the same, on topics of the same site: what is above it is the worker's own.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

from bench.cases.throughput import facts, maximum
from bench.checking import check_rows, check_topic
from bench.echo import echo
from bench.errors import expect
from bench.frame import Case, Figure, Figures, Ground, Variant
from bench.load import Load, Published, as_published
from bench.site import ChangesReader, wait_for
from bench.traffic import Route, Traffic, percentiles, user_of_change

ECHO = "bare echo, Kafka to Kafka"
WORKER = "one worker"
_OF_MAXIMUM = 0.7
_WARM_UP_RATE = 1000.0


@dataclass(frozen=True, slots=True)
class Sizes:
    rates: tuple[int, ...] = field(default=(100, 500, 2000, 5000), metadata={"help": "events/s"})
    seconds: float = field(default=6.0, metadata={"help": "counted at each rate and round"})
    settling: float = field(
        default=3.0, metadata={"help": "seconds before these: a young broker's transactions are slow"}
    )
    warming: float = field(
        default=90.0,
        metadata={"help": "seconds of such traffic before the first round: a broker's compilers take minutes"},
    )
    maximum: int = field(
        default=40_000, metadata={"help": "events to find the maximum with, of which 70 %% is a rate, too; 0 = not"}
    )


def variants(ground: Ground, sizes: Sizes) -> list[Variant]:
    found_once = cache(lambda: maximum(ground, sizes.maximum))

    def all_rates(measure: Callable[[Ground, Sizes, float, int], Figures]) -> Callable[[int], dict[str, Figures]]:
        def measured(round_: int) -> dict[str, Figures]:
            rates = {f"{rate:,} events/s": float(rate) for rate in sizes.rates}
            if sizes.maximum:
                rates["70 % of the maximum"] = round(_OF_MAXIMUM * found_once(), -2)
            return {group: measure(ground, sizes, rate, round_) for group, rate in rates.items()}

        return measured

    return [Variant(ECHO, all_rates(_echo)), Variant(WORKER, all_rates(_worker))]


def _warm_up(ground: Ground, sizes: Sizes) -> None:
    """Records one by one, through both variants: from a backlog a broker gets other code compiled."""
    each = Sizes(seconds=sizes.warming / 2, settling=0.0)
    _echo(ground, each, _WARM_UP_RATE, 0)
    _worker(ground, each, _WARM_UP_RATE, 0)


def _worker(ground: Ground, sizes: Sizes, rate: float, round_: int) -> Figures:
    load, expected, records = facts(Load(int(rate * (sizes.seconds + sizes.settling)), 1, seed=round_), ("adds",))
    with ground.site() as site:
        site.publish(site.settings.methods_topic, as_published(load.method_events))
        site.start_workers(1)
        wait_for(lambda: site.applied() >= len(load.method_events), "the methods are applied")
        route = Route(site.stack.kafka.bootstrap_servers, site.settings.membership_topic, user_of_change)
        found = timed_traffic(site.changes_reader(), route, records["adds"], rate, sizes.settling)
        check_rows(site, expected["adds"], "adds")
        check_topic(site, expected["adds"])
    return found


def _echo(ground: Ground, sizes: Sizes, rate: float, round_: int) -> Figures:
    _, _, records = facts(Load(int(rate * (sizes.seconds + sizes.settling)), 1, seed=round_), ("adds",))
    with ground.site() as site:
        servers, settings = site.stack.kafka.bootstrap_servers, site.settings
        with echo(servers, settings.membership_topic, settings.changes_topic, site.name):
            route = Route(servers, settings.membership_topic, lambda message: bytes(message.key() or b""))
            return timed_traffic(site.changes_reader(), route, records["adds"], rate, sizes.settling)


def timed_traffic(
    reader: ChangesReader, route: Route, records: list[Published], rate: float, warm_up_s: float
) -> Figures:
    """Latencies of all records but those of the first seconds, and the rate that came of it."""
    traffic = Traffic(route, records, rate, reader)
    try:
        with traffic.running():
            traffic.wait_sent()
    finally:
        reader.close()
    expect("people of whom something came", len(traffic.received), len(records))
    times = list(traffic.sent.values())
    return {
        **percentiles(traffic.latencies_ms(times[0] + warm_up_s)),
        "events_per_s": (len(times) - 1) / (times[-1] - times[0]),
    }


CASE = Case(
    name="latency",
    title="Latency at steady rates, beside a bare echo",
    about="From the publisher's call to the receipt by a read_committed consumer. The echo copies from Kafka to Kafka in transactions.",
    sizes=Sizes,
    variants=variants,
    figures=(
        Figure("p50_ms", "p50 ms", 1), Figure("p99_ms", "p99 ms", 1), Figure("p999_ms", "p99.9 ms", 1), Figure("max_ms", "max ms", 1),
        Figure("events_per_s", "events/s sent"),
    ),
    reference=ECHO,
    plots=("p50_ms", "p99_ms"),
    kafka_jvm=(),
    warm_up=_warm_up,
)  # fmt: skip
