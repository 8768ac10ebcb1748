"""Writes the present state of rows to the outbox once more, a thousand people at a time, beside live traffic.

Each step is a transaction under the shared advisory lock with its rows locked in key order, like every writer's. It must
never say that anything changed.
"""

from typing import Any, NamedTuple, cast
from uuid import UUID

from psycopg.types.json import Jsonb

from sync_worker.database.arrays import uuids
from sync_worker.database.sessions import Session, transaction, translated
from sync_worker.database.statements import load
from sync_worker.failpoints import reach

SQL = load("sync_worker.outbox", "republish.sql")
_LOCK = load("sync_worker.enrollment", "statements.sql")["lock_shared"]

PEOPLE_PER_STEP = 1000


class Key(NamedTuple):
    """A person in a course; ids of 16 bytes."""

    course_id: bytes
    user_id: bytes


class Courses(NamedTuple):
    """The courses from one to another by id, both included: all, or one."""

    first: UUID
    last: UUID

    @property
    def beginning(self) -> Key:
        """A key before all of theirs."""
        return Key(self.first.bytes, bytes(16))


ALL = Courses(UUID(bytes=bytes(16)), UUID(bytes=b"\xff" * 16))


def count(session: Session, courses: Courses) -> int:
    """How many rows a republication writes."""
    with translated():
        return cast("tuple[int]", session.execute(SQL["republish_count"], courses._asdict()).fetchone())[0]


def record(session: Session, by: str, course: UUID | None, rows: int) -> None:
    """Put it on record, before the first step: it may be interrupted."""
    detail = {"course_id": None if course is None else str(course), "rows": rows}
    with translated():
        session.execute(SQL["republish_record"], {"by": by, "detail": Jsonb(detail)})


def step(session: Session, courses: Courses, after: Key, people_per_step: int = PEOPLE_PER_STEP) -> list[Key]:
    """Write the next people behind `after` once more; who they were, nobody at the end.

    Raises Contention where a lock was not to be had in time; nothing has happened then.
    """
    scope: dict[str, Any] = {
        "last": courses.last,
        "after_course": UUID(bytes=after.course_id),
        "after_user": UUID(bytes=after.user_id),
        "n": people_per_step,
    }
    with translated():
        with transaction(session):
            session.execute(_LOCK, prepare=True)
            people = [Key(*row) for row in session.execute(SQL["republish_lock"], scope, prepare=True, binary=True)]
            columns = {
                "courses": uuids([each.course_id for each in people]),
                "users": uuids([each.user_id for each in people]),
            }
            session.execute(SQL["republish"], columns, prepare=True)
            reach("republish_before_commit")
        reach("republish_after_commit")
    return people
