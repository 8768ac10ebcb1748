"""The outbox read by snapshots: what a window holds, whatever commits late, and what may be deleted (design §5).

Without Kafka: a test opens windows as the relay does and looks at the rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, LiteralString

import pytest

from sync_worker.database.sessions import relay_session
from sync_worker.outbox.encoding import OutboxRow
from sync_worker.outbox.windows import NOTHING_SEEN, SQL, Window, Windows
from tests.support.facts import member, method, new_id
from tests.support.sessions import WAIT_S, Writer
from tests.support.site import Site

MakeWriter = Callable[..., Writer]
SEGMENT = new_id()
MANY = """
insert into outbox (course_id, user_id, version, sources, hand, suspended, cause_type)
select gen_random_uuid(), gen_random_uuid(), 1, '{}', '{}', false, 'SQL' from generate_series(1, %s)"""


class Reader:
    """Reads window after window, as the relay does; `seen` is every row's user in the order of reading."""

    def __init__(self, windows: Windows) -> None:
        self.windows = windows
        self.number = 0
        self.at = NOTHING_SEEN
        self.seen: list[str] = []
        self.last: Window | None = None

    def read(self) -> int:
        """The next window, if there is anything to read; how many rows."""
        if not self.windows.due(self.at):
            return 0
        self.number += 1
        window = self.last = self.windows.open_next(self.number, self.at, self.windows.system_identifier())
        self.at = window.to
        rows = [row for chunk in self.windows.chunks(window, 0, 5000) for row in chunk]
        self.seen += [row.user_id for row in rows if isinstance(row, OutboxRow)]
        return len(rows)


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    """Only a database, with a method that everybody of SEGMENT gets."""
    site = make_site(topics=False)
    with Writer(site.database_url) as writer:
        writer.batch(method(SEGMENT, new_id()))
    return site


@pytest.fixture
def reader(site: Site) -> Iterator[Reader]:
    with closing(Windows(site.database_url)) as windows:
        yield Reader(windows)


def users(number: int) -> list[str]:
    return [new_id() for _ in range(number)]


# ── nothing is lost, nothing is read twice ──────────────────────────────────────────────────────────────────────────


def test_a_slow_transaction_that_commits_many_windows_later_is_read_once(writer: MakeWriter, reader: Reader) -> None:
    slow, quick = writer(), writer()
    slowly, *people = users(6)
    slow.begin(member(SEGMENT, slowly, 1))
    for user in people:
        quick.batch(member(SEGMENT, user, 1))
        assert reader.read() == 1
    assert reader.read() == 0
    slow.commit()
    assert reader.read() == 1
    assert reader.read() == 0
    assert reader.seen == [*people, slowly]


def test_reading_by_id_alone_would_lose_a_slow_transaction(site: Site, writer: MakeWriter) -> None:
    slow, quick = writer(), writer()
    slowly, quickly = users(2)
    slow.begin(member(SEGMENT, slowly, 1))
    quick.batch(member(SEGMENT, quickly, 1))
    by_id = "select id, user_id::text from outbox where id > %s order by id"
    first = site.query(by_id, 0)
    slow.commit()
    second = site.query(by_id, first[-1]["id"])
    assert [row["user_id"] for row in first + second] == [quickly]


def test_a_slow_transaction_is_read_after_one_that_it_made_wait_for_a_row(
    writer: MakeWriter, reader: Reader, site: Site
) -> None:
    slow, quick = writer(), writer()
    user, other = users(2)
    slow.begin(member(SEGMENT, user, 1))
    later = quick.start_batch(member(SEGMENT, user, 2, is_member=False))
    writer().batch(member(SEGMENT, other, 1))
    assert reader.read() == 1
    slow.commit()
    later.result(WAIT_S)
    reader.read()
    reader.read()
    assert reader.seen == [other, user, user]
    versions = site.query("select version from outbox where user_id = %s order by id", user)
    assert [row["version"] for row in versions] == [1, 2]


def test_a_transaction_that_is_rolled_back_is_never_read(writer: MakeWriter, reader: Reader) -> None:
    slow, quick = writer(), writer()
    gone, *people = users(3)
    slow.begin(member(SEGMENT, gone, 1))
    quick.batch(member(SEGMENT, people[0], 1))
    reader.read()
    slow.start(lambda session: session.execute("rollback")).result(WAIT_S)
    quick.batch(member(SEGMENT, people[1], 1))
    reader.read()
    assert reader.seen == people


def test_a_successor_reads_the_same_rows_in_a_window_that_was_opened_before_others_committed(
    writer: MakeWriter, reader: Reader, site: Site
) -> None:
    slow, quick = writer(), writer()
    slowly, first, later = users(3)
    slow.begin(member(SEGMENT, slowly, 1))
    quick.batch(member(SEGMENT, first, 1))
    opened = reader.windows.open_next(1, NOTHING_SEEN, reader.windows.system_identifier())
    slow.commit()
    quick.batch(member(SEGMENT, later, 1))
    with closing(Windows(site.database_url)) as successor:
        window = successor.last()
        assert window == opened
        (rows,) = successor.chunks(opened, 0, 5000)
        assert [row.user_id for row in rows if isinstance(row, OutboxRow)] == [first]
        following = Reader(successor)
        following.number, following.at = 1, opened.to
        assert following.read() == 2
    assert following.seen == [slowly, later]


def test_savepoints_of_an_editor_belong_to_their_transaction(site: Site, writer: MakeWriter, reader: Reader) -> None:
    quick, (user, other) = writer(), users(2)
    quick.batch(member(SEGMENT, user, 1), member(SEGMENT, other, 1))
    reader.read()
    course = site.query("select course_id::text from course_enrollment limit 1")[0]["course_id"]
    edit = "insert into course_group_member (course_id, group_id, user_id) values (%s, %s, %s)"
    with site.connect() as lms:
        lms.execute("begin; savepoint a")
        lms.execute(edit, (course, new_id(), user))
        lms.execute("release a; savepoint b")
        lms.execute(edit, (course, new_id(), other))
        lms.execute("rollback to b")
        quick.batch(member(SEGMENT, new_id(), 1))
        assert reader.read() == 1
        lms.execute("commit")
    assert reader.read() == 1
    assert reader.seen[-1] == user


# ── what it costs ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("plan", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("analyzed", [True, False], ids=["with statistics", "without statistics"])
def test_a_transaction_open_for_long_does_not_make_each_poll_read_everything_since(
    site: Site, reader: Reader, plan: str, analyzed: bool
) -> None:
    with site.connect() as foreign, site.connect() as quick:
        foreign.execute("begin; select pg_current_xact_id()")
        for _ in range(4):
            quick.execute(MANY, (5000,))
            reader.read()
        if analyzed:
            quick.execute("analyze outbox")
        quick.execute(MANY, (3,))
        with relay_session(site.database_url) as session:
            session.execute(f"set plan_cache_mode = {plan}")
            nothing_new, last = reader.at, 0
            reader.read()
            scopes: list[tuple[LiteralString, dict[str, Any]]] = [
                (SQL["window_due"], {"from": reader.at}),
                (SQL["window_rows"], {"from": nothing_new, "to": reader.at, "last": last}),
            ]
            for statement, scope in scopes:
                assert _rows_looked_at(session, statement, scope) < 50


def _rows_looked_at(session: Any, statement: LiteralString, scope: dict[str, Any]) -> int:
    """How many rows of the outbox PostgreSQL read to answer."""
    bound = [scope[name] for name in scope]
    text = statement
    for n, name in enumerate(scope, start=1):
        text = text.replace(f"%({name})s", f"${n}")
    types = ", ".join("bigint" if name == "last" else "text" for name in scope)
    session.execute(f"prepare looked ({types}) as {text}")
    values = ", ".join(f"'{value}'" for value in bound)
    ((plans,),) = session.execute(f"explain (analyze, format json) execute looked ({values})").fetchall()
    session.execute("deallocate looked")
    return sum(map(_looked_at, plans if isinstance(plans, list) else json.loads(plans)))


def _looked_at(node: dict[str, Any]) -> int:
    node = node.get("Plan", node)
    own = 0
    if node.get("Relation Name") == "outbox":
        removed = sum(int(node.get(name, 0)) for name in ("Rows Removed by Filter", "Rows Removed by Index Recheck"))
        own = int((node["Actual Rows"] + removed) * node["Actual Loops"])
    return own + sum(map(_looked_at, node.get("Plans", [])))


# ── what may be deleted ─────────────────────────────────────────────────────────────────────────────────────────────


def test_only_what_the_acknowledged_snapshot_holds_is_deleted(site: Site, writer: MakeWriter, reader: Reader) -> None:
    slow, quick = writer(), writer()
    slowly, first, second, third = users(4)

    def left() -> set[str]:
        return {row["user_id"] for row in site.query("select user_id::text from outbox")}

    slow.begin(member(SEGMENT, slowly, 1))
    quick.batch(member(SEGMENT, first, 1))
    reader.read()
    assert reader.last is not None
    assert reader.windows.clean(reader.last) == 0
    quick.batch(member(SEGMENT, second, 1))
    reader.read()
    slow.commit()
    quick.batch(member(SEGMENT, third, 1))
    assert reader.windows.clean(reader.last) == 1
    assert left() == {slowly, second, third}
    reader.read()
    assert reader.windows.clean(reader.last) == 1
    assert left() == {slowly, third}
    assert reader.seen == [first, second, slowly, third]
    assert [row["number"] for row in site.query("select number from relay_window order by 1")] == [2, 3]


def test_a_window_of_many_rows_is_read_in_parts_through_one_cursor_and_the_session_is_free_between_them(
    site: Site, reader: Reader
) -> None:
    with site.connect() as quick:
        quick.execute(MANY, (1234,))
    window = reader.windows.open_next(1, NOTHING_SEEN, reader.windows.system_identifier())
    chunks = reader.windows.chunks(window, 0, 500)
    sizes = [len(next(chunks)) for _ in range(3)]
    reader.windows.mark_published(window)
    chunks.close()  # type: ignore[attr-defined]  # a generator
    assert sizes == [500, 500, 234]
    assert site.query("select published from relay_window") == [{"published": True}]
    ids = [row.id for chunk in reader.windows.chunks(window, 0, 500) for row in chunk]
    assert ids == sorted(set(ids))
    assert len(ids) == 1234
    (rest,) = reader.windows.chunks(window, ids[1000], 500)
    assert [row.id for row in rest] == ids[1001:]


def test_a_window_can_be_given_up_after_its_session_was_lost(site: Site) -> None:
    """Found by the fault harness: the cursor's close failed inside a generator that nobody would read on, as a traceback in the log."""
    with site.connect() as quick:
        quick.execute(MANY, (1234,))
    windows = Windows(site.database_url)
    window = windows.open_next(1, NOTHING_SEEN, windows.system_identifier())
    chunks = windows.chunks(window, 0, 500)
    assert [len(next(chunks)) for _ in range(2)] == [500, 500]
    site.query(
        "select pg_terminate_backend(pid, 60000) from pg_stat_activity "
        "where datname = current_database() and application_name = 'sync-worker relay'"
    )
    chunks.close()  # type: ignore[attr-defined]  # a generator
    windows.close()
