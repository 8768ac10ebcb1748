"""`python -m demo [--keep]`: from nothing to the main job in front of one's eyes, and nothing left behind.

Exit codes: 0 the story went as it should, 1 it didn't or something is missing, 2 wrong usage, 128 + n ended by signal n. Must never
leave a process or a file behind that it doesn't name.
"""

import argparse
import signal
import sys
import time
from collections.abc import Callable
from contextlib import closing
from types import FrameType
from typing import Final, NoReturn, TypeVar

from demo.errors import DemoError
from demo.keeping import tell_kept, tell_totals, tell_what_next
from demo.observe import Database
from demo.play import Play, Totals
from demo.services import Services
from demo.show import Screen
from demo.story import STORY
from devstack import DevstackError, Kind, Stack
from devstack import kept as kept_stack
from devstack.stack import choose_kind
from sync_worker.errors import SyncWorkerError
from sync_worker.service.logging import configure

Done = TypeVar("Done")

_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_received: Final[list[int]] = []
"""The signals that asked for the end."""


def main() -> int:
    """Run the demo; the exit code."""
    keep = _arguments().keep
    for number in _ENDING:
        signal.signal(number, _end_by_signal)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace", line_buffering=True)
    configure("error", "console")  # what goes wrong here is told as an error, once
    screen = Screen()
    try:
        _demo(screen, keep=keep)
    except (DemoError, DevstackError, SyncWorkerError) as error:
        sys.stderr.write(f"\ndemo failed: {error}\n")
        return 1
    except (KeyboardInterrupt, SystemError):
        # A signal's exception that hits a delivery callback is lost in the Kafka client, which raises SystemError instead.
        if not _received:
            raise
        sys.stderr.write("\ninterrupted; everything that was started has been ended\n")
        return 128 + _received[0]
    return 0


def _demo(screen: Screen, *, keep: bool) -> None:
    started = time.monotonic()
    kind = choose_kind()
    if kind is Kind.EXTERNAL:
        raise DemoError("the demo fills topics and a database: not those that others run (DEVSTACK=native or docker)")
    if keep and (running := kept_stack.kept()) is not None:
        raise DemoError(f"a stack is kept already, in {running.directory}: `python -m devstack down` ends it")
    screen.say(
        f"Takes half a minute, and a download the first time. Services: {kind}. In the tables, * marks who changed."
    )
    stack = _timed(screen, "Kafka and PostgreSQL", lambda: Stack.start(kind=kind, keep=keep))
    services = Services(stack)
    left = False
    try:
        if keep:
            kept_stack.remember(stack, temporary=True)
        screen.say("Logs and data, while it runs:")
        screen.command(str(stack.directory))
        totals = _perform(screen, services, keep=keep)
        tell_totals(screen, totals, time.monotonic() - started)
        if keep:
            tell_kept(screen, services)
            left = True
    finally:
        if not left:
            _end(stack, services)
    if not keep:
        tell_what_next(screen)


def _perform(screen: Screen, services: Services, *, keep: bool) -> Totals:
    """The worker's part: set up, played, checked, and ended again unless it is kept."""
    _timed(screen, "sync-worker migrate", lambda: services.command("migrate"))
    create = ("topics", "create", "--partitions", "3", "--replication-factor", "1")
    _timed(screen, f"sync-worker {' '.join(create)}", lambda: services.command(*create))
    _timed(screen, "sync-worker run, and two sync-worker tail to see what it publishes", services.start_worker)
    screen.say()
    settings = services.settings
    try:
        with closing(Database(settings.database_url.get_secret_value())) as database:
            totals = Play(services, database, settings, screen).perform(STORY)
        services.stop_tails()
        _check_totals(services, totals)
        if not keep:
            _timed(screen, "the worker ends: batch finished, group left", services.stop_worker)
    except (DemoError, SyncWorkerError) as error:
        raise DemoError(f"{error}\n\n--- end of the worker's log ---\n{services.worker_words()}") from error
    return totals


def _check_totals(services: Services, totals: Totals) -> None:
    """Whether the worker counts what we count, and its topic holds no change that came after its scene was over."""
    status = services.wait_settled()
    applied = sum(entry["position"] or 0 for entry in status["lag"])
    published = len(services.command("tail", "--from-beginning", "--until-end").splitlines())
    dead_letters = status["dead_letters"]["total"]
    ours = (totals.records_in, totals.changes.total(), totals.dead_letters)
    if (applied, published, dead_letters) != ours:
        raise DemoError(
            f"totals: records in {ours[0]}, changes {ours[1]}, dead letters {ours[2]} expected; "
            f"the worker applied {applied}, published {published} and {dead_letters}"
        )


def _end(stack: Stack, services: Services) -> None:
    """End everything and forget it. Bounded, so no signal may cut it short and leave half of it behind."""
    for number in _ENDING:
        signal.signal(number, signal.SIG_IGN)
    services.discard()
    stack.close()
    if (running := kept_stack.kept()) is not None and running.directory == stack.directory:
        running.end()


def _timed(screen: Screen, what: str, do: Callable[[], Done]) -> Done:
    """Do one step of setting up, told with its time."""
    screen.say(f"... {what}", "dim")
    started = time.monotonic()
    done = do()
    screen.say(f"    done after {time.monotonic() - started:.1f} s", "dim")
    return done


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m demo",
        description="Starts Kafka, PostgreSQL and the worker, plays a small story of people, segments and courses, shows "
        "input, table and EnrollmentChanged side by side, checks each scene, and ends everything.",
        epilog="exit codes: 0 all as it should be, 1 a difference or a failure, 2 wrong usage",
    )
    parser.add_argument(
        "--keep",
        action="store_true",
        help="leave services and worker running; says where, what to try, and how to end it",
    )
    return parser.parse_args()


def _end_by_signal(number: int, _frame: FrameType | None) -> NoReturn:
    _received.append(number)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
