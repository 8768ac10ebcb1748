"""Makes or upgrades the schema, and the group roles of contract §3 where it may. Safe to run again and again, also at once.

It must never lose a row: a revision only adds or rewrites what the worker can compute again.
"""

from dataclasses import dataclass, field
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from sync_worker.database.sessions import engine_for, translated
from sync_worker.errors import FatalError

# One key for the whole database server's advisory locks of `migrate`; the worker's own is in enrollment/statements.sql.
_MIGRATION_LOCK = 7000

_GRANTS = {
    "sync_worker_app": (
        "grant usage on schema sync_worker to sync_worker_app",
        "grant select, insert, update, delete on all tables in schema sync_worker to sync_worker_app",
        "grant usage on all sequences in schema sync_worker to sync_worker_app",
        "revoke insert, update, delete on sync_worker.alembic_version from sync_worker_app",
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


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    config.attributes["connection"] = connection
    return config


def head_revision() -> str:
    """The revision that this version of the worker works with."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    if head is None:
        raise FatalError("this installation holds no migrations: install the worker again")
    return head


def known_revisions() -> frozenset[str]:
    """Every revision that this version of the worker has heard of."""
    return frozenset(script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions())


def migrate(url: str) -> MigrationReport:
    """Bring the database at `url` to the head revision, as the owner of the schema (contract §3)."""
    engine = engine_for(url, "migrate")
    with translated(), engine.connect() as connection:
        connection.execute(text("select pg_advisory_lock(:key)"), {"key": _MIGRATION_LOCK})
        # Alembic keeps its version table in the schema that its first revision fills.
        connection.execute(text("create schema if not exists sync_worker"))
        connection.commit()
        before = _revision(connection)
        if before is not None and before not in known_revisions():
            raise FatalError(newer_message(before))
        command.upgrade(_config(connection), "head")
        connection.commit()
        granted, missing = _grant_roles(connection)
        return MigrationReport(before, head_revision(), granted, missing)


def newer_message(revision: str) -> str:
    return (
        f"the database's schema sync_worker is at revision {revision}, which this version of the worker does not know "
        f"(it knows up to {head_revision()}): install a newer worker"
    )


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
