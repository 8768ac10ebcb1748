"""Kills workers at every failpoint, alone and in every pair, and prints what came of it: `python -m tests.crash [--times N]`.

Each history is a site of its own with some ten pairs of deaths and a full comparison at the end. The pairs and everything that
happens follow from the seed. Results are appended to tests/crash/failpoints.jsonl; exit code 1 where anything was lost, repeated
or wrong.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations_with_replacement
from pathlib import Path
from random import Random
from uuid import uuid4

from devstack import Stack
from sync_worker.database.migrate import migrate
from tests.crash.conftest import GROUPS, SHORT_SESSION
from tests.crash.ground import SETTINGS, Ground, NotReached
from tests.crash.places import OF_WORKERS
from tests.faults import ledger
from tests.support.site import Site

RESULTS = Path(__file__).with_name("failpoints.jsonl")
TEMPLATE = "failpoints_template"
DEATHS_PER_HISTORY = 10


def main() -> int:
    """Run the histories, print the table."""
    arguments = _arguments()
    killed: Counter[str] = Counter()
    failed: list[str] = []
    places = arguments.places or OF_WORKERS
    with (
        tempfile.TemporaryDirectory(prefix="failpoints-") as directory,
        Stack.start(durable=True, kafka_properties=GROUPS) as stack,
    ):
        migrate(stack.postgres.create_database(TEMPLATE))
        for number, deaths in enumerate(_histories(places, arguments.times, arguments.seed)):
            seed = arguments.seed * 1000 + number
            wrong = _history(stack, Path(directory), seed, deaths, killed)
            if wrong:
                failed.append(f"seed {seed}, {deaths}: {wrong}")
                print(failed[-1], file=sys.stderr, flush=True)
    _print(killed, failed)
    return int(bool(failed))


def _histories(places: Sequence[str], times: int, seed: int) -> Iterator[list[tuple[str, ...]]]:
    """Every place alone and every pair, a place with itself too, in an order drawn from the seed, until each was killed `times`."""
    random = Random(seed)
    count: Counter[str] = Counter()
    while True:
        deaths = [*((place,) for place in places), *combinations_with_replacement(places, 2)]
        random.shuffle(deaths)
        for begin in range(0, len(deaths), DEATHS_PER_HISTORY):
            if min(count[place] for place in places) >= times:
                return
            part = deaths[begin : begin + DEATHS_PER_HISTORY]
            count.update(place for death in part for place in death)
            yield part


def _history(stack: Stack, parent: Path, seed: int, deaths: Sequence[tuple[str, ...]], killed: Counter[str]) -> str:
    """One site; what was wrong in the end, or nothing."""
    name = f"history_{seed}_{uuid4().hex[:6]}"
    directory = parent / name
    directory.mkdir()
    settings = {f"SYNC_WORKER_{key.upper()}": value for key, value in SETTINGS.items()}
    url = stack.postgres.create_database(name, template=TEMPLATE)
    site = Site(stack, url, directory, settings | {"SYNC_WORKER_KAFKA_PROPERTIES": SHORT_SESSION})
    started, before, changes, wrong, verdict = time.monotonic(), Counter(killed), 0, "", {}
    try:
        site.create_topics(3)
        ground = Ground(site, seed)
        for death in deaths:
            ground.kill(*death)
            killed.update(death)
        changes = ground.check()
    except NotReached as limit:
        wrong, verdict = str(limit), {"not reached": 1}
    except Exception:  # noqa: BLE001 - told, counted, and the next history begins
        wrong, verdict = traceback.format_exc(), {"wrong": 1}
    finally:
        site.close()
        stack.postgres.drop_database(name)
    line = {
        **ledger.head("failpoints"),
        "seed": seed,
        "seconds": round(time.monotonic() - started, 1),
        "kinds": {f"failpoint:{place}": count for place, count in sorted((killed - before).items())},
        "changes": changes,
        "verdict": verdict,
    }
    ledger.append(line, RESULTS)
    print(f"seed {seed}: {sum(map(len, deaths))} deaths, {changes} changes, {line['seconds']} s", flush=True)
    return wrong


def _print(killed: Counter[str], failed: Sequence[str]) -> None:
    print(f"{'failpoint':28} {'killed':>6}")
    for place, count in sorted(killed.items()):
        print(f"{place:28} {count:6}")
    print(
        f"{killed.total()} deaths; histories in which something was lost, repeated, out of order or wrong: {len(failed)}"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=20, help="how often at least at each (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("places", nargs="*", metavar="FAILPOINT", help="these alone (default: all that `run` reaches)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
