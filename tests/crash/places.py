"""Every failpoint there is, and what makes a process reach it (sync_worker/failpoints.py).

A failpoint that is added to the worker must be added here: a test compares.
"""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path

import sync_worker


class How(Enum):
    """What has to happen for a place to be reached."""

    TRAFFIC = "records arrive, methods change, holds end"
    LEAVING = "the worker is told to stop"
    FROZEN = "the worker stands still for longer than its group waits"
    COMMAND = "a command is run that operators run; its own tests kill it there"


PLACES: dict[str, How] = {
    **dict.fromkeys(("on_assign", "after_positions", "after_rows", "before_commit", "after_commit"), How.TRAFFIC),
    **dict.fromkeys(
        ("relay_fenced", "relay_due", "relay_window_opened", "relay_publishing", "relay_committed", "relay_marked"), How.TRAFFIC
    ),
    **dict.fromkeys(
        ("backfill_people", "backfill_taken", "backfill_locked", "backfill_before_commit", "backfill_after_commit"), How.TRAFFIC
    ),
    **dict.fromkeys(("release_before_commit", "release_after_commit"), How.TRAFFIC),
    **dict.fromkeys(("drain", "on_revoke"), How.LEAVING),
    "on_lost": How.FROZEN,
    **dict.fromkeys(("erase_dead_letters_gone", "erase_before_commit"), How.COMMAND),
    **dict.fromkeys(
        ("adopt_read", "adopt_fenced", "adopt_planned", "adopt_before_commit", "adopt_committed", "adopt_finished"), How.COMMAND
    ),
    **dict.fromkeys(("reconcile_before_commit", "reconcile_after_commit"), How.COMMAND),
    **dict.fromkeys(("republish_before_commit", "republish_after_commit"), How.COMMAND),
    **dict.fromkeys(("bookmark_moved", "replacement_page", "replay_acknowledged"), How.COMMAND),
}  # fmt: skip
# Those that `run` reaches; the others are a command's.
OF_WORKERS = tuple(name for name, how in PLACES.items() if how is not How.COMMAND)
# At these a worker dies again each time it starts, whatever else happens.
AT_ONCE = frozenset({"on_assign", "relay_fenced"})


def in_the_code() -> set[str]:
    """The names that the worker's code gives to `reach`."""
    files = Path(sync_worker.__file__).parent.rglob("*.py")
    return {name for file in files for name in re.findall(r'\breach\("(\w+)"\)', file.read_text("utf-8"))}
