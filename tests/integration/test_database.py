"""The schema as migrations make it: described truthfully to SQLAlchemy, made once however often and by however many."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from devstack import Stack
from sync_worker.database.migrate import migrate
from sync_worker.database.sessions import connect
from sync_worker.database.tables import metadata
from sync_worker.errors import FatalError


# Types of PostgreSQL's own that SQLAlchemy has no name for; names and nullability are what is compared.
@pytest.mark.filterwarnings("ignore:Did not recognize type")
def test_tables_are_described_as_the_migrations_made_them(database_url: str) -> None:
    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: connect(database_url, "test", autocommit=False), poolclass=NullPool
    )
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "include_schemas": True,
                "include_name": lambda name, kind, _: kind != "schema" or name == "sync_worker",
                "include_object": lambda _object, _name, kind, _reflected, _other: kind in {"table", "column"},
                "version_table_schema": "sync_worker",
                "compare_type": False,
            },
        )
        differences = compare_metadata(context, metadata)
    # Alembic leaves its own table out of what it reflects.
    unexpected = [each for each in differences if each[0] != "add_table" or each[1].name != "alembic_version"]
    assert unexpected == []


def test_migrating_again_changes_nothing(database_url: str) -> None:
    report = migrate(database_url)
    assert report.before == report.after


def test_many_migrations_at_once_make_one_schema(stack: Stack) -> None:
    name = f"migrated_{uuid4().hex[:8]}"
    url = stack.postgres.create_database(name)
    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(lambda _: migrate(url), range(4)))
    assert [report.before for report in reports].count(None) == 1
    assert {report.after for report in reports} == {reports[0].after}
    stack.postgres.drop_database(name)


def test_a_database_of_a_newer_version_is_left_alone(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("update sync_worker.alembic_version set version_num = '9999'")
    with pytest.raises(FatalError, match=r"revision 9999.*install a newer worker"):
        migrate(database_url)


def test_an_owner_who_may_not_make_roles_still_migrates(stack: Stack) -> None:
    """A single owner role for everything works too (contract §3)."""
    name, owner = f"owned_{uuid4().hex[:8]}", f"owner_{uuid4().hex[:8]}"
    url = stack.postgres.create_database(name)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"create role {owner} login")
        connection.execute(f"alter database {name} owner to {owner}")
    report = migrate(stack.postgres.url(name, user=owner))
    assert report.before is None
    stack.postgres.drop_database(name)
    with psycopg.connect(stack.postgres.url(), autocommit=True) as connection:
        connection.execute(f"drop role {owner}")
