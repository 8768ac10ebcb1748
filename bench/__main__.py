"""`python -m bench run|report|profile|smoke`: measures, shows what was measured, looks into it, and guards it.

Exit code 1 where a round went wrong (then there are no figures), or where the smoke test counts more than it should.
"""

import argparse
import dataclasses
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import machine, profile, report, results, smoke
from bench.cases import CASES
from bench.cases.throughput import maximum
from bench.errors import WrongResult
from bench.frame import Case, Ground, run
from devstack import Stack
from devstack.stack import Kind, choose_kind

WARM_UP = 30_000
_WIDTH = 200


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    _add_run(commands.add_parser("run", help="measure cases"))
    shown = commands.add_parser("report", help="write docs/performance.md and its plots from kept results")
    shown.add_argument(
        "files", nargs="*", type=Path, help="results to keep, in the place of the case's; default: those kept"
    )
    profiled = commands.add_parser("profile", help="flame graphs, statement statistics and plans into docs/profiles/")
    profiled.add_argument("--events", type=int, default=100_000, help="per phase (default: %(default)s)")
    commands.add_parser("smoke", help="counts, not times: does a batch still cost what it should?")
    chosen = parser.parse_args(arguments)
    match chosen.command:
        case "run":
            return _run(chosen)
        case "report":
            return report.write(chosen.files)
        case "profile":
            return profile.main(chosen.events)
        case _:
            return smoke.main()


def _add_run(parser: argparse.ArgumentParser) -> None:
    cases = parser.add_subparsers(dest="case", metavar="CASE", help="default: all, one after another")
    everything = cases.add_parser("all", help="all of them")
    _add_common(everything)
    for case in CASES.values():
        one = cases.add_parser(case.name, help=case.title, description=f"{case.title}. {case.about}")
        _add_common(one)
        for size in dataclasses.fields(case.sizes):
            default: Any = size.default
            many = isinstance(default, tuple)
            of = type(default[0] if many else default)
            one.add_argument(
                f"--{size.name.replace('_', '-')}", type=of, nargs="+" if many else None, default=size.default,
                help=f"{size.metadata['help']} (default: %(default)s)",
            )  # fmt: skip


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--warm-up", type=int, default=WARM_UP, help="events before the first round (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, help="of each variant, alternating (default: the case's)")
    parser.add_argument(
        "--setting", action="append", default=[], metavar="NAME=VALUE", help="of the workers, as in contract §4, lower case"
    )  # fmt: skip
    parser.add_argument("--only", default="", metavar="TEXT", help="variants whose name has this in it")
    parser.add_argument(
        "--doctored", default="", metavar="MUTANT", help="of tests/faults/mutants: a wrong worker, to be refused"
    )


def _run(chosen: argparse.Namespace) -> int:
    say = Console(stderr=True)
    for case in CASES.values() if chosen.case in {None, "all"} else [CASES[chosen.case]]:
        sizes = case.sizes(**{
            size.name: tuple(value) if isinstance(value, list) else value
            for size in dataclasses.fields(case.sizes)
            if (value := getattr(chosen, size.name, size.default)) is not None
        })  # fmt: skip
        rounds = getattr(chosen, "rounds", None) or case.rounds
        settings = dict(setting.split("=", 1) for setting in getattr(chosen, "setting", []))
        try:
            path = _measure(case, sizes, rounds, settings, chosen, say)
        except WrongResult as wrong:
            say.print(f"[red]wrong result, no figures:[/red] {wrong}", highlight=False, markup=True)
            return 1
        # Wide enough for a table, also in a file.
        report.show(results.read(path), Console() if sys.stdout.isatty() else Console(width=_WIDTH))
        say.print(f"JSON: {path}", soft_wrap=True)
    return 0


def _measure(
    case: Case, sizes: Any, rounds: int, settings: dict[str, str], chosen: argparse.Namespace, say: Console
) -> Path:
    kind = Kind.EXTERNAL if choose_kind() is Kind.EXTERNAL else Kind.NATIVE
    say.print(f"{case.name}: {case.title}, {rounds} rounds", highlight=False)
    with (
        Stack.start(kind=kind, durable=True, kafka_jvm=case.kafka_jvm, postgres_parameters=case.parameters) as stack,
        tempfile.TemporaryDirectory() as folder,
    ):
        doctored = getattr(chosen, "doctored", "")
        ground = Ground(stack, Path(folder), lambda text: say.print(f"  {text}", highlight=False), settings, doctored)
        warm_up = getattr(chosen, "warm_up", WARM_UP)
        found = run(case, ground, sizes, rounds, lambda: maximum(ground, warm_up), getattr(chosen, "only", ""))
        command = shlex.join(["python", "-m", "bench", *sys.argv[1:]])
        return results.keep(case, command, rounds, sizes, settings, machine.card(stack), found)


if __name__ == "__main__":
    sys.exit(main())
