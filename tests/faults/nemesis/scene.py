"""What a fault can reach: the services, the proxies, the workers and the database of the run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg

from tests.faults.arena import Arena
from tests.faults.workers import Fleet

# Longer than the drain limit of the workers and what a busy machine needs to end a process.
TERMINATION_S = 90.0


@dataclass(frozen=True, slots=True)
class Scene:
    """A run, as its faults see it."""

    arena: Arena
    fleet: Fleet
    database_url: str
    """Not through the proxy."""
    topics: Mapping[str, str]
    partitions_changed: Callable[[], None]
    over: threading.Event = field(default_factory=threading.Event)
    """Set when the run heals: whatever lasts, ends."""

    def last(self, seconds: float) -> None:
        """Let a fault last for so long, at most as long as the run."""
        self.over.wait(seconds)

    @contextmanager
    def session(self, **options: Any) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
        """A session of somebody else than the workers."""
        with psycopg.connect(
            self.database_url,
            options="-c search_path=sync_worker -c lock_timeout=3s",
            connect_timeout=5,
            application_name="nemesis",
            **options,
        ) as session:
            yield session
