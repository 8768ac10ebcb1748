"""`python -m bench`: runs the cases on a durable native stack and says what they came to.

Exit code 1 where a round went wrong: then there are no figures.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.errors import WrongResult
from bench.latency import latency
from bench.load import Load
from bench.machine import calibrate
from bench.report import CEILING, Report
from bench.throughput import ceiling, end_to_end
from devstack import Stack
from sync_worker.database.migrate import migrate

CASES = ("throughput", "throughput-5", "latency")
TEMPLATE = "bench_template"


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--case", choices=CASES, action="append", help="which (several times for several); default: all"
    )
    parser.add_argument("--rounds", type=int, default=3, help="of each kind, alternating (default: %(default)s)")
    parser.add_argument(
        "--events",
        type=int,
        default=25_000,
        help="memberships per phase; a fifth with 5 methods (default: %(default)s)",
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="(default: 1 2)")
    parser.add_argument("--rate", type=int, default=500, help="events/s of the latency case (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10, help="of the latency case (default: %(default)s)")
    parser.add_argument(
        "--setting",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of the workers, as in contract §4, lower case",
    )
    parser.add_argument("--markdown", action="store_true", help="print Markdown instead of tables")
    return parser.parse_args()


def main() -> int:
    chosen = options()
    say = Console(stderr=True)
    report = Report(vars(chosen))
    try:
        with Stack.start(kind="native", durable=True) as stack, tempfile.TemporaryDirectory() as folder:
            migrate(stack.postgres.create_database(TEMPLATE))
            report.noise.append(calibrate())
            for case in chosen.case or CASES:
                if case == "latency":
                    _latency(report, stack, Path(folder), chosen, say)
                else:
                    _throughput(report, stack, Path(folder), chosen, say, methods=5 if case == "throughput-5" else 1)
                report.noise.append(calibrate())
    except WrongResult as wrong:
        say.print(f"[red]wrong result, no figures:[/red] {wrong}", highlight=False)
        return 1
    if chosen.markdown:
        sys.stdout.write(report.markdown())
    else:
        report.show(Console())
    say.print(f"JSON: {report.write_json()}", soft_wrap=True)
    return 0


def _throughput(
    report: Report, stack: Stack, folder: Path, chosen: argparse.Namespace, say: Console, *, methods: int
) -> None:
    users = chosen.events if methods == 1 else chosen.events // methods
    settings = _settings(chosen)
    for round_ in range(chosen.rounds):
        # A new seed each time, the same for all that are compared in a round.
        spans = ceiling(stack, TEMPLATE, folder, Load(users, methods, seed=round_))
        _keep(report, say, methods, CEILING, round_, spans)
        for workers in chosen.workers:
            what = f"end to end, {workers} worker{'s' if workers > 1 else ''}"
            spans = end_to_end(stack, TEMPLATE, folder, Load(users, methods, seed=round_), workers, **settings)
            _keep(report, say, methods, what, round_, spans)


def _keep(report: Report, say: Console, methods: int, what: str, round_: int, spans: list[Any]) -> None:
    report.throughput += [(methods, what, round_, span) for span in spans]
    rates = ", ".join(f"{span.phase} {span.rate:,.0f}/s" for span in spans)
    say.print(f"round {round_ + 1}, {methods} per segment, {what}: {rates}", highlight=False)


def _latency(report: Report, stack: Stack, folder: Path, chosen: argparse.Namespace, say: Console) -> None:
    for round_ in range(chosen.rounds):
        found = latency(stack, TEMPLATE, folder, chosen.rate, chosen.seconds / chosen.rounds, **_settings(chosen))
        report.latencies.append(found)
        say.print(
            f"round {round_ + 1}, {chosen.rate}/s: p50 {found.p50:.1f} ms, p99 {found.p99:.1f} ms", highlight=False
        )


def _settings(chosen: argparse.Namespace) -> dict[str, str]:
    return dict(setting.split("=", 1) for setting in chosen.setting)


if __name__ == "__main__":
    sys.exit(main())
