"""Removes a person from every table and leaves a tombstone in the outbox for each of their keys (contract §2 and §5).

It happens under the exclusive advisory lock, so that whatever else writes of the person has happened before, and is erased,
or happens after, and begins a new life at version 1. What stays on record must not say who it was.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self, cast
from uuid import UUID

from psycopg.types.json import Jsonb

from sync_worker.database.sessions import Session, transaction, translated
from sync_worker.database.statements import load
from sync_worker.enrollment.apply import SQL as SHARED
from sync_worker.failpoints import reach

SQL = load("sync_worker.enrollment", "erase.sql")


@dataclass(frozen=True, slots=True)
class Traces:
    """Rows that name a person, by table.

    progress: work in steps that has come to exactly this person. intervention: what operators did to them. outbox: rows that
    the relay has still to publish and to delete, tombstones among them; an erasure leaves these to it, or consumers
    would miss versions.
    """

    enrollment: int
    membership: int
    source: int
    progress: int
    intervention: int
    outbox: int
    dead_letter: int = 0

    def with_dead_letters(self, dead_letters: int) -> Self:
        return replace(self, dead_letter=dead_letters)

    @property
    def erasable(self) -> bool:
        """Is there anything for an erasure to remove?"""
        return any(asdict(replace(self, outbox=0)).values())

    @property
    def any(self) -> bool:
        """Does anything name the person?"""
        return self.erasable or self.outbox > 0


def find(session: Session, user_id: UUID) -> Traces:
    """What names the person at this moment. Takes no lock."""
    with translated():
        return _traces(session, user_id).with_dead_letters(len(_dead_letters(session, user_id)))


def erase_dead_letters(session: Session, user_id: UUID, by: str) -> int:
    """Remove the dead letters that name the person, published or not; how many.

    A transaction of its own, since reading all of them and waiting for the relay must not happen under the exclusive lock.
    """
    with translated():
        ids: dict[str, Any] = {"ids": _dead_letters(session, user_id)}
        if not ids["ids"]:
            return 0
        with transaction(session):
            session.execute(SQL["dead_letters_unpublish"], ids)
            removed = session.execute(SQL["dead_letters_erase"], ids).rowcount
            _record(session, by, {"dead_letter": removed}, tombstones=0)
    reach("erase_dead_letters_gone")
    return removed


def erase_person(session: Session, user_id: UUID, by: str) -> Traces:
    """Remove all else, in one transaction; what was removed, and as `outbox` what is left for the relay.

    Run again, it removes nothing. Raises Contention where a lock was not to be had in time; nothing has happened then.
    """
    scope = {"user": str(user_id)}
    with translated():
        with transaction(session):

            def removed(table: str) -> int:
                return session.execute(SQL[f"{table}_erase"], scope).rowcount

            session.execute(SHARED["lock_exclusive"])
            membership, source = removed("membership"), removed("source")
            session.execute(SQL["enrollment_lock"], scope)
            enrollment = removed("enrollment")
            progress = sum(removed(table) for table in ("backfill", "hold_release", "reconcile_run"))
            gone = Traces(enrollment, membership, source, progress, removed("intervention"), outbox=0)
            if gone.erasable:
                _record(session, by, asdict(gone), tombstones=enrollment)
            reach("erase_before_commit")
        return replace(gone, outbox=_traces(session, user_id).outbox)


def _traces(session: Session, user_id: UUID) -> Traces:
    return Traces(*cast("tuple[int, ...]", session.execute(SQL["traces"], {"user": str(user_id)}).fetchone()))


def _dead_letters(session: Session, user_id: UUID) -> list[int]:
    return [id_ for (id_,) in session.execute(SQL["dead_letters_naming"], {"user": str(user_id)})]


def _record(session: Session, by: str, rows: Mapping[str, int], *, tombstones: int) -> None:
    removed = {table: count for table, count in rows.items() if count}
    session.execute(SQL["erasure_record"], {"by": by, "detail": Jsonb({"rows": removed, "tombstones": tombstones})})
