"""One look at the database for the commands that only answer: everything they read is of one moment, and nothing can be written."""

from collections.abc import Iterator
from contextlib import contextmanager

from psycopg import IsolationLevel

from sync_worker.database import arrays
from sync_worker.database.sessions import Session, connect, transaction, translated
from sync_worker.settings import Settings


@contextmanager
def snapshot(settings: Settings, purpose: str) -> Iterator[Session]:
    """A session inside a transaction that is READ ONLY and REPEATABLE READ.

    A user who may only read will do, so the server needn't take writes; but it is a primary unless the URL says otherwise, as a
    standby may lag behind.
    """
    url = settings.database_url.get_secret_value()
    with translated(), connect(url, purpose, server="primary") as session:
        arrays.register(session)
        session.read_only = True
        session.isolation_level = IsolationLevel.REPEATABLE_READ
        with transaction(session):
            session.execute("set local search_path = sync_worker, pg_temp")
            yield session
