"""Waits that must end: an LMS that holds a row, a worker that froze, deadlocks, and transactions that would be too large (design §3)."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from sync_worker.database.sessions import Contention, translated
from sync_worker.enrollment.apply import SQL
from sync_worker.enrollment.folding import MAX_METHODS, MAX_PAIRS
from sync_worker.loops import checkpoint
from sync_worker.loops.checkpoint import Outcome
from tests.model.events import Event
from tests.support.check import assert_changes_are_a_chain
from tests.support.facts import ANYWHERE, member, method, new_id, records_of
from tests.support.sessions import WAIT_S, Writer, assert_ends_as, model_of, wait_until_blocked
from tests.support.site import Site, wait_for

MakeWriter = Callable[..., Writer]
ROW = "select from sync_worker.enrollment where course_id = %s and user_id = %s for update"


@pytest.fixture
def database(make_site: Callable[..., Site]) -> Site:
    """A site that is only a database: the sessions are the test's own."""
    return make_site(topics=False)


@pytest.fixture
def writer(database: Site) -> Iterator[MakeWriter]:
    with ExitStack() as opened:
        yield lambda **options: opened.enter_context(Writer(database.database_url, **options))


@contextmanager
def lms_transaction(site: Site) -> Iterator[psycopg.Connection[Any]]:
    """An LMS's transaction, left open, without any limit of its own."""
    with site.connect(application_name="the lms") as lms:
        lms.execute("set idle_in_transaction_session_timeout = 0; begin")
        yield lms


# ── an LMS that holds a row ─────────────────────────────────────────────────────────────────────────────────────────


def test_the_worker_yields_to_an_lms_that_holds_a_row_names_it_and_goes_on_when_it_lets_go(site: Site) -> None:
    enabled = method(new_id(), new_id())
    joins, leaves = (
        member(enabled.segment_id, user := new_id(), 1),
        member(enabled.segment_id, user, 2, is_member=False),
    )
    worker = site.start_worker()
    site.produce([enabled, joins])
    site.wait_settled()
    with lms_transaction(site) as lms:
        lms.execute(
            "insert into course_group_member (course_id, group_id, user_id) values (%s, %s, %s)",
            (enabled.course_id, new_id(), user),
        )
        lms.execute("set local idle_in_transaction_session_timeout = 0")  # the edit's own limit
        site.produce([leaves])
        pid = lms.info.backend_pid
        # For a moment another one may have been the oldest, as autovacuum.
        waiting = wait_for(
            lambda: [line for line in worker.events("lock_wait") if line.get("blocker_pid") == pid],
            what="the name of who is waited for",
        )[0]
        lms.execute("commit")
    assert waiting["blocker_application"] == "the lms"
    assert waiting["blocker_state"] == "idle in transaction"
    site.wait_settled()
    assert site.enrollments() == {}
    assert assert_changes_are_a_chain(site) == 3


def test_a_worker_that_may_not_see_others_activity_still_names_who_holds_the_row(
    database: Site, writer: MakeWriter
) -> None:
    enabled = method(new_id(), new_id())
    joins = member(enabled.segment_id, user := new_id(), 1)
    one = writer()
    one.batch(enabled)
    one.batch(joins)
    with lms_transaction(database) as lms:
        lms.execute(ROW, (enabled.course_id, user))
        one.session.execute("set role sync_worker_app")
        seen = (lms.info.backend_pid, "the lms")

        def named() -> bool:
            row = one.session.execute(SQL["blockers"]).fetchone()
            return row is not None and (row[0], row[2]) == seen

        wait_for(named, what="the name")  # for a moment autovacuum may be in its place


def test_in_a_deadlock_with_an_lms_the_worker_yields_and_the_lms_goes_on(database: Site, writer: MakeWriter) -> None:
    enabled = method(new_id(), new_id())
    users = sorted(new_id() for _ in range(2))
    joining = [member(enabled.segment_id, user, 1) for user in users]
    leaving = [member(enabled.segment_id, user, 2, is_member=False) for user in users]
    one = writer(patient=False)
    one.session.execute("set idle_in_transaction_session_timeout = 0")  # only its waits are to be short
    one.batch(enabled)
    one.batch(*joining)
    # A fifth of a second before the server would end one of the two; more than that, where the server stands still for a moment.
    assert one.session.execute("show lock_timeout").fetchone() == ("800ms",)
    assert one.session.execute("show deadlock_timeout").fetchone() == ("1s",)
    with lms_transaction(database) as lms:
        lms.execute("set local deadlock_timeout = '15s'")
        lms.execute(ROW, (enabled.course_id, users[1]))

        def waits() -> bool:
            """It gives way within a second: where that was before we looked, it comes again."""
            one.start_batch(*leaving)
            with suppress(psycopg.errors.LockNotAvailable):
                wait_until_blocked(database, one)
                return True
            return False

        wait_for(waits, what="the worker waiting for the LMS")
        lms.execute(ROW, (enabled.course_id, users[0]))
        lms.execute("commit")
    with pytest.raises(Contention), translated():
        wait_for(one.ended, WAIT_S, "the end of the batch")
    one.batch(*leaving)
    assert_ends_as(database, [enabled], joining, leaving)


# ── a worker that froze ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_frozen_worker_with_the_shared_lock_stops_the_fleet_for_two_seconds_at_most(
    database: Site, writer: MakeWriter
) -> None:
    hidden = method(new_id(), new_id(), visible=False)
    opened = method(hidden.segment_id, hidden.course_id, method_id=hidden.method_id, version=2)
    joins, later = (member(hidden.segment_id, new_id(), 1) for _ in range(2))
    limit = writer(patient=False).session.execute("show idle_in_transaction_session_timeout").fetchone()
    assert limit == ("2s",)
    # It freezes once the others wait for it, which on a busy machine takes longer than that.
    frozen, changing, other = writer(), writer(), writer()
    other.batch(hidden)
    frozen.begin(joins)
    change = changing.start_batch(opened)
    wait_until_blocked(database, changing)
    behind = other.start_batch(later)
    wait_until_blocked(database, other)
    frozen.session.execute("set idle_in_transaction_session_timeout = '2s'")
    change.result(WAIT_S)
    behind.result(WAIT_S)
    with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout):
        frozen.commit()
    assert_ends_as(database, [hidden], [opened], [later])


def test_a_worker_stopped_in_the_middle_of_a_transaction_comes_back_and_applies_it_once(site: Site) -> None:
    enabled = method(new_id(), new_id())
    joins = [member(enabled.segment_id, new_id(), 1) for _ in range(20)]
    hold = site.directory / "hold"
    hold.touch()
    worker = site.start_worker(failpoints=f"after_rows=hold:{hold}@2")
    site.produce([enabled])
    site.wait_settled()
    site.produce(joins)
    wait_for((site.directory / "hold.reached").exists, what="the transaction")
    os.kill(worker.process.pid, signal.SIGSTOP)
    wait_for(
        lambda: not site.query("select from pg_locks where locktype = 'advisory' and objid = 7001 and database = "
                               "(select oid from pg_database where datname = current_database())"),
        what="the end of the frozen session",
    )  # fmt: skip
    hold.unlink()
    os.kill(worker.process.pid, signal.SIGCONT)
    site.wait_settled()
    assert assert_changes_are_a_chain(site) == len(joins)


# ── what the server's defaults may not change ───────────────────────────────────────────────────────────────────────


def test_a_database_whose_transactions_are_repeatable_read_by_default_loses_nothing(
    database: Site, writer: MakeWriter
) -> None:
    name = database.database_url.rpartition("/")[2].partition("?")[0]
    with database.connect() as owner:
        owner.execute(f"alter database {name} set default_transaction_isolation = 'repeatable read'")
        owner.execute("insert into position (topic, partition, next_offset) values ('anywhere', 0, 0)")
    hidden = method(new_id(), new_id(), visible=False)
    opened = replace(hidden, event_id=new_id(), version=2, visible=True)
    joins = member(hidden.segment_id, new_id(), 1)
    one, other = writer(), writer()
    one.batch(hidden)
    batch = one.start(
        lambda session: checkpoint.commit(session, records_of([joins]), {ANYWHERE: 0}, Outcome()),
        stop_before="lock_shared",
    )
    one.wait_until_stopped()
    other.batch(opened)
    one.go_on()
    batch.result(WAIT_S)
    assert_ends_as(database, [hidden], [opened], [joins])


# ── transactions that would be too large ────────────────────────────────────────────────────────────────────────────


def test_a_batch_that_would_touch_more_than_twenty_thousand_enrollments_is_cut(
    database: Site, writer: MakeWriter
) -> None:
    segment, methods_count = new_id(), 500
    methods = [method(segment, new_id()) for _ in range(methods_count)]
    joining: list[Event] = [member(segment, new_id(), 1) for _ in range(50)]
    one = writer()
    for start in range(0, methods_count, MAX_METHODS):
        one.batch(*methods[start : start + MAX_METHODS])
    with database.connect() as connection:
        connection.execute("insert into position (topic, partition, next_offset) values ('anywhere', 0, 0)")
    outcome = Outcome()
    one.start(lambda session: checkpoint.commit(session, records_of(joining), {ANYWHERE: 0}, outcome)).result(
        WAIT_S * 3
    )
    assert outcome.changes == methods_count * len(joining)
    assert outcome.transactions == 2
    sizes = database.query("select count(*) as n from outbox group by xid order by n desc")
    assert [row["n"] for row in sizes] == [MAX_PAIRS, methods_count * len(joining) - MAX_PAIRS]
    assert len(database.enrollments()) == len(model_of(methods, joining).enrollments)
    assert database.query("select next_offset from position") == [{"next_offset": len(joining)}]
