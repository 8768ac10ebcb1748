"""`python -m tests.faults`: runs seeds, or one seed again. Exit code 1 where a checker found something.

Without a seed it goes on where the ledger ends, for as many minutes as it is given.
"""

from __future__ import annotations

import argparse
import gc
import logging
import sys
import tempfile
import time
from pathlib import Path

from tests.faults import failure, ledger, outage, report, soak
from tests.faults.arena import Arena, open_arena
from tests.faults.plan import REGISTRY_EVERY, Options, make_plan
from tests.faults.run import Result, run
from tests.faults.workers import clock_library

LOGS = Path(tempfile.gettempdir()) / "sync-worker-faults"


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    what = parser.add_subparsers(dest="what", required=True)
    runs = what.add_parser("run", help="seeds, one after the other")
    runs.add_argument("--seed", type=int, help="this one alone; default: from the first that the ledger doesn't have")
    runs.add_argument("--seeds", type=int, help="so many, however long it takes")
    runs.add_argument("--minutes", type=float, default=10.0, help="as many as fit (default: %(default)g)")
    runs.add_argument("--workers", type=int, help="default: the seed decides, 2 to 4")
    runs.add_argument(
        "--seconds", type=float, default=25.0, help="of traffic and faults in each (default: %(default)g)"
    )
    runs.add_argument("--faults", type=int, default=Options().faults, help="planned in each (default: %(default)d)")
    runs.add_argument(
        "--holds",
        action="store_true",
        default=None,
        help="the removal breaker on, with low limits; default: every third seed",
    )
    runs.add_argument("--logs", type=Path, default=LOGS, help="kept of a run that failed (default: %(default)s)")
    runs.add_argument("--no-ledger", action="store_true", help="write nothing down")
    outage.add_to(what)
    soak.add_to(what)
    report.add_to(what)
    return parser.parse_args()


def main() -> int:
    chosen = options()
    ledger.tested()
    # What a client complains about while its service is away is no news here.
    logging.getLogger("psycopg").setLevel(logging.CRITICAL)
    match chosen.what:
        case "run":
            return _run(chosen)
        case "outage":
            return outage.main(chosen)
        case "soak":
            return soak.main(chosen)
        case _:
            return report.main()


def _run(chosen: argparse.Namespace) -> int:
    deadline = time.monotonic() + chosen.minutes * 60
    seed = chosen.seed if chosen.seed is not None else ledger.next_seed()
    wanted = 1 if chosen.seed is not None and not chosen.seeds else chosen.seeds
    last = seed + wanted - 1 if wanted else None
    registry = last is None or any(each % REGISTRY_EVERY == 0 for each in range(seed, last + 1))
    failed: list[int] = []
    began, faults, seeds = time.monotonic(), 0, 0
    with open_arena(registry=registry) as arena:
        while (seed <= last) if last is not None else time.monotonic() < deadline:
            result = _one(arena, seed, chosen)
            faults += sum(result.taken.values())
            seeds += 1
            if result.violations:
                failed.append(seed)
            seed += 1
            # A history is large, and its threads, clients and tables hold one another: hours of them don't wait for their turn.
            del result
            gc.collect()
    minutes = (time.monotonic() - began) / 60
    _say(f"{seeds} seeds, {faults} faults, {minutes:.1f} minutes; failed: {', '.join(map(str, failed)) or 'none'}")
    return 1 if failed else 0


def _one(arena: Arena, seed: int, chosen: argparse.Namespace) -> Result:
    plan = make_plan(
        seed,
        Options(chosen.seconds, chosen.faults, chosen.workers, holds=chosen.holds),
        available=[*(["disk"] if arena.disk else []), *(["clock"] if clock_library() else [])],
    )
    result = run(arena, plan, chosen.logs / f"seed-{seed}")
    history = result.history
    verdict = f"{len(result.violations)} VIOLATIONS" if result.violations else "ok"
    _say(
        f"seed {seed}: {verdict}; {sum(result.taken.values())} of {len(plan.faults)} faults, {len(history.inputs)} records, "
        f"{len(history.changes)} changes, {len(history.dead_letters)} dead letters, "
        f"{sum(each.version is not None for each in history.edits)} of {len(history.edits)} edits, {plan.workers} workers, {plan.protocol}"
        f"{', registry' if plan.registry else ''}{', holds' if plan.holds else ''}; settled {result.settle_s:.1f} s after the "
        f"last fault; {result.seconds:.0f} s in all"
    )
    if not chosen.no_ledger:
        ledger.append(ledger.line_of(result))
    if result.violations:
        _say(failure.describe(result))
        failure.write(result)
    else:
        result.discard_logs()
    return result


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
