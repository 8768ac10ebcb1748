"""Makes or upgrades the schema, and the group roles of contract §3 where it may. Safe to run again and again, also at once.

It must never lose a row: a revision only adds or rewrites what the worker can compute again.
"""

from dataclasses import dataclass, field

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from sync_worker.database import halves
from sync_worker.database.engine import connection_to
from sync_worker.errors import FatalError

# One key for the whole database server's advisory locks of `migrate`; the worker's own is in enrollment/statements.sql.
_MIGRATION_LOCK = 7000

_GRANTS = {
    "sync_worker_app": (
        "grant usage on schema sync_worker to sync_worker_app",
        "grant select, insert, update, delete on all tables in schema sync_worker to sync_worker_app",
        "grant usage on all sequences in schema sync_worker to sync_worker_app",
        "revoke insert, update, delete on sync_worker.alembic_version, sync_worker.schema_support from sync_worker_app",
    ),
    "sync_worker_reader": (
        "grant usage on schema sync_worker to sync_worker_reader",
        "grant select on sync_worker.course_enrollment, sync_worker.course_group_member to sync_worker_reader",
    ),
    "sync_worker_group_editor": (
        "grant usage on schema sync_worker to sync_worker_group_editor",
        "grant select, insert, delete on sync_worker.course_group_member to sync_worker_group_editor",
    ),
}


@dataclass(frozen=True, slots=True)
class MigrationReport:
    """What `migrate` did: revisions before (None: there was no schema) and after, and the group roles granted or missing."""

    before: str | None
    after: str
    roles: list[str] = field(default_factory=list)
    roles_missing: list[str] = field(default_factory=list)


def migrate(url: str, *, pre: bool = False) -> MigrationReport:
    """Bring the database at `url` to the head revision, as the owner of the schema (contract §3).

    pre: only as far as workers of the version before can go on beside it. Raises FatalError where there is no such way.
    """
    with connection_to(url, "migrate") as connection:
        connection.execute(text("select pg_advisory_lock(:key)"), {"key": _MIGRATION_LOCK})
        # Alembic keeps its version table in the schema that its first revision fills.
        connection.execute(text("create schema if not exists sync_worker"))
        connection.commit()
        before = _revision(connection)
        if before is not None and not halves.is_known(before):
            raise FatalError(halves.newer_message(before))
        after = _target(before, pre=pre)
        command.upgrade(_config(connection), after)
        connection.execute(
            text("update sync_worker.schema_support set oldest_worker = :oldest where oldest_worker <> :oldest"),
            {"oldest": halves.oldest_worker(after)},
        )
        connection.commit()
        granted, missing = _grant_roles(connection)
        return MigrationReport(before, after, granted, missing)


def _target(before: str | None, *, pre: bool) -> str:
    if before is None or not pre:
        return halves.head()
    if halves.is_enough(before):
        return before
    if (post := halves.shut_out_by_pre(before)) is not None:
        raise FatalError(
            f"no worker of revision {before} goes on beside revision {halves.needed()}, as {post} comes before it: upgrade to the version "
            "between first, or stop all workers and run `sync-worker migrate` without --pre"
        )
    return halves.needed()


def _config(connection: Connection) -> Config:
    made = Config()
    made.set_main_option("script_location", str(halves.MIGRATIONS))
    made.attributes["connection"] = connection
    return made


def _revision(connection: Connection) -> str | None:
    if connection.execute(text("select to_regclass('sync_worker.alembic_version')")).scalar() is None:
        return None
    revision: str | None = connection.execute(text("select version_num from sync_worker.alembic_version")).scalar()
    return revision


def _grant_roles(connection: Connection) -> tuple[list[str], list[str]]:
    granted, missing = [], []
    for role, grants in _GRANTS.items():
        if not _role_exists(connection, role):
            missing.append(role)
            continue
        for grant in grants:
            connection.execute(text(grant))
        granted.append(role)
    connection.commit()
    return granted, missing


def _role_exists(connection: Connection, role: str) -> bool:
    """True where the role is there, made now if need be. Roles belong to the whole server: another database's `migrate` may be first."""
    query = text("select exists (select from pg_roles where rolname = :role)")
    if connection.execute(query, {"role": role}).scalar():
        return True
    may_create = text("select rolcreaterole or rolsuper from pg_roles where rolname = current_user")
    if not connection.execute(may_create).scalar():
        return False
    try:
        with connection.begin_nested():
            connection.execute(text(f"create role {role} nologin"))
    except DBAPIError:
        if not connection.execute(query, {"role": role}).scalar():
            raise
    return True
