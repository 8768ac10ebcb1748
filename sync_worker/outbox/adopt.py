"""Makes a database that is another one, or went back, follow the topic: what each key was told, beside what its row is.

One transaction decides and writes everything, under a lock that keeps rows and outbox as they are. It must never give a
version that consumers may have seen to something else, and never touch what a row is: that is the facts' business.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, NamedTuple, Self, cast

from psycopg.types.json import Jsonb

from sync_worker.database.sessions import Session, connect, transaction, translated
from sync_worker.database.statements import load
from sync_worker.events import Partition
from sync_worker.failpoints import reach
from sync_worker.outbox.windows import NOTHING_SEEN

SQL = load("sync_worker.outbox", "adopt.sql")

# Whoever has the LMS's transaction open ends within 10 s (design §3); a worker's is shorter.
LOCK_TIMEOUT_S = 30


class Told(NamedTuple):
    """The last record of a key on `enrollment.changes`: the state that it tells, as a row of `enrollment` would hold it.

    version 0: a tombstone. own: published by this consumer group.
    """

    course_id: str
    user_id: str
    partition: int
    version: int
    own: bool
    sources: Mapping[str, Mapping[str, Any]]
    hand: Collection[str]
    suspended: bool

    @classmethod
    def of_change(cls, change: Mapping[str, Any], partition: int, *, own: bool) -> Self:
        """From the fields of an EnrollmentChanged. What a group's members have by hand is all that no contribution gives."""
        after = change["after"]
        sources = {each["source"]: _contribution(each) for each in after["sources"]}
        managed = {each.get("group_id") for each in sources.values() if each["member"]}
        hand = sorted(str(group) for group in after["groups"] if str(group) not in managed)
        return cls(
            str(change["course_id"]),
            str(change["user_id"]),
            partition,
            change["version"],
            own,
            sources,
            hand,
            after["suspended_in_course"],
        )

    @classmethod
    def of_tombstone(cls, key: str, partition: int) -> Self:
        course_id, _, user_id = key.partition(":")
        return cls(course_id, user_id, partition, 0, True, {}, (), False)


class WaitingDeadLetter(NamedTuple):
    """A dead letter in the outbox: its id, where the rejected record stood, and when it was kept."""

    id: int
    partition: Partition
    offset: int
    recorded_at: datetime


@dataclass(frozen=True, slots=True)
class Differences:
    """How the two sides differ, in keys, and what becomes of what waits in the outbox, in rows.

    waiting: keys whose events wait in the outbox and follow the topic's last one: these stay. renumbered: keys on which both
    show the same under another version. published: keys about which the topic tells something else. repeated: keys whose
    last events the topic lost. foreign: keys of other consumer groups, left alone. dropped: rows that were told already, or
    that what is published replaces.
    """

    waiting: int
    renumbered: int
    published: int
    repeated: int
    foreign: int
    dropped: int


class Adoption:
    """A session that takes in what the topic tells, compares, and adopts. Killed at any point, it can begin anew."""

    def __init__(self, database_url: str) -> None:
        self._session: Session = connect(database_url, "relay adopt")
        with translated():
            # A statement may look at every row there is: its time is bounded by whoever watches.
            self._session.execute(
                f"set search_path = sync_worker, pg_temp; set jit = off; set lock_timeout = '{LOCK_TIMEOUT_S}s'; "
                "set default_transaction_isolation = 'read committed'; set synchronous_commit = on"
            )
            self._session.execute(SQL["adopt_tables"])

    def load(self, chunk: Iterable[Told]) -> None:
        """Take in records, at most one of each key, later ones after earlier ones."""
        with translated(), transaction(self._session), self._session.cursor() as cursor:
            with cursor.copy(SQL["adopt_copy"]) as copy:
                for told in chunk:
                    copy.write_row((*told[:5], Jsonb(told.sources), list(told.hand), told.suspended))
            cursor.execute(SQL["adopt_merge"])
            cursor.execute(SQL["adopt_chunk_clear"])

    def dead_letters(self) -> list[WaitingDeadLetter]:
        """Those in the outbox, published or not."""
        with translated():
            rows = self._session.execute(SQL["adopt_dead_letters"]).fetchall()
        return [
            WaitingDeadLetter(id_, Partition(topic, number), offset, recorded_at)
            for id_, topic, number, offset, recorded_at in rows
        ]

    def compare(self) -> Differences:
        """What `adopt` would do now. Writes nothing, and locks nothing."""
        with translated(), self._session.transaction(force_rollback=True):
            return self._plan()

    def adopt(
        self, number: int, seen: Collection[WaitingDeadLetter], told: Collection[WaitingDeadLetter], by: str
    ) -> Differences:
        """Do it, and begin a chain of windows with `number`, which no window and no cursor ever had.

        seen: the dead letters that were asked about; told: those of them that the topic holds. Raises Contention where the
        lock was not to be had.
        """
        with translated(), transaction(self._session):
            self._session.execute(SQL["adopt_lock"])
            differences = self._plan()
            reach("adopt_planned")
            self._session.execute(SQL["adopt_number"])
            self._session.execute(SQL["adopt_keep"])
            self._session.execute(SQL["adopt_publish"])
            self._session.execute(
                SQL["adopt_keep_dead_letters"],
                {"seen": [letter.id for letter in seen], "told": [letter.id for letter in told]},
            )
            self._session.execute(SQL["adopt_forget"])
            self._session.execute(SQL["adopt_chain"], {"number": number, "nothing": NOTHING_SEEN})
            detail = asdict(differences) | {"window": number, "dead_letters_dropped": len(told)}
            self._session.execute(SQL["adopt_record"], {"by": by, "detail": Jsonb(detail)})
            reach("adopt_before_commit")
        reach("adopt_committed")
        return differences

    def _plan(self) -> Differences:
        self._session.execute(SQL["adopt_analyze"])
        self._session.execute(SQL["adopt_plan"])
        return Differences(*cast("tuple[int, ...]", self._session.execute(SQL["adopt_counts"]).fetchone()))

    def close(self) -> None:
        self._session.close()


def _contribution(shown: Mapping[str, Any]) -> dict[str, Any]:
    """As the database holds it: without its name, and without what is null."""
    return {
        name: value if isinstance(value, bool) else str(value)
        for name, value in shown.items()
        if name != "source" and value is not None
    }
