"""A commit is believed only where it happened."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

import sync_worker
from sync_worker.database.sessions import ConnectionLost, Session, connect, transaction


def lose(session: Session, database_url: str) -> None:
    """The session ends, and the one error that says so is swallowed by whoever cleans up."""
    with psycopg.connect(database_url, autocommit=True) as other:
        other.execute("select pg_terminate_backend(%s, 60000)", (session.info.backend_pid,))
    with suppress(psycopg.OperationalError):
        session.execute("select 1")


def change_and_lose(session: Session, database_url: str) -> None:
    with transaction(session):
        session.execute("update sync_worker.schema_support set oldest_worker = 'lost'")
        lose(session, database_url)


def test_a_transaction_that_could_not_be_committed_is_never_left_without_a_word(database_url: str) -> None:
    session = connect(database_url, "test")
    with pytest.raises(ConnectionLost, match="before its transaction could be committed"):
        change_and_lose(session, database_url)
    with psycopg.connect(database_url) as other:
        assert other.execute("select from sync_worker.schema_support where oldest_worker = 'lost'").fetchone() is None


def test_the_driver_s_own_block_says_nothing(database_url: str) -> None:
    """Where this fails, the driver has changed, and `transaction` may be simpler."""
    session = connect(database_url, "test")
    with session.transaction():
        lose(session, database_url)


def test_a_savepoint_is_a_transaction_too_and_errors_pass_through(database_url: str) -> None:
    with connect(database_url, "test") as session:
        with transaction(session):
            with suppress(ZeroDivisionError), transaction(session):
                session.execute("update sync_worker.schema_support set oldest_worker = 'inner'")
                raise ZeroDivisionError
            session.execute("create temporary table kept (n int)")
        assert (
            session.execute("select from sync_worker.schema_support where oldest_worker = 'inner'").fetchone() is None
        )
        assert session.execute("select count(*) from kept").fetchone() == (0,)


def test_nobody_else_opens_transactions() -> None:
    folder = Path(sync_worker.__file__).parent
    # Nothing is to be committed where everything is rolled back in the end.
    own = re.compile(r"session\.transaction\((?!force_rollback=True)")
    found = [str(file.relative_to(folder)) for file in folder.rglob("*.py") if own.search(file.read_text("utf-8"))]
    assert found == ["database/sessions.py"]
