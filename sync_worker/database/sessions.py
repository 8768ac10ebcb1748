"""Connections to PostgreSQL, one per loop, and the border where the driver's errors become the worker's.

Every wait of a session is bounded: a frozen worker must not hold up the fleet, and in a deadlock with the LMS it is the
worker that yields (design §3).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow

from sync_worker.errors import FatalError, RetryableError, SyncWorkerError

Session = Connection[TupleRow]

IDLE_IN_TRANSACTION_TIMEOUT_S = 2
STATEMENT_TIMEOUT_S = 60
CONNECT_TIMEOUT_S = 5

# A peer that vanished without a word is noticed within 15 s, on an idle connection as in the middle of a statement.
_TCP: Any = {
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 15000,
}

_WRONG_ADDRESS = {
    "28P01": "the password was refused",
    "28000": "the user may not log in",
    "3D000": "there is no such database",
    "42501": "the user lacks a right",
    "42P01": "a table is missing: run `sync-worker migrate`",
    "3F000": "the schema is missing: run `sync-worker migrate`",
    "42883": "a function is missing: run `sync-worker migrate`",
    "42703": "a column is missing: run `sync-worker migrate`",
}
_CONTENTION = frozenset(
    {
        "40001",  # serialization failure
        "40P01",  # deadlock
        "55P03",  # lock_timeout
        "57014",  # statement_timeout
    }
)
_STALE_SESSION = frozenset(
    {
        "25006",  # read-only: a primary that was demoted while we were connected
        "26000",  # a prepared statement is gone: a pooler gave us another server session
        "0A000",  # a cached plan must not change its result: the schema was migrated
    }
)
_LOGIN_REFUSED = (
    "password authentication failed", "no password supplied", "does not exist", "no pg_hba.conf entry",
    "is not permitted to log in", "permission denied for database",
)  # fmt: skip
# libpq's own words about TLS that no waiting mends: who the server is, whether it has TLS, and the files that the URL names.
_UNTRUSTED = (
    "certificate verify failed", "does not match host name", "root certificate file", "root.crt", "certificate file",
    "private key file", "server does not support SSL", "requires a valid client certificate", "alert unknown ca",
    "certificate required", "bad certificate", "certificate expired", "certificate authentication failed",
)  # fmt: skip


class ConnectionLost(RetryableError):
    """The session is gone; whether its last commit happened is unknown until positions are read again (design §4)."""


class Contention(RetryableError):
    """A lock was not to be had in time, a deadlock, or a serialization failure: the transaction did not happen."""


class DataRejected(SyncWorkerError):
    """PostgreSQL refused a statement for its data (SQLSTATE class 22, 23 or 54): some record can't be stored."""


@contextmanager
def translated() -> Iterator[None]:
    """Turn the driver's errors into the worker's own."""
    try:
        yield
    except psycopg.Error as error:
        raise translation(error) from error


def translation(error: psycopg.Error) -> Exception:
    """What a driver's error means: an outage, contention, data that can't be stored, or a reason to stop."""
    state = error.sqlstate or ""
    text = (error.diag.message_primary or str(error)).strip()
    if state in _CONTENTION:
        return Contention(f"PostgreSQL: {text} ({state})")
    if state[:2] in {"22", "23", "54"}:
        return DataRejected(f"{text} ({state})")
    if state in _STALE_SESSION:
        return ConnectionLost(f"PostgreSQL: {text} ({state})")
    if state in _WRONG_ADDRESS:
        return FatalError(f"PostgreSQL: {text} ({state}): {_WRONG_ADDRESS[state]}")
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError) or state[:2] in {
        "08",
        "53",
        "57",
        "58",
        "25",
        "XX",
    }:
        return ConnectionLost(f"PostgreSQL: {text}" + (f" ({state})" if state else ""))
    return FatalError(
        f"PostgreSQL refused a statement of the worker: {text} ({state or type(error).__name__}); this is a bug, please report it"
    )


@contextmanager
def transaction(session: Session) -> Iterator[None]:
    """A transaction, or a savepoint within one; committed when the block is left without an error.

    Raises ConnectionLost where it isn't. psycopg leaves its own block without a word where the connection is known to be lost by
    then, and whoever goes on believes in a commit that never was.
    """
    with session.transaction() as made:
        yield
    if made.status is not made.Status.COMMITTED:
        raise ConnectionLost("PostgreSQL: the session was lost before its transaction could be committed")


def connect(url: str, purpose: str, *, autocommit: bool = True, server: str = "read-write") -> Session:
    """A session named after its purpose. `server`: what it must be, as libpq's target_session_attrs, unless the URL says it.

    Raises ConnectionLost where the server can't be reached (wait), FatalError where it refuses who we are (stop).
    """
    options = dict(_TCP)
    if "target_session_attrs" not in url:
        # Never a standby: it may lag behind what Kafka was told, which looks like a database that went back.
        options["target_session_attrs"] = server
    try:
        return psycopg.connect(
            url,
            autocommit=autocommit,
            application_name=f"sync-worker {purpose}",
            connect_timeout=CONNECT_TIMEOUT_S,
            **options,
        )
    except psycopg.OperationalError as error:
        # libpq gives no SQLSTATE for a failed connection: the server's words are all there is.
        text = str(error).strip()
        if any(refusal in text for refusal in _LOGIN_REFUSED):
            raise FatalError(f"PostgreSQL refused the connection: {text}: check SYNC_WORKER_DATABASE_URL") from error
        if any(doubt in text for doubt in _UNTRUSTED):
            raise FatalError(
                f"no trust between us and PostgreSQL: {text}: look at the certificates and at sslmode, sslrootcert, sslcert and"
                " sslkey in SYNC_WORKER_DATABASE_URL"
            ) from error
        raise ConnectionLost(f"PostgreSQL can't be reached: {text}") from error


def apply_session(url: str, purpose: str) -> Session:
    """A session that applies: batches and backfill steps.

    No statistics, or old ones, can turn a look-up into a scan: there are none to choose from. A generic plan is made once;
    planning the large statement again would cost a single event more than running it.
    """
    return _with_settings(
        connect(url, purpose),
        {
            "search_path": "sync_worker,pg_temp",
            "enable_seqscan": "off",
            "enable_bitmapscan": "off",
            "max_parallel_workers_per_gather": "0",
            "plan_cache_mode": "force_generic_plan",
            "jit": "off",
            "statement_timeout": f"{STATEMENT_TIMEOUT_S}s",
            "idle_in_transaction_session_timeout": f"{IDLE_IN_TRANSACTION_TIMEOUT_S}s",
        },
    )


def relay_session(url: str) -> Session:
    """The relay's session. A large window is read through one cursor while Kafka takes it, so it may idle longer."""
    return _with_settings(
        connect(url, "relay"),
        {
            "search_path": "sync_worker,pg_temp",
            # Every look at the outbox is by ranges of xid. Where much of it is published already, or dead rows that an old
            # transaction keeps, "is there anything?" must not be answered by reading until something is found.
            "enable_seqscan": "off",
            "jit": "off",
            "statement_timeout": f"{STATEMENT_TIMEOUT_S}s",
            "idle_in_transaction_session_timeout": "60s",
        },
    )


def watch_session(url: str) -> Session:
    """A session for short questions now and then.

    What it counts are few rows of large tables, each by an index of its own; a restored database, which has no statistics
    yet, would read the tables instead, every few seconds and for each worker.
    """
    return _with_settings(
        connect(url, "watch"),
        {"search_path": "sync_worker,pg_temp", "enable_seqscan": "off", "jit": "off", "statement_timeout": "5s"},
    )


def _with_settings(session: Session, settings: dict[str, str]) -> Session:
    with translated():
        deadlock_timeout_ms = _one(
            session.execute("select setting::int from pg_settings where name = 'deadlock_timeout'")
        )
        settings = settings | {
            # Below the server's deadlock_timeout: the worker yields, never the LMS.
            "lock_timeout": f"{deadlock_timeout_ms * 4 // 5}ms",
            # Whatever the database's default is: a statement must see what the lock before it waited for (design §3).
            "default_transaction_isolation": "read committed",
        }
        if _one(session.execute("select current_setting('synchronous_commit')")) == "off":
            # A commit that Kafka heard of and a crash undid would publish what never happened.
            settings["synchronous_commit"] = "on"
        session.execute(
            "select set_config(name, value, false) from unnest(%s::text[], %s::text[]) s(name, value)",
            (list(settings), list(settings.values())),
        )
    return session


def _one(cursor: psycopg.Cursor[TupleRow]) -> Any:
    row = cursor.fetchone()
    if row is None:
        raise FatalError("PostgreSQL gave no row where there is always one; this is a bug, please report it")
    return row[0]
