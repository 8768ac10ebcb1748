"""The one way from facts to rows: whoever is touched gets what the rule says, and each visible change goes to the outbox.

Live events, method events, backfill steps and repairs all come through here, so that they can't disagree (design §2).
"""

from collections.abc import Mapping
from typing import Any

from sync_worker.database.arrays import bools, int4s, int8s, texts, uuids
from sync_worker.database.sessions import Session
from sync_worker.database.statements import load

SQL = load("sync_worker.enrollment", "statements.sql")

METHOD_CHANGED = "EnrollmentMethodChanged"
SOURCE_CHANGED = "EnrollmentSourceChanged"
HOLD_RELEASED = "HOLD_RELEASED"
RECONCILE = "RECONCILE"

NOTHING: Mapping[str, Any] = {
    # memberships that changed
    "m_segments": uuids([]),
    "m_users": uuids([]),
    "m_members": bools([]),
    "m_ordinals": int4s([]),
    "m_events": uuids([]),
    "m_traces": texts([]),
    # (method, user) pairs whose method changed, or that are looked at again
    "p_methods": uuids([]),
    "p_users": uuids([]),
    "p_ordinals": int4s([]),
    "p_cause": METHOD_CHANGED,
    # other sources that changed
    "s_courses": uuids([]),
    "s_users": uuids([]),
    "s_names": texts([]),
    "s_statuses": texts([]),
    "s_roles": texts([]),
    "s_ordinals": int4s([]),
    "s_events": uuids([]),
    "s_traces": texts([]),
    "s_cause": SOURCE_CHANGED,
    # suspensions in a course
    "x_courses": uuids([]),
    "x_users": uuids([]),
    "x_suspended": bools([]),
    "x_versions": int8s([]),
    "x_ordinals": int4s([]),
    "x_events": uuids([]),
    "x_traces": texts([]),
}
"""The parameters of `converge` where nothing was touched; a caller overlays its own."""


def converge(session: Session, touched: Mapping[str, Any]) -> int:
    """Apply the rule to what was touched; how many visible changes that made.

    The caller holds the advisory lock, and the row locks of the facts, from earlier statements of the same transaction.
    """
    return session.execute(SQL["converge"], {**NOTHING, **touched}, prepare=True).rowcount
