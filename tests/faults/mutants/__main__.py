"""`python -m tests.faults.mutants [NAME …]`: runs seeds with each mutant in the worker's place until a checker notices.

Exit code 1 where one was never noticed. What was caught, by which checker and seed, is kept in caught.jsonl.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.faults import ledger
from tests.faults.arena import Arena, open_arena
from tests.faults.mutants.catalogue import BY_NAME, MUTANTS, Mutant
from tests.faults.plan import Options, make_plan
from tests.faults.run import run
from tests.faults.workers import MUTANT

CAUGHT = Path(__file__).with_name("caught.jsonl")
LOGS = Path(tempfile.gettempdir()) / "sync-worker-mutants"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(BY_NAME)}; default: all")
    parser.add_argument("--seeds", type=int, default=15, help="at most, for each (default: %(default)d)")
    parser.add_argument("--first-seed", type=int, default=1, help="(default: %(default)d)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of traffic and faults (default: %(default)g)")
    parser.add_argument("--faults", type=int, default=40, help="planned in each (default: %(default)d)")
    chosen = parser.parse_args()
    logging.getLogger("psycopg").setLevel(logging.CRITICAL)
    mutants = [BY_NAME[name] for name in chosen.names] or MUTANTS
    with open_arena(registry=False) as arena:
        missed = [mutant.name for mutant in mutants if not _caught(arena, mutant, chosen)]
    sys.stdout.write(f"never noticed: {', '.join(missed) or 'none'}\n")
    return 1 if missed else 0


def _caught(arena: Arena, mutant: Mutant, chosen: argparse.Namespace) -> bool:
    os.environ[MUTANT] = mutant.name
    try:
        for seed in range(chosen.first_seed, chosen.first_seed + chosen.seeds):
            options = Options(chosen.seconds, chosen.faults, registry=False, holds=mutant.holds)
            result = run(
                arena,
                make_plan(seed, options, available=["disk"] if arena.disk else []),
                LOGS / f"{mutant.name}-{seed}",
            )
            # What Kafka made of the input is no worker's doing, and proves nothing of one.
            noticed = [violation for violation in result.violations if violation.kind != "harness"]
            if noticed:
                by = Counter(f"{violation.checker}: {violation.kind}" for violation in noticed)
                first = str(noticed[0]).splitlines()[0][:200]
                line = {
                    **ledger.head("mutant"), "mutant": mutant.name, "leaves_out": mutant.leaves_out, "seed": seed,
                    "faults": sum(result.taken.values()), "by": dict(by.most_common()), "first": first,
                }  # fmt: skip
                with CAUGHT.open("a", encoding="utf-8") as kept:
                    kept.write(json.dumps(line, ensure_ascii=False) + "\n")
                sys.stdout.write(f"{mutant.name}: caught at seed {seed} by {dict(by.most_common(4))}\n  {first}\n")
                sys.stdout.flush()
                result.discard_logs()
                return True
            sys.stdout.write(f"{mutant.name}: seed {seed} shows nothing ({sum(result.taken.values())} faults)\n")
            sys.stdout.flush()
            result.discard_logs()
    finally:
        del os.environ[MUTANT]
    return False


if __name__ == "__main__":
    sys.exit(main())
