"""The dead-letter topic as it is, and which of its records were sent back: what `dlq list`, `show` and `replay` look at.

Reads committed records up to the end as it was at the start. Must never show one record's reason with another's bytes.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, NamedTuple

from confluent_kafka import Message

from sync_worker.database.sessions import Session, connect, translated
from sync_worker.database.statements import load
from sync_worker.errors import FatalError, SettingsError
from sync_worker.events import Headers
from sync_worker.intake.gathering import headers_of
from sync_worker.kafka.broker import Broker
from sync_worker.operations.reading import TopicReader, place_of
from sync_worker.service.logging import kafka_logger
from sync_worker.settings import Settings

PREFIX: Final = "dlq_"
_SQL = load("sync_worker.operations", "dead_letters.sql")


class Address(NamedTuple):
    """Where a dead letter stands in the dead-letter topic."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}:{self.offset}"

    @classmethod
    def parse(cls, text: str) -> "Address":
        """From PARTITION:OFFSET. Raises SettingsError."""
        partition, colon, offset = text.partition(":")
        if not (colon and _is_number(partition) and _is_number(offset)):
            raise SettingsError(f"{text!r} is not the address of a dead letter; give PARTITION:OFFSET, as in 0:17")
        return cls(int(partition), int(offset))


class Origin(NamedTuple):
    """Where the record was read that became a dead letter."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int | None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One record of the dead-letter topic. `headers` are those that the record had when it was read.

    at_ms: when it became a dead letter, in ms since 1970. origin: None for a record that somebody else put there. truncated:
    too large for the topic, so that value, and perhaps headers and key, are missing.
    """

    address: Address
    at_ms: int
    reason: str
    detail: str
    origin: Origin | None
    truncated: bool
    key: bytes | None
    value: bytes | None
    headers: Headers


@dataclass(frozen=True, slots=True)
class Selection:
    """Which dead letters are meant: those at the addresses, or all that fit. Empty and None: any."""

    addresses: tuple[Address, ...] = ()
    reasons: frozenset[str] = frozenset()
    topics: frozenset[str] = frozenset()
    since_ms: int | None = None
    until_ms: int | None = None

    def fits(self, letter: DeadLetter) -> bool:
        return (
            (not self.reasons or letter.reason in self.reasons)
            and (not self.topics or (letter.origin is not None and letter.origin.topic in self.topics))
            and (self.since_ms is None or letter.at_ms >= self.since_ms)
            and (self.until_ms is None or letter.at_ms < self.until_ms)
        )


class DeadLetters:
    """The dead-letter topic of the settings, and the table of those that were sent back."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.topic = settings.dead_letters_topic
        self._topic_id = Broker(settings, logger=kafka_logger()).topics([self.topic])[self.topic].topic_id

    def find(self, selection: Selection) -> Iterator[DeadLetter]:
        """In order of partition and offset. Raises FatalError where there is none at an address."""
        with TopicReader(self._settings, self.topic) as reader:
            bounds = reader.bounds()
            if selection.addresses:
                for address in sorted(set(selection.addresses)):
                    yield self._at(reader, bounds, address)
                return
            starts: dict[int, int | None] = {number: low for number, (low, _) in bounds.items()}
            if selection.since_ms is not None:
                starts = reader.at_time(bounds, selection.since_ms)
            for number, start in starts.items():
                if start is not None:
                    for message in reader.read({number: start}, {number: bounds[number][1]}):
                        letter = dead_letter_of(message)
                        if selection.fits(letter):
                            yield letter

    def _at(self, reader: TopicReader, bounds: Mapping[int, tuple[int, int]], address: Address) -> DeadLetter:
        number, offset = address
        if number not in bounds:
            raise FatalError(f"{self.topic} has no partition {number}, only 0 to {len(bounds) - 1}")
        low, high = bounds[number]
        if low <= offset < high:
            for message in reader.read({number: offset}, {number: offset + 1}):
                return dead_letter_of(message)
        raise FatalError(
            f"there is no dead letter at {address} of {self.topic}; partition {number} holds {low} to {high - 1},"
            " some of which are marks of transactions; `sync-worker dlq list` shows them"
        )

    def whole(self, letter: DeadLetter) -> DeadLetter | None:
        """The letter with all it had when it was read; None where that isn't kept any more."""
        if not letter.truncated or letter.origin is None:
            return letter
        with translated(), self._connect() as session:
            row: tuple[Any, ...] | None = session.execute(
                _SQL["kept"], {**letter.origin._asdict(), "reason": letter.reason}
            ).fetchone()
        if row is None:
            return None
        key, value, names, values = row
        return replace(letter, key=key, value=value, headers=list(zip(names, values, strict=True)))

    def replayed(self) -> dict[Address, datetime]:
        """Which of them were sent back, and when last."""
        with translated(), self._connect() as session:
            rows = session.execute(_SQL["replayed"], {"topic": self.topic, "topic_id": self._topic_id}).fetchall()
        return {Address(partition, offset): at for partition, offset, at in rows}

    def record_replayed(self, addresses: Collection[Address]) -> None:
        """These were sent back, and have arrived."""
        self._execute(
            "replay_record",
            {"partitions": [each.partition for each in addresses], "offsets": [each.offset for each in addresses]},
        )

    def forget_replayed(self) -> None:
        """Drop from the table what the topic doesn't hold any more."""
        with TopicReader(self._settings, self.topic) as reader:
            bounds = reader.bounds()
        earliest = [low for low, _ in bounds.values()]
        self._execute("replay_forget", {"partitions": list(bounds), "earliest": earliest})

    def _execute(self, name: str, parameters: Mapping[str, Sequence[int]]) -> None:
        with translated(), self._connect() as session:
            session.execute(_SQL[name], {"topic": self.topic, "topic_id": self._topic_id, **parameters})

    def _connect(self) -> Session:
        session = connect(self._settings.database_url.get_secret_value(), "dead letters")
        session.execute("set search_path = sync_worker, pg_temp")
        return session


def dead_letter_of(message: Message) -> DeadLetter:
    """A record of the dead-letter topic, told apart into what it had and why it is there.

    The last `dlq_reason` and what follows it is the worker's: the record may have brought such headers itself.
    """
    headers = [(name, value) for name, value in headers_of(message) or ()]
    begin = max((n for n, (name, _) in enumerate(headers) if name == f"{PREFIX}reason"), default=len(headers))
    why = {
        name.removeprefix(PREFIX): (value or b"").decode("utf-8", "backslashreplace") for name, value in headers[begin:]
    }
    return DeadLetter(
        Address(*place_of(message)),
        message.timestamp()[1],
        why.get("reason", ""),
        why.get("detail", ""),
        _origin(why),
        "truncated" in why,
        message.key(),
        message.value(),
        headers[:begin],
    )


def moment_ms(text: str) -> int:
    """A time in ISO 8601 as ms since 1970. Raises SettingsError."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise SettingsError(f"{text!r} is not a time like 2026-01-31T12:00:00Z") from None
    if moment.tzinfo is None:
        raise SettingsError(f"the time {text} needs its offset from UTC, as in {text}Z")
    return int(moment.timestamp() * 1000)


def _origin(why: Mapping[str, str]) -> Origin | None:
    topic, partition, offset = (why.get(name, "") for name in ("topic", "partition", "offset"))
    if not (topic and _is_number(partition) and _is_number(offset)):
        return None
    timestamp = why.get("timestamp", "")
    return Origin(topic, int(partition), int(offset), int(timestamp) if _is_number(timestamp) else None)


def _is_number(text: str) -> bool:
    """Plain digits, no more than a 64-bit number has."""
    return text.isascii() and text.isdecimal() and len(text) <= 18
