"""Plays the scenes: puts in what a scene says, waits until it is settled, shows what came, and compares.

Must never go on after a difference: the scenes after it would tell of nothing but the first.
"""

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from confluent_kafka import KafkaError, Message, Producer

from demo.check import history_differences, scene_differences
from demo.errors import DemoError
from demo.observe import Change, Database, change_of
from demo.scene import Action, Bytes, DeadLetter, Event, Expected, GroupEdit, Scene
from demo.services import Services, wait_until
from demo.show import Screen, View
from sync_worker.operations.producing import Publisher
from sync_worker.service.logging import kafka_logger
from sync_worker.settings import Settings

_ARRIVAL_S: Final = 10.0
_DELIVERY_S: Final = 30.0


@dataclass(slots=True)
class Totals:
    """What the whole story came to."""

    records_in: int = 0
    group_edits: int = 0
    changes: Counter[str] = field(default_factory=Counter)
    dead_letters: int = 0
    seconds: float = 0.0


class Play:
    """One performance, on services that are ready."""

    def __init__(self, services: Services, database: Database, settings: Settings, screen: Screen) -> None:
        self._services = services
        self._database = database
        self._screen = screen
        self._faults: list[str] = []
        # The same that `sync-worker publish` does with each line.
        self._publisher = Publisher(settings, lambda _line, fault: self._faults.append(fault))
        self._producer = Producer({"bootstrap.servers": settings.kafka_bootstrap_servers}, logger=kafka_logger())
        self._expected = Expected()
        self._totals = Totals()
        self._changes: list[Change] = []
        self._dead_letters: list[dict[str, Any]] = []

    def perform(self, story: Sequence[Scene]) -> Totals:
        """Play every scene. DemoError with each difference of the first that went otherwise than it should."""
        started = time.monotonic()
        for number, scene in enumerate(story, start=1):
            self._scene(f"{number}/{len(story)}  {scene.title}", scene)
        self._totals.seconds = time.monotonic() - started
        self._totals.changes = Counter(change.kind for change in self._changes)
        self._totals.dead_letters = len(self._dead_letters)
        return self._totals

    def _scene(self, heading: str, scene: Scene) -> None:
        self._expected.apply(scene)
        view = View(touched={(effect.course.name, effect.person.name) for effect in scene.effects})
        changes, dead_letters = len(self._changes), len(self._dead_letters)
        tables = self._database.tables()
        with self._screen.scene(heading, scene.why, view) as paint:
            for step in scene.steps:
                view.steps.append([])
                for action in step:
                    view.steps[-1].append(self._do(action))
                    paint()
                self._services.wait_settled()
                view.tables = tables = self._database.tables()
                self._read(view, changes, dead_letters)
                paint()
            awaited = changes + sum(len(effect.changes) for effect in scene.effects)
            awaited_letters = dead_letters + len(scene.dead_letters)

            def all_here() -> bool:
                self._read(view, changes, dead_letters)
                return len(self._changes) >= awaited and len(self._dead_letters) >= awaited_letters

            # Published is not yet read by the `tail` beside us. What doesn't come at all is a difference, below.
            wait_until(all_here, _ARRIVAL_S)
            view.settled = True
            paint()
        letters = [DeadLetter(one["dlq_reason"], one["value"]) for one in self._dead_letters[dead_letters:]]
        self._compare(
            heading,
            scene_differences(scene, self._expected.rows, tables, self._changes[changes:], letters)
            + history_differences(tables, self._changes),
        )

    def _compare(self, heading: str, differences: list[str]) -> None:
        if differences:
            raise DemoError("\n".join([f"scene {heading}: not what the story says", *differences]))

    def _read(self, view: View, changes: int, dead_letters: int) -> None:
        self._changes = [change_of(document) for document in self._services.changes()]
        self._dead_letters = self._services.dead_letters()
        view.changes = self._changes[changes:]
        view.dead_letters = [
            f"dead letter: {letter['dlq_reason']}\n{letter['dlq_topic']}[{letter['dlq_partition']}] "
            f"offset {letter['dlq_offset']}: {letter['dlq_detail']}"
            for letter in self._dead_letters[dead_letters:]
        ]

    def _do(self, action: Action) -> str:
        """Do it; what to show of it."""
        match action:
            case Event(line, shown):
                self._publisher.publish([json.dumps(line).encode()])
                self._delivered()
                return shown
            case Bytes(topic, value, _, shown):
                self._producer.produce(topic, value, on_delivery=self._on_delivery)
                self._producer.flush(_DELIVERY_S)
                self._delivered()
                return f"{shown}\non {topic}"
            case GroupEdit():
                return self._edit(action)

    def _delivered(self) -> None:
        if self._faults:
            raise DemoError("not published: " + "; ".join(self._faults))
        self._totals.records_in += 1

    def _on_delivery(self, error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            self._faults.append(str(error))

    def _edit(self, edit: GroupEdit) -> str:
        answer = self._database.edit_group(edit)
        self._totals.group_edits += 1
        state = answer.partition(":")[0] if answer else None
        what = f"{edit.verb} {edit.person.name} {'into' if edit.verb == 'INSERT' else 'from'} {edit.group.name}"
        if state != edit.refused:
            raise DemoError(f"{what} in {edit.course.name}: expected {edit.refused or 'to work'}; the answer: {answer}")
        return f"SQL: {what}\n{'refused, ' + answer if answer else 'done'}"
