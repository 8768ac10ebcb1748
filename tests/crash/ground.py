"""A site on which workers are killed one after the other, and that has traffic of every kind, so that each failpoint is reached.

What it publishes follows from its seed, and how it must end from what it published: the model judges, and every change must be
a link of one chain. Nothing here looks into a worker.
"""

from __future__ import annotations

import signal
import subprocess
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from random import Random
from uuid import UUID

from sync_worker.database import arrays
from sync_worker.database.sessions import apply_session
from sync_worker.enrollment import breaker, release
from sync_worker.errors import RetryableError
from sync_worker.kafka.broker import Broker
from tests.crash.places import AT_ONCE, PLACES, How
from tests.model.events import Event, MembershipChanged, MethodChanged
from tests.model.model import Model
from tests.support.check import assert_site_equals_model
from tests.support.facts import member, method, source, suspension
from tests.support.site import Site, WorkerProcess, wait_for

KILLED = 137
DEADLINE_S = 180.0
# For how long a worker is frozen at most. The group waits a minute for a member that froze in the middle of a rebalance.
FROZEN_S = 75.0
FREEZES = 3
ROUNDS = 200  # of traffic, a second each, until a place must have been reached
# A method over more people than are changed at once, so that it is applied in steps.
CROWD = 1_100
# So many leave the held segment at once; the breaker's limits in SETTINGS are below.
MANY = 12
SETTINGS = {"removal_hold_min": "3", "removal_hold_percent": "50"}
BATCHES = ("5", "20", "100", "2000")


class NotReached(Exception):
    """The traffic didn't bring a worker to its failpoint. Says nothing about the worker."""


class Ground:
    """One site. `kill` kills workers, `check` starts one that lives and compares."""

    def __init__(self, site: Site, seed: int) -> None:
        self.site = site
        self._random = Random(seed)
        self._broker = Broker(site.settings)
        self._events: list[Event] = []
        self._garbage: list[bytes] = []
        self._versions: dict[tuple[str, str], int] = {}
        self._freezes_in_vain = 0
        self._courses = [self._id() for _ in range(3)]
        self._users = [self._id() for _ in range(40)]
        self._segments = [self._id() for _ in range(3)]
        self._held = self._id()
        self._methods = [
            replace(method(segment, course, group_id=self._id()), method_id=self._id())
            for segment in (*self._segments, self._held)
            for course in self._courses[:2]
        ]
        self._crowd = self._id()
        self._methods.append(replace(method(self._crowd, self._courses[2]), method_id=self._id()))
        everybody = [self._joins(segment, user) for segment in self._segments for user in self._users]
        self.publish(*self._methods, *everybody, *(self._joins(self._held, user) for user in self._users[:MANY]))
        self.publish(*(self._joins(self._crowd, self._id()) for _ in range(CROWD)))

    def publish(self, *events: Event) -> None:
        self._events += events
        self.site.produce(events)

    def kill(self, *places: str) -> None:
        """One worker for each place, all at once; they die there, and traffic goes on until they have."""
        workers = {}
        for place in places:
            nth = 1 if place in AT_ONCE or PLACES[place] is not How.TRAFFIC else self._random.randint(1, 2)
            size = self._random.choice(BATCHES)
            workers[place] = self.site.start_worker(failpoints=f"{place}=exit@{nth}", batch_max_records=size)
        rounds = 0
        while alive := {place: worker for place, worker in workers.items() if worker.process.poll() is None}:
            self._stir(in_steps=any(place.startswith("backfill") for place in alive))
            for place, worker in alive.items():
                self._provoke(PLACES[place], worker)
            self._end_lease()
            with suppress(subprocess.TimeoutExpired):
                next(iter(alive.values())).process.wait(1)
            # By rounds, not by the clock: a machine that stood still meanwhile is no failure.
            rounds += 1
            if rounds > ROUNDS:
                raise NotReached(f"{sorted(alive)} not reached after {ROUNDS} rounds of traffic: {_logs(alive)}")
        codes = {place: worker.process.returncode for place, worker in workers.items()}
        assert set(codes.values()) == {KILLED}, f"{codes}: {_logs(workers)}"
        self._end_lease()

    def check(self) -> int:
        """Let a worker finish, and compare; how many changes there were."""
        self.publish(*(self._changed(number, visible=True, active=True) for number in range(len(self._methods))))
        worker = self.site.start_worker()
        self._end_lease()
        self.site.wait_settled(DEADLINE_S)
        self._end_holds()
        self.site.wait_settled(DEADLINE_S)
        model = Model()
        model.apply_batch(self._events)
        changes = assert_site_equals_model(self.site, model)
        letters, garbage = Counter(letter.value or b"" for letter in self.site.dead_letters()), Counter(self._garbage)
        assert letters == garbage, f"dead letters: lost {garbage - letters}, repeated or changed {letters - garbage}"
        assert worker.terminate() == 0
        return changes

    # traffic

    def _stir(self, *, in_steps: bool) -> None:
        """Something of everything: people come and go, a method changes, a hold begins or ends, garbage arrives.

        in_steps: the method of the crowd changes too, which takes long.
        """
        draw = self._random
        events: list[Event] = []
        for _ in range(draw.randint(1, 10)):
            segment, user = draw.choice(self._segments), draw.choice(self._users)
            events.append(self._joins(segment, user) if draw.random() < 0.6 else self._leaves(segment, user))
        course, user = draw.choice(self._courses), draw.choice(self._users)
        events.append(source(course, user, self._next(f"source {course}", user), draw.choice(("ACTIVE", "ABSENT"))))
        events.append(suspension(course, user, self._next(f"suspension {course}", user), suspended=draw.random() < 0.5))
        changing = [draw.randrange(len(self._methods) - 1), *([len(self._methods) - 1] if in_steps else [])]
        roles = ("student", "tutor")
        events += [self._changed(n, visible=draw.random() < 0.5, role=draw.choice(roles)) for n in changing]
        if not self._end_holds():
            leave = draw.random() < 0.6
            held = self._users[:MANY]
            events += [self._leaves(self._held, user) if leave else self._joins(self._held, user) for user in held]
        self.publish(*events)
        garbage = b"\x99" + draw.randbytes(20)
        self._garbage.append(garbage)
        self.site.produce_raw(draw.choice(("membership", "methods", "sources")), garbage, key=garbage[:8])

    def _end_holds(self) -> bool:
        """End every hold there is; their releases are for workers to take. False where there was none."""
        with apply_session(self.site.database_url, "test") as session:
            arrays.register(session)
            # A worker that holds a hold's rows is waited for; the command would have to be run again.
            session.execute("set lock_timeout = '60s'; set idle_in_transaction_session_timeout = '120s'")
            held = [hold.segment_id for hold in breaker.holds(session)]
            for segment in held:
                assert release.end_hold(session, segment, "test") is not None
            return bool(held)

    def _provoke(self, how: How, worker: WorkerProcess) -> None:
        if how is How.TRAFFIC or not worker.events("partition_started"):
            return
        if how is How.LEAVING:
            worker.signal(signal.SIGTERM)
            return
        worker.signal(signal.SIGSTOP)
        try:
            others = sum(other.process.poll() is None for other in self.site.workers) - 1
            wait_for(lambda: self._has_members(others), FROZEN_S, "the group to give the frozen worker up")
        except AssertionError as limit:
            # On a busy machine members that are alive are thrown out and come again as others: once more, with another traffic.
            self._freezes_in_vain += 1
            if self._freezes_in_vain == FREEZES:
                raise NotReached(f"{limit}, {FREEZES} times") from limit
        finally:
            worker.signal(signal.SIGCONT)

    def _has_members(self, at_most: int) -> bool:
        try:
            return len(self._broker.members(self.site.settings.consumer_group)) <= at_most
        except RetryableError:  # no answer in time
            return False

    def _joins(self, segment: str, user: str) -> MembershipChanged:
        return member(segment, user, self._next(segment, user))

    def _leaves(self, segment: str, user: str) -> MembershipChanged:
        return member(segment, user, self._next(segment, user), is_member=False)

    def _changed(self, number: int, **fields: object) -> MethodChanged:
        old = self._methods[number]
        self._methods[number] = replace(old, event_id=self._id(), version=old.version + 1, **fields)  # type: ignore[arg-type]
        return self._methods[number]

    def _next(self, entity: str, user: str) -> int:
        version = self._versions[entity, user] = self._versions.get((entity, user), 0) + 1
        return version

    def _id(self) -> str:
        return str(UUID(int=self._random.getrandbits(128), version=4))

    def _end_lease(self) -> None:
        """The next leader needn't wait for a dead one's lease, which is by the clock and tested elsewhere."""
        with self.site.connect() as connection:
            connection.execute("update relay_lease set expires_at = clock_timestamp()")


def _logs(workers: dict[str, WorkerProcess]) -> str:
    return "\n".join(f"{place}: {worker.log()[-2000:]}" for place, worker in workers.items())
