"""The input of a run, from its seed: all that publishers do, also badly, and users who edit groups by hand beside them.

An entity is *orderly* or *scattered*. The records of an orderly one stay in one partition, so that the order in which the
worker reads them is known, and may contradict one another. Those of a scattered one go anywhere, with any key, in any
order; its newest version wins whatever happens. Nothing here may look at a clock or draw from another generator.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import inf
from random import Random
from typing import Any, get_args

from tests.faults.garbage import broken, flawed, garbage, some_headers
from tests.faults.sending import Framing, HandWork, Sending, Topic, Traffic, Transaction
from tests.faults.world import Scale, World, draw_scale
from tests.model.events import (
    Entity,
    Event,
    HandEdit,
    MembershipChanged,
    MethodChanged,
    entity_of,
    key_of,
    topic_of,
)

_TOPICS: dict[str, Topic] = {
    "segments.membership": "membership",
    "enrollment.methods": "methods",
    "enrollment.sources": "sources",
}
PLAIN_PRODUCERS = 2
TRANSACTIONAL_PRODUCERS = 2
ORDERLY_SHARE = {"method": 0.4, "membership": 0.2, "source": 0.2, "suspension": 0.2}


@dataclass(slots=True)
class _Story:
    """What a publisher knows of one entity."""

    orderly: bool
    partition: int
    last: int = 0
    newest: Event | None = None
    older: list[Event] = field(default_factory=list)
    used: set[int] = field(default_factory=set)
    deleted_at: float = inf


class _Teller:
    """Draws what happens, in order of time."""

    def __init__(self, random: Random, scale: Scale, partitions: int, *, registry: bool) -> None:
        self.random = random
        self.scale = scale
        self.world = World(random, scale)
        self.partitions = partitions
        self.registry = registry
        self.stories: dict[Entity, _Story] = {}
        self.now_s = 0.0

    # one record

    def something(self) -> Sending:
        """The next thing that a publisher sends."""
        draw = self.random.random()
        if draw < 0.012:
            return self._garbage()
        if draw < 0.016:
            return self._place(None, self.random.choice(get_args(Topic)))
        event = self.world.next_event(self.now_s)
        story = self._story(event)
        if draw < 0.028:
            return self._flawed(event, story)
        return self._place(self._in_order(event, story, self.random.random()), None)

    def phantom(self) -> Sending:
        """A record of a transaction that is aborted: as new as can be, so that anybody who reads it is led astray."""
        event = self.world.next_event(self.now_s)
        story = self._story(event)
        return self._place(replace(event, version=story.last + self.random.randint(1, 3)), None)

    def _story(self, event: Event) -> _Story:
        entity = entity_of(event)
        if entity not in self.stories:
            orderly = self.random.random() < ORDERLY_SHARE[entity[0]]
            self.stories[entity] = _Story(orderly, self.random.randrange(self.partitions))
        return self.stories[entity]

    def _in_order(self, event: Event, story: _Story, draw: float) -> Event:
        """The event with its version; or what this entity's publisher says again, too late, or in contradiction."""
        if story.newest is not None and draw < 0.15:
            if draw < 0.04:
                return story.newest
            if draw < 0.05:
                return replace(story.newest, event_id=self.world.uuid())
            if draw < 0.08:
                return self.random.choice([story.newest, *story.older])
            if draw < 0.11 and (unseen := [v for v in range(1, story.last) if v not in story.used]):
                late = replace(event, version=self.random.choice(unseen))
                if isinstance(late, MethodChanged):
                    # A deletion is final: in whatever order they come, the versions after it are of a deleted method.
                    late = replace(late, deleted=late.version > story.deleted_at)
                return self._tell(late, story, newest=False)
            if draw < 0.15 and story.orderly:
                return self._contradicting(event, story)
        return self._tell(replace(event, version=story.last + self.random.randint(1, 3)), story, newest=True)

    def _contradicting(self, event: Event, story: _Story) -> Event:
        """The newest version with other content, or a method that becomes what no method can become."""
        if isinstance(event, MethodChanged) and self.random.random() < 0.4:
            following = replace(event, version=story.last + self.random.randint(1, 3))
            return self._tell(broken(self.random, following, self.world.courses), story, newest=False)
        return replace(event, version=story.last)

    def _tell(self, event: Event, story: _Story, *, newest: bool) -> Event:
        story.used.add(event.version)
        # A publisher's counter moves on even where what it sent was no good.
        story.last = max(story.last, event.version)
        if newest:
            if story.newest is not None:
                story.older = [*story.older, story.newest][-3:]
            story.newest = event
            if isinstance(event, MethodChanged) and event.deleted:
                story.deleted_at = min(story.deleted_at, event.version)
            self.world.remember(event)
        return event

    def _flawed(self, event: Event, story: _Story) -> Sending:
        return self._place(flawed(self.random, replace(event, version=story.last + 4)), None, story)

    def _garbage(self) -> Sending:
        event = replace(self.world.next_event(self.now_s), version=1)
        topic = self.random.choice(get_args(Topic))
        return self._place(garbage(self.random, event, topic, registry=self.registry), topic)

    def _place(self, content: Any, topic: Topic | None, story: _Story | None = None) -> Sending:
        """A time, a partition and a key."""
        event: Event | None = None if topic else content
        if event is not None:
            story = story or self._story(event)
            topic = _TOPICS[topic_of(event)]
        assert topic is not None
        anywhere = self.random.randrange(self.partitions + 2)
        return Sending(
            at_s=self.now_s,
            topic=topic,
            partition=story.partition if story is not None and story.orderly else anywhere,
            key=self._key(event, topic),
            content=content,
            headers=some_headers(self.random),
            framing=self._framing(),
        )

    def _key(self, event: Event | None, topic: Topic) -> bytes | None:
        draw = self.random.random()
        if draw < 0.6 and event is not None:
            return key_of(event).encode()
        # A compacted topic takes no record without a key.
        return None if draw < 0.8 and topic != "methods" else self.random.randbytes(self.random.randint(0, 20))

    def _framing(self) -> Framing:
        return "confluent" if self.registry and self.random.random() < 0.6 else "single"

    def crowd(self) -> list[Sending]:
        """Many members of the hot segment, so that a method's change takes several steps; all join at once, at the start."""
        self.now_s = 0.5
        stamp, segment = self.world.at_us(self.now_s), self.world.segments[0]
        people = [self.world.uuid() for _ in range(self.scale.crowd)]
        return [
            self._place(MembershipChanged(self.world.uuid(), stamp, segment, user, 1, True), None) for user in people
        ]

    # by hand

    def hand_work(self) -> HandWork:
        course, group, user = self.world.some_seat()
        edits = [self._edit(course, group, user)]
        while self.random.random() < 0.5:
            edits.append(self._edit(*self.world.some_seat()))
        return HandWork(
            self.now_s, tuple(edits), round(self.random.expovariate(4.0), 2), rolled_back=self.random.random() < 0.1
        )

    def _edit(self, course: str, group: str, user: str) -> HandEdit:
        return HandEdit("insert" if self.random.random() < 0.65 else "delete", course, group, user)


def make_traffic(seed: int, duration_s: float, partitions: int, *, registry: bool) -> Traffic:
    """All input of the run of this seed. The base partitions are those that exist from the start."""
    random = Random(f"traffic {seed}")
    teller = _Teller(random, draw_scale(random), partitions, registry=registry)
    plain: list[list[Sending]] = [[] for _ in range(PLAIN_PRODUCERS)]
    transactional: list[list[Transaction]] = [[] for _ in range(TRANSACTIONAL_PRODUCERS)]
    for at_s, size in _moments(random, teller.scale, duration_s):
        teller.now_s = at_s
        if random.random() < 0.15:
            aborted = random.random() < 0.3
            tell = teller.phantom if aborted else teller.something
            records = tuple(tell() for _ in range(random.randint(1, 30)))
            random.choice(transactional).append(Transaction(at_s, records, aborted))
        else:
            random.choice(plain).extend(teller.something() for _ in range(size))
    plain[0] = sorted([*teller.crowd(), *plain[0]], key=lambda sending: sending.at_s)
    by_hand = []
    teller.now_s = 1.5
    while teller.now_s < duration_s:
        by_hand.append(teller.hand_work())
        teller.now_s += random.expovariate(1.5)
    return Traffic(tuple(map(tuple, plain)), tuple(map(tuple, transactional)), tuple(by_hand))


def _moments(random: Random, scale: Scale, duration_s: float) -> Iterator[tuple[float, int]]:
    """When something is sent, and how many records at once: a trickle, with bursts."""
    at_s = 0.0
    while at_s < duration_s:
        burst = random.random() < 0.02
        yield round(at_s, 3), random.randint(100, 400) if burst else random.randint(1, 8)
        at_s += random.expovariate(scale.sends_per_s)
