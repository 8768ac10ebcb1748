"""Is the database at the revision that this version of the worker works with? Asked before anything else is done with it."""

from sqlalchemy import Connection, select, text

from sync_worker.database.migrate import head_revision, known_revisions, newer_message
from sync_worker.database.tables import alembic_version
from sync_worker.errors import FatalError


def check_revision(connection: Connection) -> str:
    """The revision. Raises FatalError that says what to do where it is another one."""
    found = None
    if connection.execute(text("select to_regclass('sync_worker.alembic_version')")).scalar() is not None:
        found = connection.execute(select(alembic_version.c.version_num)).scalar()
    head = head_revision()
    if found is None:
        raise FatalError(
            "the database holds no schema sync_worker (or this user may not see it): run `sync-worker migrate` as its owner"
        )
    if found not in known_revisions():
        raise FatalError(newer_message(str(found)))
    if found != head:
        raise FatalError(
            f"the database's schema sync_worker is at revision {found}, this worker needs {head}: run `sync-worker migrate`"
        )
    return str(found)
