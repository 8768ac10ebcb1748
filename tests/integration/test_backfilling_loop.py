"""The loop that takes the steps of backfills: behind the relay, whose outbox live changes share with it, but not for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest
from prometheus_client import CollectorRegistry

from sync_worker.loops import backfilling
from sync_worker.loops.backfilling import Backfilling
from sync_worker.outbox.windows import waits_more_than
from sync_worker.service.health import Health
from sync_worker.service.metrics import Metrics
from tests.support.facts import member, method, new_id
from tests.support.sessions import WAIT_S, Writer, change_method_in_steps
from tests.support.site import Site, wait_for

MEMBERS = 5
# What the relay would write of a window that is complete in Kafka.
PUBLISHED = """insert into relay_window (number, from_snapshot, to_snapshot, system_identifier, published)
select 1, '3:3:', pg_current_snapshot(), system_identifier, true from pg_control_system()"""


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    """Only a database: no relay publishes anything."""
    return make_site(topics=False)


@contextmanager
def looping(site: Site) -> Iterator[None]:
    stop, health = threading.Event(), Health()
    health.register(backfilling.LOOP, 60.0)
    loop = Backfilling(site.database_url, health, Metrics(CollectorRegistry()), stop, lambda: None)
    thread = threading.Thread(target=loop.run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def two_backfills(writer: Writer) -> None:
    """Two methods of one segment, whose members all get another role: a step each."""
    methods = [method(segment := new_id(), new_id()), method(segment, new_id())]
    writer.batch(*methods)
    writer.batch(*(member(segment, new_id(), 1) for _ in range(MEMBERS)))
    for each in methods:
        changed = replace(each, event_id=new_id(), version=2, role="tutor")
        writer.start(partial(change_method_in_steps, event=changed)).result(WAIT_S)
    writer.execute(PUBLISHED)


def changed(site: Site) -> int:
    (row,) = site.query("select count(*) as changed from enrollment where version = 2")
    return int(row["changed"])


def test_the_next_step_waits_until_the_relay_has_little_left(
    site: Site, writer: Callable[..., Writer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backfilling, "MOST_UNPUBLISHED", MEMBERS - 1)
    monkeypatch.setattr(backfilling, "YIELD_AT_MOST_S", 1000.0)
    one = writer()
    two_backfills(one)
    with looping(site):
        wait_for(lambda: changed(site) == MEMBERS, timeout_s=90, what="the first step")
        time.sleep(1.0)  # a step takes a tenth of it
        assert changed(site) == MEMBERS, "the outbox holds more than it may"
        one.execute("update relay_window set to_snapshot = pg_current_snapshot()")
        wait_for(lambda: changed(site) == 2 * MEMBERS, timeout_s=90, what="the second step")


def test_where_nothing_is_published_people_get_what_they_are_to_have_all_the_same(
    site: Site, writer: Callable[..., Writer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backfilling, "MOST_UNPUBLISHED", 0)
    two_backfills(writer())
    with looping(site):
        wait_for(lambda: changed(site) == 2 * MEMBERS, timeout_s=90, what="both steps")
    (row,) = site.query("select count(*) as waiting from backfill")
    assert row["waiting"] == 0


def test_what_waits_to_be_published_is_what_the_newest_window_does_not_hold(
    site: Site, writer: Callable[..., Writer]
) -> None:
    one = writer()
    first = method(segment := new_id(), new_id())
    one.batch(first)
    one.batch(*(member(segment, new_id(), 1) for _ in range(MEMBERS)))

    def asked(rows: int) -> bool:
        return one.start(lambda session: waits_more_than(session, rows)).result(WAIT_S)

    assert (asked(MEMBERS - 1), asked(MEMBERS)) == (True, False), "before any window all of it waits"
    one.execute(PUBLISHED)
    assert not asked(0)
    one.batch(member(segment, new_id(), 1))
    assert (asked(0), asked(1)) == (True, False)
    # A window that is open, not published: what it holds still waits.
    one.execute(
        "insert into relay_window (number, from_snapshot, to_snapshot, system_identifier, published)"
        " select 2, to_snapshot, pg_current_snapshot(), system_identifier, false from relay_window"
    )
    assert (asked(0), asked(1)) == (True, False)
