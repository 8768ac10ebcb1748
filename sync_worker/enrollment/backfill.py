"""Applies the effect of a method event over a large segment, in steps of about a thousand people (design §3).

A step must lock the memberships of its people before it applies the rule: without, a member being added elsewhere is
overlooked, and without the shared advisory lock a second change of the method is (both gave wrong rows when left out).
"""

from dataclasses import dataclass
from typing import Any, cast
from uuid import UUID

import structlog

from sync_worker.database.arrays import int4s, uuids
from sync_worker.database.sessions import Contention, Session, transaction, translated
from sync_worker.enrollment.apply import SQL
from sync_worker.enrollment.converge import METHOD_CHANGED, converge
from sync_worker.failpoints import reach

PEOPLE_PER_STEP = 1000
NOBODY = bytes(16)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Step:
    """What one step came to. `people` 0: another worker had it, or a newer version of the method took over."""

    method_id: bytes
    people: int
    changes: int
    finished: bool


def step(session: Session, people_per_step: int = PEOPLE_PER_STEP) -> Step | None:
    """Take one step of any backfill; None where there is none to be done."""
    with translated():
        candidate = session.execute(SQL["backfill_candidate"], prepare=True, binary=True).fetchone()
        if candidate is None:
            return None
        method_id, version, after_user, total, course_id, segment_id, deleted = candidate
        scope: dict[str, Any] = {
            "method": UUID(bytes=method_id),
            "version": version,
            "segment": UUID(bytes=segment_id),
            "course": UUID(bytes=course_id),
            "deleted": deleted,
            "after": UUID(bytes=after_user),
            "n": people_per_step,
        }
        if total is None and after_user == NOBODY:
            session.execute(SQL["backfill_total"], scope | {"total": _count(session, scope)})
        # Read before the locks, since the course may be large. Whoever joins or leaves from now on does so by an event of its own,
        # which sees the method as it is.
        rows = session.execute(SQL["people"], scope, prepare=True, binary=True).fetchall()
        reach("backfill_people")
        people = [user for user, _ in rows]
        known = all(has_membership for _, has_membership in rows)
        return _apply(session, method_id, scope, people, known=known, finished=len(people) < people_per_step)


def _count(session: Session, scope: dict[str, Any]) -> int | None:
    """How many people there are to look at; None where counting takes too long. Progress is no reason to make none."""
    try:
        with translated(), transaction(session):
            session.execute(SQL["count_briefly"])
            (total,) = cast("tuple[int]", session.execute(SQL["people_total"], scope).fetchone())
    except Contention as error:
        log.info("backfill_not_counted", reason=str(error))
        return None
    return total


def _apply(
    session: Session, method_id: bytes, scope: dict[str, Any], people: list[bytes], *, known: bool, finished: bool
) -> Step:
    with transaction(session):
        session.execute(SQL["lock_shared"], prepare=True)
        if session.execute(SQL["backfill_take"], scope, prepare=True).fetchone() is None:
            return Step(method_id, 0, 0, finished=False)
        reach("backfill_taken")
        changes = 0
        if people:
            _lock(session, scope | {"users": uuids(people)}, len(people), known=known)
            reach("backfill_locked")
            pairs = {
                "p_methods": uuids([method_id] * len(people)),
                "p_users": uuids(people),
                "p_ordinals": int4s([0] * len(people)),
                "p_cause": METHOD_CHANGED,
            }
            changes = converge(session, pairs)
        if finished:
            session.execute(SQL["backfill_done"], scope, prepare=True)
        else:
            session.execute(
                SQL["backfill_move"], scope | {"after": UUID(bytes=people[-1]), "people": len(people)}, prepare=True
            )
        reach("backfill_before_commit")
    reach("backfill_after_commit")
    return Step(method_id, len(people), changes, finished)


def _lock(session: Session, scope: dict[str, Any], people: int, *, known: bool) -> None:
    """Lock the memberships of these people. known: each has one, unless it was erased since."""
    if known:
        (locked,) = cast("tuple[int]", session.execute(SQL["memberships_lock"], scope, prepare=True).fetchone())
        if locked == people:
            return
    session.execute(SQL["backfill_lock"], scope, prepare=True)
