"""One service is away for minutes while input goes on as before; what the workers do meanwhile, and how soon they have caught up."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from confluent_kafka.schema_registry import SchemaRegistryClient

from devstack.parts import Part
from tests.faults import ledger
from tests.faults.arena import Arena, open_arena
from tests.faults.framing import register
from tests.faults.stage import Stage, open_stage

PARTS = ("database", "broker", "registry")
STEADY_S = 20.0
PROBE_EVERY_S = 2.0
CAUGHT_UP_S = 1.0
_TIMEOUT_S = 3600.0
# A worker notices, and says so, within this time.
_NOTICED_S = 60.0
_RECORDS = ("SegmentMemberAdded", "SegmentMemberRemoved", "EnrollmentMethodChanged")


@dataclass(slots=True)
class Meanwhile:
    """What was seen of the workers while the service was away."""

    seconds: float = 0.0
    cpu_s: float = 0.0
    alive: bool = True
    ready: list[str] = field(default_factory=list)
    """Who said it was ready, though long enough had passed to notice."""


def add_to(what: Any) -> None:
    """The subcommand."""
    parser: argparse.ArgumentParser = what.add_parser("outage", help="one service away for minutes at full input")
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--minutes", type=float, default=10.0, help="(default: %(default)g)")
    parser.add_argument("--rate", type=float, default=1000.0, help="events per second (default: %(default)g)")
    parser.add_argument("--workers", type=int, default=2, help="(default: %(default)d)")
    parser.add_argument("--no-ledger", action="store_true", help="write nothing down")


def main(chosen: argparse.Namespace) -> int:
    registry = chosen.part == "registry"
    with (
        tempfile.TemporaryDirectory() as logs,
        open_arena(registry=registry, small_disk=False) as arena,
        open_stage(arena, Path(logs), chosen.workers, registry=registry) as stage,
    ):
        line = _outage(arena, stage, chosen)
        line["wrong"] = stage.end(_TIMEOUT_S)
    if not chosen.no_ledger:
        ledger.append(line)
    sys.stdout.write("".join(f"{name}: {value}\n" for name, value in line.items()))
    return 1 if line["wrong"] or not line["as_it_should"] else 0


def _outage(arena: Arena, stage: Stage, chosen: argparse.Namespace) -> dict[str, Any]:
    part: Part = {"database": arena.stack.postgres, "broker": arena.stack.kafka}.get(
        chosen.part
    ) or arena.stack.registry
    if chosen.part == "registry":
        stage.load.schema_ids = _new_ids(arena, "before")
    stage.load.start(chosen.rate)
    time.sleep(STEADY_S)
    before = stage.applied()
    time.sleep(STEADY_S)
    steady = (stage.applied() - before) / STEADY_S
    _say(f"steady: {steady:,.0f} events/s of {chosen.rate:,.0f}")
    later = _new_ids(arena, "later") if chosen.part == "registry" else {}
    part.kill()
    if later:
        # Ids that no worker has seen: what the registry is needed for.
        stage.load.schema_ids = later
    _say(f"the {chosen.part} is away")
    meanwhile = _look_on(stage, chosen.part, chosen.minutes * 60)
    part.start()
    back = time.monotonic()
    _say(f"it is back; meanwhile ready: {', '.join(meanwhile.ready) or 'nobody'}")
    first_s = _first_applied(stage, back)
    backlog = stage.load.sent - stage.applied()
    caught_up_s, rate = _catch_up(stage, chosen.rate)
    dead_letters = len(stage.site.dead_letters())
    ended = [worker.name for worker in stage.fleet.workers if not worker.running]
    cpu_share = meanwhile.cpu_s / meanwhile.seconds / len(stage.fleet.workers)
    return {
        **ledger.head("outage"),
        "part": chosen.part,
        "minutes": chosen.minutes,
        "workers": chosen.workers,
        "rate": chosen.rate,
        "steady_rate": round(steady, 1),
        "first_applied_s": round(first_s, 2),
        "backlog": backlog,
        "caught_up_s": round(caught_up_s, 1),
        "catch_up_rate": round(rate, 1),
        "cpu_share": round(cpu_share, 4),
        "dead_letters": dead_letters,
        "health": f"{'true' if meanwhile.ready else 'false'}, {'true' if meanwhile.alive else 'false'}",
        "ended": ended,
        "as_it_should": not dead_letters and not ended and meanwhile.alive and not meanwhile.ready and cpu_share < 0.25,
    }


def _look_on(stage: Stage, part: str, seconds: float) -> Meanwhile:
    """Probe the workers for as long as the service is away."""
    seen, began, cpu = Meanwhile(), time.monotonic(), _cpu(stage)
    while (passed := time.monotonic() - began) < seconds:
        answers = stage.probes()
        seen.alive = seen.alive and all(alive for _, alive, _ in answers)
        ready = [name for name, _, ready in answers if ready]
        # Whose partitions need nothing of the registry is ready without it.
        wrong = len(ready) == len(answers) if part == "registry" else bool(ready)
        if wrong and passed > min(_NOTICED_S, seconds / 2):
            seen.ready += [f"{name} after {passed:.0f} s" for name in ready]
        time.sleep(PROBE_EVERY_S)
    seen.seconds, seen.cpu_s = time.monotonic() - began, _cpu(stage) - cpu
    return seen


def _cpu(stage: Stage) -> float:
    usages = [worker.usage() for worker in stage.fleet.running]
    return sum(usage.cpu_s for usage in usages if usage is not None)


def _first_applied(stage: Stage, back: float) -> float:
    """Seconds from the service's return to the first record applied after it."""
    before: int | None = None
    while time.monotonic() - back < _TIMEOUT_S:
        try:
            now = stage.applied()
        except psycopg.OperationalError:
            continue
        before = now if before is None else before
        if now > before:
            return time.monotonic() - back
        time.sleep(0.02)
    raise AssertionError("nothing was applied after the service came back")


def _catch_up(stage: Stage, rate: float) -> tuple[float, float]:
    """Seconds until no more than a second's input is waiting, and the records applied per second meanwhile."""
    began, first = time.monotonic(), stage.applied()
    while True:
        applied = stage.applied()
        passed = time.monotonic() - began
        if stage.load.sent - applied <= rate * CAUGHT_UP_S and passed > 1.0:
            return passed, (applied - first) / passed
        assert passed < _TIMEOUT_S, "the workers did not catch up"
        time.sleep(0.1)


def _new_ids(arena: Arena, word: str) -> dict[str, int]:
    with SchemaRegistryClient({"url": arena.stack.registry.url}) as client:
        return {name: register(client, name, f"outage {word}", 0) for name in _RECORDS}


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
