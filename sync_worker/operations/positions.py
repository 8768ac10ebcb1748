"""Shows and sets where the inputs stand: `positions show` and `positions reset` (contract §5, design §4).

Setting is for what the worker itself must never decide: to skip, or to read again. It is refused while any worker is in
the consumer group, and sets Kafka's commits with the database's positions, or the next start would see a contradiction.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime

from sync_worker.database.sessions import Session, connect, transaction, translated
from sync_worker.errors import FatalError, SettingsError
from sync_worker.events import Partition
from sync_worker.intake import positions
from sync_worker.kafka.broker import Broker, partitions_of
from sync_worker.settings import Settings


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a partition stands: `position` None where the worker never read it, `committed` None where Kafka knows none."""

    partition: Partition
    position: int | None
    committed: int | None
    earliest: int
    end: int


@dataclass(frozen=True, slots=True)
class Reset:
    """What a reset does to a partition. records: how many become due again (positive) or are skipped (negative), at most."""

    partition: Partition
    before: int | None
    after: int

    @property
    def records(self) -> int:
        return 0 if self.before is None else self.before - self.after


class Repositioning:
    """One look at, or one change of, the positions of the settings' database and group."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._broker = Broker(settings)

    def show(self) -> list[Standing]:
        """Every partition of the input topics as they are now."""
        partitions = self._partitions(self._settings.input_topics, ())
        ends, earliest = self._broker.stable_end(partitions), self._broker.earliest(partitions)
        committed = self._broker.committed(self._settings.consumer_group, partitions)
        with translated(), self._connect() as session:
            standing = positions.read(session, partitions)
        return [
            Standing(partition, standing.get(partition), committed.get(partition), earliest[partition], ends[partition])
            for partition in partitions
        ]

    def plan(self, to: str, topics: Collection[str] = (), numbers: Collection[int] = ()) -> list[Reset]:
        """What `reset` would do. to: earliest, latest, database, an offset, or a time in ISO 8601. No topics or numbers: all of them.

        database: where the database stands, for one that went back behind Kafka's commits; a partition that it never read
        starts at its earliest record.

        Raises SettingsError for a target or a partition that can't be meant.
        """
        if unknown := sorted(set(topics) - set(self._settings.input_topics)):
            raise SettingsError(
                f"not an input topic: {', '.join(unknown)}; there are {', '.join(self._settings.input_topics)}"
            )
        partitions = self._partitions(topics or self._settings.input_topics, numbers)
        with translated(), self._connect() as session:
            before = positions.read(session, partitions)
            if to == "database":
                self._refuse_other_topics(session, partitions)
        after = self._standing(before, partitions) if to == "database" else self._target(to, partitions)
        return [Reset(partition, before.get(partition), after[partition]) for partition in partitions]

    def reset(self, plan: Collection[Reset]) -> None:
        """Do it. Raises FatalError while the consumer group has members."""
        group = self._settings.consumer_group
        if members := self._broker.members(group):
            held = [
                f"{member} has {', '.join(map(str, partitions)) or 'none yet'}"
                for member, partitions in members.items()
            ]
            raise FatalError(f"group {group} has members; stop the workers first: {'; '.join(held)}")
        offsets = {each.partition: each.after for each in plan}
        topics = sorted({partition.topic for partition in offsets})
        facts, cluster_id = self._broker.topics(topics), self._broker.cluster_id()
        # Kafka first. If we die in between, a reset backwards has not happened (Kafka may lag behind), and one forwards makes the
        # worker stop at a database that seems to have gone back: neither skips a record that nobody was told of.
        self._broker.set_committed(group, offsets)
        with translated(), self._connect() as session, transaction(session):
            for topic in topics:
                self._complete(session, topic, facts[topic].topic_id, cluster_id, offsets)
            for partition, offset in sorted(offsets.items()):
                session.execute(
                    positions.SQL["position_set"],
                    {"topic": partition.topic, "partition": partition.number, "offset": offset},
                )

    def _complete(
        self, session: Session, topic: str, topic_id: str, cluster_id: str, offsets: Mapping[Partition, int]
    ) -> None:
        """The topic as it is now is the one that the positions are for; so all of its partitions must be among them."""
        known = session.execute(positions.SQL["topics_known"], {"topics": [topic]}).fetchone()
        if known is None or known[1:] != (topic_id, cluster_id):
            missing = [p for p in self._partitions([topic], ()) if p not in offsets]
            if missing:
                raise FatalError(
                    f"{topic} was never read, or was made anew since: set all of its partitions at once "
                    f"(missing: {', '.join(map(str, missing))})"
                )
        session.execute(positions.SQL["topic_set"], {"topic": topic, "topic_id": topic_id, "cluster_id": cluster_id})

    def _partitions(self, topics: Collection[str], numbers: Collection[int]) -> list[Partition]:
        facts = self._broker.topics(topics)
        found = partitions_of(facts)
        if not numbers:
            return found
        chosen = [partition for partition in found if partition.number in numbers]
        if missing := sorted(set(numbers) - {partition.number for partition in chosen}):
            raise SettingsError(
                f"no topic among {', '.join(sorted(facts))} has partition {', '.join(map(str, missing))}"
            )
        return chosen

    def _target(self, to: str, partitions: Collection[Partition]) -> dict[Partition, int]:
        if to == "earliest":
            return self._broker.earliest(partitions)
        if to == "latest":
            return self._broker.stable_end(partitions)
        if to.isdecimal():
            return self._offset(int(to), partitions)
        try:
            time = datetime.fromisoformat(to)
        except ValueError:
            raise SettingsError(
                f"{to!r} is neither earliest, latest, database, an offset nor a time like 2026-01-31T12:00:00Z"
            ) from None
        if time.tzinfo is None:
            raise SettingsError(f"the time {to} needs its offset from UTC, as in {to}Z")
        return self._broker.at_time(partitions, int(time.timestamp() * 1000))

    def _refuse_other_topics(self, session: Session, partitions: Collection[Partition]) -> None:
        """In a topic made anew, the database's positions mean other records."""
        names = sorted({partition.topic for partition in partitions})
        facts, cluster_id = self._broker.topics(names), self._broker.cluster_id()
        known = session.execute(positions.SQL["topics_known"], {"topics": names}).fetchall()
        if anew := [name for name, *ids in known if tuple(ids) != (facts[name].topic_id, cluster_id)]:
            raise SettingsError(
                f"{', '.join(anew)}: made anew, or of another Kafka cluster; the database's positions mean other records: "
                "choose another target"
            )

    def _standing(
        self, positions_now: Mapping[Partition, int], partitions: Collection[Partition]
    ) -> dict[Partition, int]:
        earliest, ends = self._broker.earliest(partitions), self._broker.stable_end(partitions)
        after = {partition: positions_now.get(partition, earliest[partition]) for partition in partitions}
        if outside := [p for p in partitions if not earliest[p] <= after[p] <= ends[p]]:
            ranges = ", ".join(f"{p} stands at {after[p]} and holds {earliest[p]} to {ends[p]}" for p in outside)
            raise SettingsError(
                f"the database stands outside of what these partitions hold: {ranges}; choose another target"
            )
        return after

    def _offset(self, offset: int, partitions: Collection[Partition]) -> dict[Partition, int]:
        earliest, ends = self._broker.earliest(partitions), self._broker.stable_end(partitions)
        if outside := [p for p in partitions if not earliest[p] <= offset <= ends[p]]:
            ranges = ", ".join(f"{p}: {earliest[p]} to {ends[p]}" for p in outside)
            raise SettingsError(f"offset {offset} is outside of what these partitions hold: {ranges}")
        return dict.fromkeys(partitions, offset)

    def _connect(self) -> Session:
        session = connect(self._settings.database_url.get_secret_value(), "positions")
        session.execute("set search_path = sync_worker, pg_temp")
        return session
