"""Is the database at the revision that this version of the worker works with? Asked before anything else is done with it."""

import structlog
from sqlalchemy import Connection, select, text

from sync_worker.database import halves
from sync_worker.database.migrate import newer_message
from sync_worker.database.tables import alembic_version
from sync_worker.errors import FatalError

log = structlog.get_logger(__name__)


def check_revision(connection: Connection) -> str:
    """The revision. Raises FatalError that says what to do where it is another one."""
    found = None
    if connection.execute(text("select to_regclass('sync_worker.alembic_version')")).scalar() is not None:
        found = connection.execute(select(alembic_version.c.version_num)).scalar()
    if found is None:
        raise FatalError(
            "the database holds no schema sync_worker (or this user may not see it): run `sync-worker migrate` as its owner"
        )
    if not halves.is_known(found):
        oldest = halves.supported_from(connection)
        if oldest is None or not halves.is_known(oldest):
            raise FatalError(newer_message(found))
        log.info("schema_is_newer", revision=found, supports_from=oldest)
    elif not halves.is_enough(found):
        raise FatalError(
            f"the database's schema sync_worker is at revision {found}, this worker needs {halves.needed()}: run `sync-worker migrate`"
        )
    return str(found)
