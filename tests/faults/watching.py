"""Looks on during a run, from outside: positions, outbox, sessions of the database; memory and threads of the workers.

It must never hold anything up: short statements on a session of its own, and an outage is only a gap in what it saw.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

import psycopg

from tests.faults.workers import Fleet

EVERY_S = 0.15
_LOOK = """
select (select coalesce(json_object_agg(topic || '/' || partition, next_offset), '{}') from position) as positions,
       (select count(*) from outbox) as outbox,
       (select count(*) from outbox, (select from_snapshot from relay_window order by number desc limit 1)
        where xid < pg_snapshot_xmin(from_snapshot)) as outbox_published,
       (select coalesce(max(number), 0) from relay_window) as relay_window,
       (select count(*) from backfill) as backfills,
       (select count(*) from pg_stat_activity where datname = current_database() and application_name like 'sync-worker %') as sessions
"""


@dataclass(frozen=True, slots=True)
class Sample:
    """One look. `at_s` counts from the beginning of the run."""

    at_s: float
    positions: dict[str, int]
    outbox: int
    outbox_published: int
    """Of these the rows of windows before the newest one."""
    relay_window: int
    backfills: int
    sessions: int


@dataclass(slots=True)
class Seen:
    """What a watcher saw of a run."""

    samples: list[Sample] = field(default_factory=list)
    rss_max: dict[str, int] = field(default_factory=dict)
    threads_max: dict[str, int] = field(default_factory=dict)


class Watcher:
    """From `start` to `stop`."""

    def __init__(self, database_url: str, fleet: Fleet, began_s: float) -> None:
        self.seen = Seen()
        self._url = database_url
        self._fleet = fleet
        self._began_s = began_s
        self._stop = threading.Event()
        self._failures: list[BaseException] = []
        self._session: psycopg.Connection[Any] | None = None
        self._thread = threading.Thread(target=self._body, name="watcher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> Seen:
        self._stop.set()
        self._thread.join(60)
        if self._failures:
            raise self._failures[0]
        return self.seen

    def _body(self) -> None:
        try:
            while not self._stop.wait(EVERY_S):
                self._look()
            self._close()
        except BaseException as error:  # noqa: BLE001 - raised again by stop
            self._failures.append(error)

    def _look(self) -> None:
        at_s = time.monotonic() - self._began_s
        for worker in self._fleet.running:
            usage = worker.usage()
            if usage is not None:
                self.seen.rss_max[worker.name] = max(self.seen.rss_max.get(worker.name, 0), usage.rss_bytes)
                self.seen.threads_max[worker.name] = max(self.seen.threads_max.get(worker.name, 0), usage.threads)
        try:
            if self._session is None:
                self._session = psycopg.connect(
                    self._url,
                    autocommit=True,
                    connect_timeout=2,
                    options="-c search_path=sync_worker -c statement_timeout=5s",
                )
            row = self._session.execute(_LOOK).fetchone()
        except psycopg.OperationalError:
            self._close()
            return
        assert row is not None
        self.seen.samples.append(Sample(round(at_s, 2), *row))

    def _close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None
