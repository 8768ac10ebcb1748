"""The kinds of faults there are: how often each is planned, how long it lasts, and what of it can't happen twice at once.

Data alone, so that a plan follows from its seed. How a fault is done is in tests/faults/nemesis, by the same name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Resource = Literal["", "broker", "database", "database line", "broker line", "registry line"]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of fault."""

    name: str
    weight: float
    shortest_s: float
    longest_s: float
    resource: Resource = ""
    """Faults of one resource come one after the other."""
    at_most: int = 1000
    """How many of it one run bears: what takes long to come back from."""
    needs: Literal["", "registry", "disk", "clock"] = ""
    """What not every run has."""


KINDS: tuple[Kind, ...] = (
    # workers
    Kind("worker_killed", 3.0, 0.0, 2.0, at_most=10),
    Kind("worker_frozen", 1.5, 3.0, 6.0, at_most=6),
    Kind("leader_frozen", 1.5, 6.0, 9.0, at_most=3),
    Kind("worker_terminated", 2.0, 0.0, 1.0, at_most=6),
    Kind("worker_added", 1.0, 3.0, 8.0, at_most=3),
    Kind("worker_taken_away", 1.0, 1.0, 6.0, at_most=3),
    Kind("worker_clock_jumped", 1.5, 1.0, 5.0, at_most=6, needs="clock"),
    # broker
    Kind("broker_killed", 0.7, 0.0, 2.0, "broker", at_most=2),
    Kind("broker_frozen", 1.0, 1.0, 5.0, "broker", at_most=3),
    Kind("partitions_added", 0.4, 0.0, 0.0, "broker", at_most=1),
    # database
    Kind("database_crashed", 1.0, 0.0, 1.5, "database", at_most=3),
    Kind("database_killed", 0.6, 0.0, 1.5, "database", at_most=2),
    Kind("database_frozen", 1.0, 0.5, 4.0, "database", at_most=3),
    Kind("sessions_terminated", 3.0, 0.0, 0.0),
    Kind("disk_full", 0.7, 1.0, 3.0, "database", at_most=2, needs="disk"),
    Kind("snapshot_held", 1.0, 5.0, 15.0, at_most=3),
    Kind("row_locked", 3.0, 0.3, 4.0),
    Kind("rows_locked_crosswise", 3.0, 0.2, 1.5),
    # the line to the database
    Kind("database_slow", 1.5, 1.0, 4.0, "database line"),
    Kind("database_narrow", 1.0, 1.0, 3.0, "database line"),
    Kind("database_stalled", 1.5, 0.5, 4.0, "database line"),
    Kind("database_half_open", 1.0, 1.0, 5.0, "database line"),
    Kind("database_refused", 1.0, 0.5, 3.0, "database line"),
    Kind("database_cut", 3.0, 0.2, 1.5, "database line"),
    Kind("commit_cut_before", 3.0, 0.3, 1.0, "database line"),
    Kind("commit_cut_after", 4.0, 0.3, 1.0, "database line"),
    # the line to the broker
    Kind("broker_slow", 1.5, 1.0, 4.0, "broker line"),
    Kind("broker_narrow", 1.0, 1.0, 3.0, "broker line"),
    Kind("broker_stalled", 1.5, 0.5, 4.0, "broker line"),
    Kind("broker_half_open", 1.0, 1.0, 5.0, "broker line"),
    Kind("broker_refused", 1.0, 0.5, 3.0, "broker line"),
    Kind("broker_cut", 3.0, 0.2, 1.5, "broker line"),
    # the registry
    Kind("registry_away", 3.0, 1.0, 5.0, "registry line", needs="registry"),
    Kind("registry_slow", 2.0, 1.0, 4.0, "registry line", needs="registry"),
    Kind("registry_failing", 3.0, 1.0, 5.0, "registry line", needs="registry"),
)
BY_NAME = {kind.name: kind for kind in KINDS}
