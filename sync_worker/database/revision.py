"""Is the database at the revision that this version of the worker works with? Asked before anything else is done with it."""

from typing import LiteralString

import structlog

from sync_worker.database import halves
from sync_worker.database.sessions import Session, connect, translated
from sync_worker.errors import FatalError

log = structlog.get_logger(__name__)


def expect_revision(url: str, purpose: str) -> None:
    """`check_revision` in a session of its own. Raises RetryableError while the database is away."""
    with translated(), connect(url, purpose) as session:
        check_revision(session)


def check_revision(session: Session) -> str:
    """The revision. Raises FatalError that says what to do where it is another one."""
    found = _only(session, "alembic_version", "select version_num from sync_worker.alembic_version")
    if found is None:
        raise FatalError(
            "the database holds no schema sync_worker (or this user may not see it): run `sync-worker migrate` as its owner"
        )
    if not halves.is_known(found):
        # What the newer version that migrated this database said of it, if it did.
        oldest = _only(session, "schema_support", "select oldest_worker from sync_worker.schema_support")
        if oldest is None or not halves.is_known(oldest):
            raise FatalError(halves.newer_message(found))
        log.info("schema_is_newer", revision=found, supports_from=oldest)
    elif not halves.is_enough(found):
        raise FatalError(
            f"the database's schema sync_worker is at revision {found}, this worker needs {halves.needed()}: run `sync-worker migrate`"
        )
    return found


def _only(session: Session, table: str, query: LiteralString) -> str | None:
    """The one value that a table holds; None where there is no such table, or nothing in it."""
    there = session.execute("select to_regclass('sync_worker.' || %s)", (table,)).fetchone()
    row = None if there is None or there[0] is None else session.execute(query).fetchone()
    return None if row is None else str(row[0])
