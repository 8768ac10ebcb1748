"""The end of a hold: its removals are applied in steps, through the rule, as a backfill is (semantics §5, design §3).

A release goes on where it stopped, by any worker or by the command that began it; it never counts towards another hold.
"""

from dataclasses import dataclass
from uuid import UUID

from psycopg.types.json import Jsonb

from sync_worker.database.arrays import int4s, uuids
from sync_worker.database.sessions import Session, transaction, translated
from sync_worker.enrollment.apply import SQL as APPLY
from sync_worker.enrollment.backfill import PEOPLE_PER_STEP
from sync_worker.enrollment.breaker import SQL
from sync_worker.enrollment.converge import HOLD_RELEASED, converge
from sync_worker.enrollment.folding import MAX_PAIRS
from sync_worker.failpoints import reach


@dataclass(frozen=True, slots=True)
class Release:
    """A hold that has ended: its number, and how many removals it had kept back."""

    number: int
    total: int


@dataclass(frozen=True, slots=True)
class Step:
    """What one step came to. `people` 0 and not finished: another worker had it."""

    number: int
    people: int
    changes: int
    finished: bool


def end_hold(session: Session, segment_id: bytes, by: str) -> Release | None:
    """End the hold of a segment and begin its release; None where it isn't held. by: who asked, for the record."""
    segment = {"segment": UUID(bytes=segment_id)}
    with translated(), transaction(session):
        # Whoever is marking removals with this hold's number is waited for.
        if session.execute(SQL["hold_end"], segment).fetchone() is None:
            return None
        session.execute(SQL["removals_lock"])
        row = session.execute(SQL["release_put"], segment).fetchone()
        if row is None:
            return None
        release = Release(*row)
        detail = {"segment_id": str(segment["segment"]), "hold": release.number, "removals": release.total}
        session.execute(SQL["on_record"], {"by": by, "operation": "holds release", "detail": Jsonb(detail)})
    return release


def step(session: Session, people_per_step: int = PEOPLE_PER_STEP) -> Step | None:
    """Take one step of any release; None where there is none to be done."""
    with translated():
        candidate = session.execute(SQL["release_candidate"], prepare=True, binary=True).fetchone()
        if candidate is None:
            return None
        number, segment_id, after_user = candidate
        scope = {"number": number, "segment": UUID(bytes=segment_id), "after": UUID(bytes=after_user)}
        methods = len(session.execute(SQL["release_methods"], scope, prepare=True).fetchall())
        n = max(1, min(people_per_step, MAX_PAIRS // max(1, methods)))
        rows = session.execute(SQL["release_people"], scope | {"n": n}, prepare=True, binary=True).fetchall()
        people = [user for (user,) in rows]
        with transaction(session):
            session.execute(APPLY["lock_shared"], prepare=True)
            if session.execute(SQL["release_take"], scope, prepare=True).fetchone() is None:
                return Step(number, 0, 0, finished=False)
            changes = _apply(session, scope, people) if people else 0
            finished = len(people) < n
            if finished:
                session.execute(SQL["release_done"], scope, prepare=True)
            else:
                moved = scope | {"after": UUID(bytes=people[-1]), "people": len(people)}
                session.execute(SQL["release_move"], moved, prepare=True)
            reach("release_before_commit")
        reach("release_after_commit")
    return Step(number, len(people), changes, finished)


def _apply(session: Session, scope: dict[str, object], people: list[bytes]) -> int:
    """Unmark those who are still marked, and let the rule see them as what they are: no members."""
    rows = session.execute(SQL["release_lock"], scope | {"users": uuids(people)}, prepare=True, binary=True).fetchall()
    marked = [user for (user,) in rows]
    if not marked:
        return 0
    session.execute(SQL["release_unmark"], scope | {"users": uuids(marked)}, prepare=True)
    rows = session.execute(SQL["release_methods"], scope, prepare=True, binary=True).fetchall()
    methods = [method for (method,) in rows]
    pairs = [(method, user) for method in methods for user in marked]
    return converge(
        session,
        {
            "p_methods": uuids([method for method, _ in pairs]),
            "p_users": uuids([user for _, user in pairs]),
            "p_ordinals": int4s([0] * len(pairs)),
            "p_cause": HOLD_RELEASED,
        },
    )
