"""The page in each of its states, served by the real HTTP server from status documents as a worker would have made them.

Ten minutes are told in an instant by a clock of its own. For the tests of the page and for the pictures in docs/images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import NAMESPACE_DNS, uuid5

from prometheus_client import CollectorRegistry

from sync_worker import __version__
from sync_worker.errors import RetryableError
from sync_worker.service.document import StatusDocument
from sync_worker.service.health import Health
from sync_worker.service.history import EVERY_S, KEEP_S
from sync_worker.service.http import HttpServer, routes
from sync_worker.service.page.observing import Observer
from sync_worker.service.page.rendering import Page
from sync_worker.service.redaction import Redactor

NOW = datetime(2026, 11, 24, 13, 5, 2, tzinfo=UTC)
GROUP = "sync-worker"
HERE, THERE = "sync-worker-7d9f-x2k4:1:5f0c9a1e", "sync-worker-7d9f-q8zt:1:b34e77d0"
TOPICS = {"segments.membership": 6, "enrollment.methods": 3, "enrollment.sources": 3}
AWAY = 'PostgreSQL can\'t be reached: connection to server at "db" (10.0.3.7), port 5432 failed: Connection refused'

Document = dict[str, Any]
Story = Callable[[float], Document]


class Scene(NamedTuple):
    """What happened in the ten minutes until now. `story`: the document, by seconds before now; away: it can't be read any more."""

    story: Story
    changes: int = 20
    away: bool = False


def id_of(name: str) -> str:
    """The same id for the same name."""
    return str(uuid5(NAMESPACE_DNS, name))


def time_of(seconds_before: float) -> str:
    return (NOW - timedelta(seconds=seconds_before)).isoformat()


def document(before_s: float, lag: Mapping[str, float] | None = None, rate: float = 3.2, **more: Any) -> Document:
    """A document as it was some seconds before now: `lag` per topic, spread over its partitions; records and events per second."""
    lag = lag or {}
    applied = more.pop("applied", (KEEP_S - before_s) * 3)
    entries = []
    for topic, partitions in TOPICS.items():
        for number in range(partitions):
            behind = int(lag.get(topic, 0) / partitions * (0.7 + 0.6 * ((number * 7 + 3) % 5) / 5))
            position = 4_182_377 + 61_003 * number + int(applied / partitions)
            entries.append(
                {"topic": topic, "partition": number, "position": position, "end": position + behind, "lag": behind}
            )
    unpublished = int(more.pop("unpublished", 0))
    oldest_age_s = more.pop("oldest_age_s", 0.2 if unpublished else None)
    busy = any(entry["lag"] for entry in entries) or unpublished or more.get("backfills") or more.get("releases")
    return {
        "settled": not busy,
        "lag": entries,
        "outbox": {"unpublished": unpublished, "oldest_age_s": oldest_age_s},
        "backfills": [],
        "holds": [],
        "releases": [],
        "dead_letters": {"waiting": 0, "total": 0, "by_reason": {}, "last_at": None, "reasons": []},
        "leader": {"holder": THERE, "since": time_of(93_000), "expires_at": time_of(-4)},
        "relay": {"window": 48_211, "published": True, "window_at": time_of(41)},
        "workers": [worker(THERE, 0, rate), worker(HERE, 1, rate)],
        "schema_revision": "0002",
        "version": __version__,
        "at": time_of(before_s),
        **more,
    }


def worker(holder: str, half: int, rate: float, *, present: bool = True) -> Document:
    return {
        "holder": holder,
        "version": __version__,
        "since": time_of(93_000 - half * 40),
        "seen_at": time_of(2 if present else 74),
        "present": present,
        "partitions": {topic: [n for n in range(count) if n % 2 == half] for topic, count in TOPICS.items()},
        "records_per_s": round(rate / 2, 1),
        "published_per_s": round(rate * 0.8, 1) if holder == THERE else 0.0,
    }


def dead_letters(waiting: int = 0) -> Document:
    counts = (
        ("invalid_event", "segments.membership", 12, 5_400.0),
        ("undecodable", "enrollment.sources", 3, 86_400.0),
        ("version_conflict", "segments.membership", 1, 310.0),
    )
    return {
        "waiting": waiting,
        "total": sum(records for _, _, records, _ in counts),
        "by_reason": {reason: records for reason, _, records, _ in counts},
        "last_at": time_of(310),
        "reasons": [
            {"reason": reason, "topic": topic, "records": records, "last_at": time_of(ago)}
            for reason, topic, records, ago in counts
        ],
    }


def backfill(name: str, segment: str | None, done: int, total: int | None, before_s: float) -> Document:
    return {
        "method_id": id_of(f"method {name}"),
        "course_id": id_of(f"course {name}"),
        "segment_id": id_of(f"segment {segment}"),
        "name": name,
        "segment_name": segment,
        "version": 4,
        "done": done,
        "total": total,
        "since": time_of(before_s),
    }


def hold(segment: str | None, members: int, removed: int, held: int, before_s: float) -> Document:
    return {
        "segment_id": id_of(f"segment {segment}"),
        "segment_name": segment,
        "since": time_of(before_s),
        "members": members,
        "removed": removed,
        "held": held,
    }


def release(segment: str, done: int, total: int, before_s: float) -> Document:
    return {
        "segment_id": id_of(f"segment {segment}"),
        "segment_name": segment,
        "number": 3,
        "done": done,
        "total": total,
        "since": time_of(before_s),
    }


def _quiet(before_s: float) -> Document:
    return document(before_s, rate=max(0.0, 2.6 + 2.2 * math.sin(before_s / 47) + math.sin(before_s / 9)))


def _busy(before_s: float) -> Document:
    # A burst that began seven minutes ago and is being caught up with.
    into_s = 420 - before_s
    waiting = 0 if into_s < 0 else min(into_s, 150) * 1_900 - max(0, into_s - 150) * 720
    rate = 24.0 if into_s < 0 else 31_500 + 1_800 * math.sin(before_s / 13)
    return document(
        before_s,
        {"segments.membership": max(0, waiting), "enrollment.sources": max(0, waiting / 60)},
        rate,
        applied=24 * (KEEP_S - before_s) + 31_500 * max(0, into_s),
        unpublished=1_840 + 400 * math.sin(before_s / 31) if into_s > 0 else 0,
        relay={"window": 48_977, "published": False, "window_at": time_of(0.04)},
        dead_letters=dead_letters(waiting=1),
    )


def _backfill(before_s: float) -> Document:
    return document(
        before_s,
        rate=12 if before_s > 25 else 27_400,
        unpublished=900 if before_s < 25 else 0,
        backfills=[
            backfill("Data protection 2027", "All employees", 311_000, 498_213, 19),
            backfill("Fire drill, Berlin", "Berlin office", 0, None, 0.4),
        ]
        if before_s < 20
        else [],
    )


def _hold(before_s: float) -> Document:
    return document(
        before_s,
        rate=2.2 + math.sin(before_s / 30) + (900 if 90 < before_s < 150 else 0),
        holds=[hold("All employees", 98_766, 49_384, 41_225, 131), hold(None, 5_210, 2_606, 977, 88)]
        if before_s < 131
        else [],
        releases=[release("Winter interns", 4_000, 11_390, 6)] if before_s < 6 else [],
        dead_letters=dead_letters(),
    )


def _stopped(before_s: float) -> Document:
    gone = [worker(THERE, 0, 0, present=False), worker(HERE, 1, 0, present=False)]
    return document(
        before_s,
        {"segments.membership": max(0, 74 - before_s) * 40},
        0 if before_s < 74 else 12,
        applied=12 * min(KEEP_S - before_s, KEEP_S - 74),
        **({"workers": gone, "leader": None} if before_s < 60 else {}),
    )


SCENES = {
    "quiet": Scene(_quiet),
    "busy": Scene(_busy),
    "backfill": Scene(_backfill),
    "outage": Scene(_busy, away=True),
    "hold": Scene(_hold),
    "stopped": Scene(_stopped),
}


def changes(count: int) -> list[Document]:
    kinds = ("ENROLLED", "ENROLLED", "UNENROLLED", "UPDATED", "SUSPENDED", "ENROLLED", "REACTIVATED")
    causes = ("SegmentMemberAdded", "SegmentMemberAdded", "SegmentMemberRemoved", "EnrollmentMethodChanged",
              "CourseSuspensionChanged", "EnrollmentSourceChanged", "EnrollmentMethodChanged")  # fmt: skip
    return [
        {
            "type": "EnrollmentChanged",
            "course_id": id_of(f"course {number % 3}"),
            "user_id": id_of(f"user {number}"),
            "version": 1 + number * number % 9,
            "change": kinds[number % len(kinds)],
            "cause": {"type": causes[number % len(causes)], "event_id": None, "method_id": None},
            "occurred_at": time_of(1.4 + number * 7.7),
        }
        for number in range(count)
    ]


class Told:
    """A worker's page after the ten minutes of a scene; `tell` lets something else be the case from now on."""

    def __init__(self, scene: Scene) -> None:
        self._clock = 0.0
        self._failing = False
        self._document: Document = {}
        self.health = Health(("database", "broker", "assignment", "relay"))
        for loop in ("intake", "apply", "backfill", "relay", "watch"):
            self.health.register(loop, 90)
        for condition in ("database", "broker", "assignment", "relay"):
            self.health.set_ready(condition, ok=True)
        redactor = Redactor()
        status = StatusDocument(self._read, redactor, lambda: self._clock)
        self._observer = Observer(status, lambda: changes(scene.changes), redactor, lambda: self._clock)
        page = Page(self._observer, self.health, holder=HERE, group=GROUP, now=lambda: NOW)
        self._server = HttpServer("127.0.0.1", 0, routes(self.health, CollectorRegistry(), status, page))
        self.url = f"http://127.0.0.1:{self._server.port}/"
        self._unfold(scene)

    def tell(self, document: Document) -> None:
        """The status is this from now on."""
        self._failing, self._document = False, document
        self._look()

    def lose(self, condition: str, reason: str) -> None:
        """Something is away from now on."""
        self.health.set_ready(condition, ok=False, reason=reason)
        self._failing = True
        self._look()

    def close(self) -> None:
        self._server.close()

    def _unfold(self, scene: Scene) -> None:
        for step in range(int(KEEP_S / EVERY_S) + 1):
            before_s = KEEP_S - step * EVERY_S
            if before_s <= 10:
                self._observer.look()  # somebody opens the page
            self.tell(scene.story(before_s))
        if scene.away:
            for _ in range(6):
                self.lose("database", AWAY)

    def _look(self) -> None:
        self._clock += EVERY_S
        self._observer.observe()

    def _read(self) -> Document:
        if self._failing:
            raise RetryableError(AWAY)
        return self._document


@contextmanager
def served(scene: Scene) -> Iterator[Told]:
    """The page of a scene on a port of its own."""
    told = Told(scene)
    try:
        yield told
    finally:
        told.close()
