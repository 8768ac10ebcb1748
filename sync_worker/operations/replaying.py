"""Sends dead letters back to their topics, each once: `dlq replay` (contract §5).

A record is sent, acknowledged, and only then remembered as sent back: a crash in between sends it twice, which changes
nothing, since a fact that is known is a repetition; the other order could lose it. What goes back is the record as it
was, with one header more. Must never send what the workers would only reject again, unless told to.
"""

from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Final

from sync_worker import failpoints
from sync_worker.errors import InvalidRecord, SyncWorkerError
from sync_worker.events import Headers
from sync_worker.intake.decoding import Decoder, records_by_topic
from sync_worker.operations.dead_letters import PREFIX, Address, DeadLetter, DeadLetters, Selection
from sync_worker.operations.sending import Sender
from sync_worker.schema.registry import SchemaNotYetKnown, registry_of
from sync_worker.schema.store import load_schemas
from sync_worker.settings import Settings

REPLAYED_FROM: Final = "dlq_replayed_from"
_STEP: Final = 500
_ANY: Final = -1  # the partitioner chooses, by the key


@dataclass(frozen=True, slots=True)
class Replay:
    """A dead letter as it would be sent back. partition: its own of the topic, so that it comes behind its predecessors."""

    address: Address
    reason: str
    topic: str
    partition: int
    key: bytes | None
    value: bytes
    headers: Headers


@dataclass(frozen=True, slots=True)
class Skipped:
    """A dead letter that isn't sent: it was before (replayed_at), or it can't be (why)."""

    address: Address
    replayed_at: datetime | None
    why: str = ""


class Replaying:
    """Chooses dead letters and sends them back. `again`: also those that were; `unchecked`: also what can't be read."""

    def __init__(self, settings: Settings, *, again: bool = False, unchecked: bool = False) -> None:
        self._letters = DeadLetters(settings)
        self._sender = Sender(settings)
        self._inputs = records_by_topic(settings)
        self._decoder = Decoder(load_schemas(settings.schema_dir), registry_of(settings), self._inputs)
        self._again = again
        self._unchecked = unchecked
        self.sent: Counter[str] = Counter()
        """How many have arrived, by the reason that they had been rejected for."""

    def plan(self, selection: Selection) -> Iterator[Replay | Skipped]:
        """What is to be done with each that the selection means, in order of partition and offset."""
        replayed = self._letters.replayed()
        for letter in self._letters.find(selection):
            if letter.address in replayed and not self._again:
                yield Skipped(letter.address, replayed[letter.address])
            else:
                yield self._verdict(letter)

    def replay(self, plan: Iterable[Replay | Skipped]) -> Generator[Replay | Skipped, None, None]:
        """Carry it out; each is given back when it has arrived or is skipped.

        Raises RetryableError or FatalError where one doesn't arrive; those that did are remembered.
        """
        steps = iter(plan)
        with self._sender.open():
            while step := list(islice(steps, _STEP)):
                self._send([each for each in step if isinstance(each, Replay)])
                yield from step
        self._letters.forget_replayed()

    def _send(self, replays: list[Replay]) -> None:
        arrived: list[Replay] = []
        faults: list[SyncWorkerError] = []

        def note(replay: Replay, error: SyncWorkerError | None) -> None:
            if error is None:
                arrived.append(replay)
            else:
                faults.append(type(error)(f"dead letter {replay.address}: {error}"))

        for replay in replays:
            self._sender.send(
                replay.topic,
                replay.key,
                replay.value,
                replay.headers,
                lambda error, replay=replay: note(replay, error),  # type: ignore[misc]  # a default binds it
                partition=replay.partition,
            )
        self._sender.flush()
        failpoints.reach("replay_acknowledged")
        if arrived:
            self._letters.record_replayed([replay.address for replay in arrived])
            self.sent.update(replay.reason for replay in arrived)
        if faults:
            raise faults[0]

    def _verdict(self, letter: DeadLetter) -> Replay | Skipped:
        try:
            return self._replay(letter)
        except _Impossible as error:
            return Skipped(letter.address, None, str(error))

    def _replay(self, letter: DeadLetter) -> Replay:
        origin = letter.origin
        if origin is None:
            raise _Impossible("it doesn't say where it came from: a worker did not put it there")
        if origin.topic not in self._inputs:
            topics = ", ".join(self._inputs)
            raise _Impossible(f"it came from {origin.topic}, which is no input topic now; these are: {topics}")
        partitions = self._sender.partitions.get(origin.topic)
        if partitions is None:
            raise _Impossible(f"{origin.topic} does not exist; `sync-worker topics create` makes it")
        whole = self._letters.whole(letter)
        if whole is None or whole.value is None:
            raise _Impossible("it was too large for its topic, and its bytes are not in the database any more")
        if not self._unchecked:
            self._check(origin.topic, whole.value, whole.headers)
        own = [(name, value) for name, value in whole.headers if not name.startswith(PREFIX)]
        came_from = f"{self._letters.topic}/{letter.address.partition}/{letter.address.offset}"
        return Replay(
            letter.address,
            letter.reason,
            origin.topic,
            origin.partition if origin.partition < partitions else _ANY,
            whole.key,
            whole.value,
            [*own, (REPLAYED_FROM, came_from.encode())],
        )

    def _check(self, topic: str, value: bytes, headers: Headers) -> None:
        """Would a worker of this version with these settings reject it before it looks at any fact?"""
        try:
            self._decoder.decode(topic, value, headers)
        except (InvalidRecord, SchemaNotYetKnown) as error:
            raise _Impossible(f"it would be rejected again: {error}") from error


class _Impossible(SyncWorkerError):
    """Why a dead letter can't be sent back."""
