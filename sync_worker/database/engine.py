"""SQLAlchemy's way to the sessions of sessions.py, for `migrate` and for commands that put their queries together.

Never imported by a worker: with Alembic it takes 22 MB and a quarter of the start, for nothing that a worker asks (ADR 11).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from sqlalchemy import Connection, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from sync_worker.database.sessions import connect, translation


@contextmanager
def connection_to(url: str, purpose: str) -> Iterator[Connection]:
    """A new session, closed in the end; what isn't committed by then is rolled back. Raises the worker's errors, not the driver's."""
    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: connect(url, purpose, autocommit=False), poolclass=NullPool
    )
    try:
        with engine.connect() as connection:
            yield connection
    except DBAPIError as error:
        if isinstance(error.orig, psycopg.Error):
            raise translation(error.orig) from error
        raise
