"""The ledger: one line for each run, by seed and commit, kept in the repository, so that totals over days count.

Lines are only ever appended, also those of runs that failed. A run with a mutant in the worker's place is never written.
"""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from tests.faults.checkers.violation import KINDS
from tests.faults.run import Result
from tests.faults.workers import ROOT

LEDGER = Path(__file__).with_name("ledger.jsonl")
# What a run is a test of.
_TESTED = ("sync_worker", "schemas")


def append(line: dict[str, Any], path: Path = LEDGER) -> None:
    with path.open("a", encoding="utf-8") as ledger:
        ledger.write(json.dumps(line, ensure_ascii=False) + "\n")


def read(path: Path = LEDGER) -> Iterator[dict[str, Any]]:
    if path.exists():
        for line in path.read_text("utf-8").splitlines():
            yield json.loads(line)


def corrected(lines: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The lines as they are read once their causes are known; and the corrections that were appended for it.

    A line that was written stays as it is, and another names it: {"what": …, "of": [what, seed, at], "why": …}. `mistaken` takes its
    verdict back, as that was the harness's own fault. `spoiled` leaves it out whole: Kafka or PostgreSQL broke its own word, and
    what a run counts after that says nothing about the worker, neither good nor bad.
    """
    told: list[dict[str, Any]] = []
    corrections: list[dict[str, Any]] = []
    for line in lines:
        (corrections if line["what"] in {"mistaken", "spoiled"} else told).append(line)
    named = {tuple(line["of"]): line["what"] for line in corrections}
    read: list[dict[str, Any]] = []
    for line in told:
        correction = named.get((line["what"], line.get("seed"), line.get("at")))
        if correction != "spoiled":
            read.append(line | {"verdict": {}} if correction == "mistaken" else line)
    return read, corrections


def next_seed(path: Path = LEDGER) -> int:
    """The first that no run had yet."""
    return max((line["seed"] for line in read(path) if line["what"] == "run"), default=0) + 1


def head(what: str) -> dict[str, Any]:
    """What every line begins with: what it is, when, and of which commit; dirty where the worker's files differ from it."""
    commit, dirty = tested()
    return {"what": what, "at": datetime.now(UTC).isoformat(timespec="seconds"), "commit": commit, "dirty": dirty}


@cache
def tested() -> tuple[str, bool]:
    """The commit, and whether the worker's files differ from it, when this was asked first: before anything is run."""
    return _git("rev-parse", "--short", "HEAD"), bool(_git("status", "--porcelain", "--", *_TESTED))


def line_of(result: Result) -> dict[str, Any]:
    """A run's line."""
    plan, history = result.plan, result.history
    counts = Counter(violation.kind for violation in result.violations)
    return {
        **head("run"),
        "seed": plan.seed,
        "seconds": round(result.seconds, 1),
        "traffic_s": plan.options.duration_s,
        "planned": len(plan.faults),
        "workers": plan.workers,
        "protocol": plan.protocol,
        "registry": plan.registry,
        "holds": plan.holds,
        "records": len(history.inputs),
        "changes": len(history.changes),
        "dead_letters": len(history.dead_letters),
        "edits": sum(edited.version is not None and edited.outcome == "committed" for edited in history.edits),
        "faults": dict(sorted(result.taken.items())),
        "verdict": {kind: counts[kind] for kind in KINDS if counts[kind]},
        "settle_s": result.settle_s,
        "replaced": len(result.replaced),
        "outbox_max": max((sample.outbox for sample in history.seen.samples), default=0),
        "rss_mb_max": max(history.seen.rss_max.values(), default=0) >> 20,
        "threads_max": max(history.seen.threads_max.values(), default=0),
    }


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, check=False, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else "unknown"
