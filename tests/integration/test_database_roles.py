"""Who may do what in the database: the group roles of contract §3, each as a login that has it alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from tests.model.events import to_record
from tests.support.facts import member, method, new_id, suspension
from tests.support.sessions import Writer, chain_in_outbox
from tests.support.site import Site, wait_for

INSERT = "insert into sync_worker.course_group_member (course_id, group_id, user_id) values (%s, %s, %s)"
DELETE = "delete from sync_worker.course_group_member where course_id = %s and group_id = %s and user_id = %s"


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    """A database with one enrollment."""
    return make_site(topics=False)


@pytest.fixture
def enrolled(site: Site) -> tuple[str, str]:
    """Course and user."""
    enabled = method(new_id(), new_id(), group_id=new_id())
    with Writer(site.database_url) as writer:
        writer.batch(enabled)
        writer.batch(member(enabled.segment_id, user := new_id(), 1))
    return enabled.course_id, user


@contextmanager
def _login(site: Site, group_role: str) -> Iterator[str]:
    """The URL of a login that has this group role alone."""
    user = f"user_{new_id()[:8]}"
    with site.connect() as owner:
        owner.execute(f"create role {user} login in role {group_role}")
        try:
            yield site.stack.postgres.url(site.database_url.rpartition("/")[2].partition("?")[0], user)
        finally:
            owner.execute(f"drop role {user}")


def test_a_group_editor_may_edit_groups_and_nothing_else(site: Site, enrolled: tuple[str, str]) -> None:
    (course, user), group = enrolled, new_id()
    with _login(site, "sync_worker_group_editor") as url, psycopg.connect(url, autocommit=True) as editor:
        editor.execute(INSERT, (course, group, user))
        assert editor.execute(DELETE, (course, group, user)).rowcount == 1
        editor.execute(INSERT, (course, group, user))
        for forbidden in (
            "select from sync_worker.enrollment", "select from sync_worker.course_enrollment", "select from sync_worker.membership",
            "update sync_worker.enrollment set version = 0", "delete from sync_worker.outbox",
            "update sync_worker.course_group_member set group_id = null",
        ):  # fmt: skip
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                editor.execute(forbidden)
    assert (course, group, user, False, ()) in site.group_members()
    assert len(chain_in_outbox(site)[enrolled]) == 4


def test_a_reader_may_read_both_views_and_nothing_else(site: Site, enrolled: tuple[str, str]) -> None:
    course, user = enrolled
    with _login(site, "sync_worker_reader") as url, psycopg.connect(url, autocommit=True) as reader:
        assert len(reader.execute("select * from sync_worker.course_enrollment").fetchall()) == 1
        assert len(reader.execute("select * from sync_worker.course_group_member").fetchall()) == 1
        for forbidden in (
            "select from sync_worker.enrollment",
            "select from sync_worker.outbox",
            "select from sync_worker.position",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                reader.execute(forbidden)
        for edit in (INSERT, DELETE):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                reader.execute(edit, (course, new_id(), user))


def test_a_worker_that_has_the_app_role_alone_does_everything_and_may_change_no_table(
    make_site: Callable[..., Site],
) -> None:
    site = make_site()
    enabled = method(new_id(), new_id())
    joins, leaves = (
        member(enabled.segment_id, user := new_id(), 1),
        member(enabled.segment_id, user, 2, is_member=False),
    )
    conflict = member(enabled.segment_id, user, 2)
    with _login(site, "sync_worker_app") as url:
        worker = site.start_worker(database_url=url)
        site.produce([enabled, joins])
        site.wait_settled()
        site.produce([leaves, conflict, suspension(enabled.course_id, user, 1)])
        site.wait_settled()
        wait_for(lambda: site.query("select count(*) as n from outbox")[0]["n"] == 0, what="the clean-up")
        assert len(site.dead_letters()) == 1
        assert worker.terminate() == 0
        with psycopg.connect(url, autocommit=True) as app:
            for forbidden in (
                "create table sync_worker.other ()",
                "alter table sync_worker.outbox add x int",
                "drop view sync_worker.course_enrollment",
            ):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    app.execute(forbidden)
    assert len(site.changes()) == 2


@pytest.mark.timeout(900)  # fifteen commands, each a process of its own
def test_every_command_of_operators_works_with_the_app_role_alone(
    make_site: Callable[..., Site], tmp_path: Path
) -> None:
    site = make_site(removal_hold_min="3")
    enabled = method(new_id(), new_id(), group_id=new_id())
    users = [new_id() for _ in range(8)]
    with _login(site, "sync_worker_app") as url:
        site.environment["SYNC_WORKER_DATABASE_URL"] = url
        worker = site.start_worker()
        site.produce([enabled, *(member(enabled.segment_id, user, 1) for user in users)])
        site.produce_raw("membership", b"garbage")
        site.wait_settled()
        # All leave at once, and are held.
        site.produce([member(enabled.segment_id, user, 2, is_member=False) for user in users])
        site.wait_settled()
        (tmp_path / "method.json").write_text(json.dumps(to_record(enabled)[1]), "utf-8")
        (tmp_path / "members.csv").write_text(f"segment_id,user_id\n{enabled.segment_id},{new_id()}\n", "utf-8")
        (letter,) = site.dead_letters()
        site.query("update enrollment set sources = '{}' where user_id = %s returning 1", users[0])
        commands = [
            ("status",),
            ("explain", enabled.course_id, users[0]),
            ("preview", str(tmp_path / "method.json")),
            ("reconcile",),
            ("holds", "list"),
            ("holds", "release", enabled.segment_id, "--yes"),
            ("members", "import", str(tmp_path / "members.csv")),
            ("dlq", "list"),
            ("dlq", "replay", f"{letter.partition}:{letter.offset}", "--unchecked"),
            ("versions", "find"),
            ("relay", "show"),
            ("republish",),
            ("erase", users[1], "--yes"),
            ("positions", "show"),
        ]
        failed = {command: done.stderr for command in commands if (done := site.command(*command)).returncode != 0}
        assert failed == {}
        site.wait_settled()
        assert worker.terminate() == 0
        reset = site.command("positions", "reset", "--to", "earliest", "--yes")
        assert reset.returncode == 0, reset.stderr
        denied = site.command("migrate")
        assert denied.returncode == 1
        assert "lacks a right" in denied.stderr


def test_no_role_of_the_worker_may_change_what_the_schema_is(site: Site) -> None:
    schema = (
        "select relname as name, relkind::text as kind from pg_class where relnamespace = 'sync_worker'::regnamespace"
    )
    before = site.query(f"{schema} order by 1")
    tables = [row["name"] for row in before if row["kind"] in {"r", "p"}]
    views = [row["name"] for row in before if row["kind"] == "v"]
    with psycopg.connect(
        site.database_url
    ) as owner:  # without a search_path, so that names and types come with their schema
        found = owner.execute(
            "select oid::regprocedure::text from pg_proc where pronamespace = 'sync_worker'::regnamespace"
        )
        functions = [name for (name,) in found]
    assert len(tables) > 15
    assert len(views) == 2
    assert functions
    changes = [
        "create table sync_worker.other ()",
        "create view sync_worker.other as select 1",
        "create function sync_worker.other() returns int language sql return 1",
        "create schema other",
        "create role other",
        "alter schema sync_worker rename to other",
        "drop schema sync_worker cascade",
        *(f"alter table sync_worker.{table} add other int" for table in tables),
        *(f"drop table sync_worker.{table} cascade" for table in tables),
        *(f"create index on sync_worker.{table} ((1))" for table in tables),
        *(f"drop view sync_worker.{view} cascade" for view in views),
        *(f"drop routine {function} cascade" for function in functions),
    ]
    for group_role in ("sync_worker_app", "sync_worker_reader", "sync_worker_group_editor"):
        with _login(site, group_role) as url, psycopg.connect(url, autocommit=True) as user:
            for change in changes:
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    user.execute(change)
    assert site.query(f"{schema} order by 1") == before
