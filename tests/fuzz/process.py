"""One process that fuzzes: `python -m tests.fuzz.process COUNT SEED DIRECTORY`.

With atheris installed, libFuzzer chooses what to mutate by the coverage of the worker's code; without it, inputs come from
tests/fuzz/inputs.py alone. Memory is limited by the kernel and time by a watchdog: either fault ends the process with a traceback.
"""

from __future__ import annotations

import faulthandler
import importlib
import importlib.util
import json
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

# What decoding may take on top of what the process has when it begins.
HEADROOM_BYTES = 512 << 20
LONGEST_S = 120
REPORT_EVERY = 20_000
MUTANTS_PER_INPUT = 20

Target = Callable[[bytes], str]


class Counting:
    """Runs the target and keeps count; ends the process when it has run often enough."""

    def __init__(self, target: Target, count: int, report: Path, engine: str) -> None:
        self._target = target
        self._count = count
        self._report = report
        self._engine = engine
        self._outcomes: Counter[str] = Counter()
        self._started = time.monotonic()
        self.done = 0

    def run(self, data: bytes) -> None:
        """Take one input."""
        if self.done % REPORT_EVERY == 0:
            faulthandler.dump_traceback_later(LONGEST_S, exit=True)
            self._write()
        self._outcomes[self._target(data)] += 1
        self.done += 1
        if self.done == self._count:
            self._write()
            os._exit(0)  # libFuzzer has no other way out

    def _write(self) -> None:
        written = {
            "engine": self._engine,
            "inputs": self.done,
            "seconds": round(time.monotonic() - self._started, 1),
            "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            "outcomes": dict(self._outcomes.most_common()),
        }
        draft = self._report.with_suffix(".draft")
        draft.write_text(json.dumps(written), "utf-8")
        draft.replace(self._report)


def limit_memory() -> None:
    """A decoder that asks for more than it should gets a MemoryError, which nothing catches."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    limit = pages * resource.getpagesize() + HEADROOM_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def with_atheris(count: int, seed: int, directory: Path) -> None:
    """Fuzz under libFuzzer. Doesn't return."""
    atheris: Any = importlib.import_module("atheris")  # by name: it is not on every machine
    with atheris.instrument_imports(include=["sync_worker"]):
        from tests.fuzz import inputs, targets  # noqa: PLC0415 - after the instrumentation
    counting = Counting(targets.anything, count, directory / f"{seed}.json", "atheris")
    corpus = directory / f"corpus-{seed}"
    corpus.mkdir(exist_ok=True)
    random = Random(seed)
    for number in range(300):
        (corpus / f"seed-{number}").write_bytes(inputs.fresh(random))

    def mutator(data: bytes, max_size: int, mutation_seed: int) -> Any:
        draw = Random(mutation_seed)
        choice = draw.random()
        if choice < 0.05:
            return inputs.fresh(draw)[:max_size]
        if choice < 0.75:
            return inputs.mutated(draw, data)[:max_size]
        return atheris.Mutate(data, max_size)

    options = [
        f"-seed={seed}",
        f"-artifact_prefix={directory}/",
        "-max_len=12288",
        "-print_final_stats=0",
        "-verbosity=0",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], counting.run, custom_mutator=mutator)
    limit_memory()
    atheris.Fuzz()


def without(count: int, seed: int, directory: Path) -> None:
    """Fuzz with inputs that know the format, and nothing to guide them."""
    from tests.fuzz import inputs, targets  # noqa: PLC0415 - as above

    counting = Counting(targets.anything, count, directory / f"{seed}.json", "own inputs")
    random = Random(seed)
    limit_memory()
    while True:
        base = data = inputs.fresh(random)
        for _ in range(MUTANTS_PER_INPUT):
            try:
                counting.run(data)
            except BaseException:
                (directory / f"crash-{seed}-{counting.done}").write_bytes(data)
                raise
            data = inputs.mutated(random, random.choice((base, data)))


def main() -> None:
    """Fuzz until COUNT inputs were taken, or one of them showed a fault."""
    count, seed, directory = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    guided = importlib.util.find_spec("atheris") is not None
    (with_atheris if guided else without)(count, seed, directory)


if __name__ == "__main__":
    main()
