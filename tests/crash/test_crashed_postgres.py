"""PostgreSQL that goes down in the middle of it: what was committed stays, what wasn't comes again (design §4, §5)."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from devstack import Stack
from sync_worker.outbox.windows import NOTHING_SEEN
from tests.model.events import Event
from tests.model.model import Model
from tests.model.traffic import random_history
from tests.support.check import assert_changes_are_a_chain, assert_site_equals_model
from tests.support.facts import member, method, new_id
from tests.support.sessions import Writer
from tests.support.site import Site, wait_for

BURNT = 500
# Several crashes and recoveries, and what is waited for after each.
pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def nobody_to_wait_for(stack: Stack) -> Iterator[None]:
    """Durable commits wait for a standby that isn't there: they are on disk, and nobody is told so."""
    with psycopg.connect(stack.postgres.url(), autocommit=True) as owner:
        owner.execute("alter system set synchronous_standby_names = 'nobody'")
        owner.execute("select pg_reload_conf()")
        try:
            yield
        finally:
            owner.execute("alter system reset synchronous_standby_names")
            owner.execute("select pg_reload_conf()")


def _burn_xids(url: str) -> None:
    """Transactions that draw an xid and write nothing, so that no log record of theirs is left after a crash."""
    with psycopg.connect(url, autocommit=True) as session:
        for _ in range(BURNT):
            session.execute("select pg_current_xact_id()")


def _crash(stack: Stack) -> None:
    stack.postgres.stop(mode="immediate")
    stack.postgres.start()


def _next_xid(url: str) -> int:
    with psycopg.connect(url, autocommit=True) as session:
        row = session.execute("select pg_current_xact_id()::text::bigint").fetchone()
    assert row is not None
    return int(row[0])


def test_a_snapshot_that_no_row_follows_takes_a_reused_xid_for_published(stack: Stack, site: Site) -> None:
    def looks_published() -> bool:
        with site.connect() as connection:
            connection.execute("checkpoint")
            _burn_xids(site.database_url)
            (row,) = connection.execute("select pg_current_snapshot()::text as s").fetchall()
        _crash(stack)
        (seen,) = site.query("select pg_visible_in_snapshot(pg_current_xact_id(), %s::pg_snapshot) as v", row["s"])
        return bool(seen["v"])

    # Whatever writes with a later xid in the same moment, as autovacuum does, keeps the ones before it from being drawn again.
    assert any(looks_published() for _ in range(8))


def test_after_an_immediate_shutdown_no_xid_below_a_windows_snapshot_is_used_again(stack: Stack, site: Site) -> None:
    with site.connect() as connection:
        connection.execute("checkpoint")
        _burn_xids(site.database_url)
        connection.execute("set synchronous_commit = on")
        (row,) = connection.execute(
            """
            insert into relay_window (number, from_snapshot, to_snapshot, system_identifier)
            select 1, %s, pg_current_snapshot(), (select system_identifier from pg_control_system())
            returning pg_snapshot_xmax(to_snapshot)::text::bigint as xmax""",
            (NOTHING_SEEN,),
        ).fetchall()
    _crash(stack)
    assert _next_xid(site.database_url) > row["xmax"]


def test_a_transaction_that_an_immediate_shutdown_cut_off_after_a_window_is_neither_lost_nor_published_twice(
    stack: Stack, site: Site
) -> None:
    enabled = method(segment := new_id(), new_id())
    people: list[Event] = [member(segment, new_id(), 1) for _ in range(30)]
    worker = site.start_worker()
    site.produce([enabled, *people[:10]])
    site.wait_settled()
    with Writer(site.database_url) as cut_off:
        cut_off.begin(*people[20:])
        _burn_xids(site.database_url)
        site.produce(people[10:20])
        wait_for(lambda: len(site.changes()) == 20, what="the window")
        _crash(stack)
    site.produce(people[20:])
    site.wait_settled()
    assert assert_changes_are_a_chain(site) == 30
    model = Model()
    model.apply_batch([enabled])
    model.apply_batch(people)
    assert_site_equals_model(site, model)
    assert worker.process.poll() is None


def test_a_commit_that_happened_though_the_connection_was_cut_in_the_middle_of_it_is_not_repeated(
    site: Site, nobody_to_wait_for: None
) -> None:
    """The server commits, then waits; cut there, the client can't know."""
    enabled = method(segment := new_id(), new_id())
    site.produce([enabled, *(member(segment, new_id(), 1) for _ in range(5))])
    site.start_worker()
    cut = 0

    def cut_a_waiting_commit() -> bool:
        nonlocal cut
        cut += len(
            site.query("""
            select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and wait_event = 'SyncRep'""")
        )
        return len(site.query("select from enrollment where status = 'ACTIVE'")) == 5

    wait_for(cut_a_waiting_commit, what="the commits")
    with psycopg.connect(site.stack.postgres.url(), autocommit=True) as owner:
        owner.execute("alter system reset synchronous_standby_names")
        owner.execute("select pg_reload_conf()")
    site.wait_settled()
    assert cut >= 2  # of the method and of the members
    assert assert_changes_are_a_chain(site) == 5


def test_a_worker_outlives_immediate_shutdowns_under_load(stack: Stack, site: Site) -> None:
    history = random_history(11, events=1500, segments=4, users=60, methods_per_segment=2, courses=4)
    site.start_worker(batch_max_records="50")
    for n in range(3):
        # Counted before: on a slow machine all of it may be applied by the time that it is counted.
        before = len(site.changes())
        site.produce(history[n * 500 : (n + 1) * 500])
        wait_for(lambda: len(site.changes()) > before, what="progress")  # noqa: B023 - called at once
        _crash(stack)
    site.wait_settled()
    model = Model()
    model.apply_batch(history)
    assert_site_equals_model(site, model)
