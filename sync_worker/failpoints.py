"""Named places where a test makes a worker die, wait or fail, to force the interleaving that would break it.

Off unless `SYNC_WORKER_TEST_FAILPOINTS` says otherwise, and then at the cost of one look into an empty dict. Nothing of
the worker may depend on a failpoint.

The variable holds `name=action` pairs separated by commas; `name=action@n` acts at the n-th time only. Actions: `exit`
(as kill -9 would), `hold:PATH` (until the file PATH is gone), `fail` (a RetryableError).
"""

import os
import time
from collections import Counter
from pathlib import Path

from sync_worker.errors import RetryableError

ENVIRONMENT_NAME = "SYNC_WORKER_TEST_FAILPOINTS"
KILLED = 137


def _parse(text: str) -> dict[str, tuple[str, int]]:
    armed = {}
    for pair in filter(None, text.split(",")):
        name, _, action = pair.partition("=")
        action, _, nth = action.partition("@")
        armed[name] = (action, int(nth or 0))
    return armed


_armed = _parse(os.environ.get(ENVIRONMENT_NAME, ""))
_reached: Counter[str] = Counter()


def arm(text: str) -> None:
    """Replace what is armed in this process; for tests that run a loop themselves."""
    _armed.clear()
    _reached.clear()
    _armed.update(_parse(text))


def reach(name: str) -> None:
    """The place `name` was reached."""
    if _armed and name in _armed:
        _act(name, *_armed[name])


def _act(name: str, action: str, nth: int) -> None:
    _reached[name] += 1
    if nth and _reached[name] != nth:
        return
    kind, _, argument = action.partition(":")
    if kind == "exit":
        os._exit(KILLED)
    elif kind == "fail":
        raise RetryableError(f"failpoint {name}")
    elif kind == "hold":
        hold = Path(argument)
        Path(f"{argument}.reached").touch()
        while hold.exists():
            time.sleep(0.01)
    else:
        raise ValueError(f"failpoint {name}: no such action {action!r}")
