"""Where each input partition stands: kept in PostgreSQL, and moved in the transaction that applies the records (design §4).

Moving is compare-and-set, so whoever lost a partition without knowing can't move it. A position is never guessed: where
the database, the topic or the cluster is not the one it was made for, the worker stops.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from sync_worker.database.sessions import Session, transaction
from sync_worker.database.statements import load
from sync_worker.errors import FatalError, SyncWorkerError
from sync_worker.events import Partition
from sync_worker.kafka.broker import Broker

SQL = load("sync_worker.intake", "statements.sql")


class Move(NamedTuple):
    """A partition's position before and after a batch."""

    before: int
    after: int


class PositionsMoved(SyncWorkerError):
    """Another worker moved a position meanwhile: nothing of this transaction may stand."""


def advance(session: Session, moves: Mapping[Partition, Move]) -> None:
    """Move the positions, first thing in a transaction. Raises PositionsMoved where one is not what it should be."""
    ordered = sorted(moves)
    moved = session.execute(
        SQL["positions_move"],
        {
            **_keys(ordered),
            "befores": [moves[partition].before for partition in ordered],
            "afters": [moves[partition].after for partition in ordered],
        },
        prepare=True,
    ).rowcount
    if moved != len(ordered):
        raise PositionsMoved(f"positions of {', '.join(map(str, ordered))} were moved by another worker")


def read(session: Session, partitions: Iterable[Partition]) -> dict[Partition, int]:
    """The positions as committed; a partition without one is left out."""
    rows = session.execute(SQL["positions"], _keys(list(partitions)), prepare=True).fetchall()
    return {Partition(topic, number): next_offset for topic, number, next_offset in rows}


def establish(session: Session, broker: Broker, group: str, partitions: Sequence[Partition]) -> dict[Partition, int]:
    """The positions of partitions just assigned, made where there are none yet.

    A topic seen for the first time starts at its earliest record; a partition that a known topic got later starts at 0.
    Raises FatalError where the database, the topic or the cluster is another one than the positions were made for.
    """
    names = sorted({partition.topic for partition in partitions})
    check_topics(session, broker, names)
    # Kafka first: read the other way round, a commit in between would make Kafka look ahead.
    committed = broker.committed(group, partitions)
    positions = read(session, partitions)
    if missing := sorted(set(partitions) - set(positions)):
        _add_later_partitions(session, broker, missing)
        positions = read(session, partitions)
    for partition, offset in sorted(committed.items()):
        if offset > positions[partition]:
            raise FatalError(
                f"group {group} has committed offset {offset} of {partition} to Kafka, but the database stands at "
                f"{positions[partition]}: the database went back (a restored backup, a failover that lost transactions), or "
                "its position was set back alone. Set both with `sync-worker positions reset`; docs/recovery.md says how to choose"
            )
    return positions


def check_topics(session: Session, broker: Broker, names: Sequence[str]) -> None:
    """See that each topic is the one that positions were made for; a new topic is registered with all its partitions."""
    cluster_id = broker.cluster_id()
    found = broker.topics(names)
    known = {topic: (topic_id, cluster) for topic, topic_id, cluster in _known(session, names)}
    for name in names:
        if name not in known:
            _register(session, broker, name, cluster_id)
    known = {topic: (topic_id, cluster) for topic, topic_id, cluster in _known(session, names)}
    for name in names:
        if known[name] != (found[name].topic_id, cluster_id):
            topic_id, cluster = known[name]
            what = (
                f"topic {name} was made anew"
                if cluster == cluster_id
                else f"this is another Kafka cluster ({cluster_id}, not {cluster})"
            )
            raise FatalError(
                f"{what}: its id is {found[name].topic_id}, the database's positions are for {topic_id}, and its offsets mean "
                "other records. Say where to start with `sync-worker positions reset`; docs/recovery.md says how to choose"
            )


def _known(session: Session, names: Sequence[str]) -> list[tuple[str, str, str]]:
    return session.execute(SQL["topics_known"], {"topics": list(names)}).fetchall()


def _register(session: Session, broker: Broker, name: str, cluster_id: str) -> None:
    """A topic seen for the first time: all its positions at once, so that a partition without one is a later partition."""
    facts = broker.topics([name])[name]
    earliest = broker.earliest(Partition(name, number) for number in range(facts.partitions))
    with transaction(session):
        first = session.execute(
            SQL["topic_register"], {"topic": name, "topic_id": facts.topic_id, "cluster_id": cluster_id}
        ).fetchone()
        if first is not None:
            _add(session, earliest)


def _add_later_partitions(session: Session, broker: Broker, partitions: Sequence[Partition]) -> None:
    """Partitions that a known topic got later have every record to be read."""
    for partition, earliest in sorted(broker.earliest(partitions).items()):
        if earliest > 0:
            raise FatalError(
                f"{partition} was added to a topic that was being read, and its records before offset {earliest} are gone "
                "unread: say where to start with `sync-worker positions reset`, then compare with the publisher"
            )
    _add(session, dict.fromkeys(partitions, 0))


def _add(session: Session, offsets: Mapping[Partition, int]) -> None:
    ordered = sorted(offsets)
    session.execute(SQL["positions_add"], _keys(ordered) | {"offsets": [offsets[partition] for partition in ordered]})


def _keys(partitions: Sequence[Partition]) -> dict[str, list[str] | list[int]]:
    return {
        "topics": [partition.topic for partition in partitions],
        "partitions": [partition.number for partition in partitions],
    }
