"""Fuzzes decoding in several processes: `python -m tests.fuzz [--inputs N] [--processes N] [--seed N] [INPUT…]`.

Files that are named are run once each, as a fault that was found is run again. Exit code 1 when anything was found.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any


def main() -> int:
    """Run, report, and say where the inputs are that showed a fault."""
    arguments = _arguments()
    if arguments.again:
        return _again(arguments.again)
    directory = Path(tempfile.mkdtemp(prefix="fuzz-"))
    started = time.monotonic()
    share = -(-arguments.inputs // arguments.processes)
    seeds = range(arguments.seed, arguments.seed + arguments.processes)
    logs = [(directory / f"{seed}.log").open("wb") for seed in seeds]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.process", str(share), str(seed), str(directory)], stdout=log, stderr=log
        )
        for seed, log in zip(seeds, logs, strict=True)
    ]
    codes = [process.wait() for process in processes]
    for log in logs:
        log.close()
    reports = [json.loads(path.read_text("utf-8")) for path in sorted(directory.glob("*.json"))]
    print(json.dumps(_total(reports, time.monotonic() - started, arguments.seed)))
    for seed, code in zip(seeds, codes, strict=True):
        if code != 0:
            print(f"process {seed} found something (exit code {code}):", file=sys.stderr)
            print((directory / f"{seed}.log").read_text("utf-8", "replace")[-4000:], file=sys.stderr)
    for path in sorted(directory.glob("crash-*")):
        print(f"run it again with: python -m tests.fuzz {path}", file=sys.stderr)
    return int(any(codes))


def _total(reports: list[dict[str, Any]], seconds: float, seed: int) -> dict[str, Any]:
    outcomes: Counter[str] = Counter()
    for report in reports:
        outcomes.update(report["outcomes"])
    return {
        "engine": ", ".join(sorted({report["engine"] for report in reports})),
        "seed": seed,
        "processes": len(reports),
        "inputs": sum(report["inputs"] for report in reports),
        "seconds": round(seconds, 1),
        "peak_rss_mb": max((report["peak_rss_mb"] for report in reports), default=0),
        "outcomes": dict(outcomes.most_common()),
    }


def _again(paths: list[Path]) -> int:
    from tests.fuzz.targets import anything  # noqa: PLC0415 - after the arguments

    for path in paths:
        print(f"{path}: {anything(path.read_bytes())}")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=10_000_000, help="how many in all (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("again", nargs="*", type=Path, metavar="INPUT", help="an input to be run once more")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
