"""`reconcile` beside batches and workers: it waits for whoever is changing what it would repair, and invents nothing meanwhile.

The mutants show that the locks are what makes it wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from uuid import UUID

import pytest

from sync_worker.enrollment.erase import erase_person, find
from sync_worker.enrollment.reconcile import SQL, Difference, Key, Kind, Scope
from sync_worker.enrollment.repair import repair
from sync_worker.operations.reconciling import Reconciliation
from sync_worker.operations.tally import Finding
from tests.model.events import Event
from tests.model.model import Model
from tests.model.traffic import Shares, in_batches, random_history
from tests.support.check import assert_rows_equal_model, assert_site_equals_model
from tests.support.facts import member, method, new_id, source
from tests.support.sessions import WAIT_S, Writer, change_method_in_steps, model_of
from tests.support.site import Site, wait_for

MakeWriter = Callable[..., Writer]
pytestmark = pytest.mark.usefixtures("time_to_stand_still")


@pytest.fixture
def bare_site(make_site: Callable[..., Site]) -> Site:
    """Only a database: the sessions are the test's own."""
    return make_site(topics=False)


@pytest.fixture
def writer(bare_site: Site) -> Iterator[MakeWriter]:
    with ExitStack() as opened:
        yield lambda **options: opened.enter_context(Writer(bare_site.database_url, **options))


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as running:
        yield running


def reconcile(site: Site, *, dry_run: bool = False, step: int = 1000) -> list[Finding]:
    findings: list[Finding] = []
    with closing(Reconciliation(site.settings, Scope(), dry_run=dry_run, step=step)) as run:
        run.run(findings.append)
    return findings


def damage(site: Site, statement: str) -> None:
    assert site.query(f"{statement} returning true")


def wait_until_it_waits(site: Site, run: Future[list[Finding]]) -> None:
    """Until PostgreSQL says that a reconcile waits for another session; it gives up now and then, and tries again."""
    with site.connect() as observer:

        def waits() -> bool:
            return bool(
                observer.execute(
                    "select pid from pg_stat_activity where application_name = 'sync-worker reconcile' "
                    "and cardinality(pg_blocking_pids(pid)) > 0"
                ).fetchall()
            )

        wait_for(lambda: waits() or run.done(), WAIT_S, "waiting for another session")
    assert not run.done(), "it went through without waiting"


# ── a repair beside a transaction that is changing the facts ────────────────────────────────────────────────────────


def _removed_elsewhere(site: Site, one: Writer) -> list[Sequence[Event]]:
    """A member whose contribution is missing is about to leave."""
    enabled = method(new_id(), new_id())
    joins = member(enabled.segment_id, user := new_id(), 1)
    leaves = member(enabled.segment_id, user, 2, is_member=False)
    one.batch(enabled)
    one.batch(joins)
    damage(site, "update enrollment set sources = '{}'")
    one.begin(leaves)
    return [[enabled], [joins], [leaves]]


def _source_comes(site: Site, one: Writer) -> list[Sequence[Event]]:
    """What somebody put in by hand without a fact is about to get one."""
    first = source(new_id(), new_id(), 1)
    comes = replace(source(first.course_id, first.user_id, 1, role="guest"), source="self")
    one.batch(first)
    contribution = '{"self": {"kind": "OTHER", "status": "ACTIVE", "role": "guest", "member": true}}'
    damage(site, f"update enrollment set sources = sources || '{contribution}'")
    one.begin(comes)
    return [[first], [comes]]


BESIDE = pytest.mark.parametrize("beside", [_removed_elsewhere, _source_comes], ids=["a removal", "a source"])


@BESIDE
def test_a_repair_waits_for_the_facts_that_are_being_changed(
    bare_site: Site, writer: MakeWriter, pool: ThreadPoolExecutor, beside: Callable[..., list[Sequence[Event]]]
) -> None:
    one = writer()
    batches = beside(bare_site, one)
    run = pool.submit(reconcile, bare_site)
    wait_until_it_waits(bare_site, run)
    one.commit()
    assert run.result(WAIT_S) == [], "it reported what somebody else put right"
    assert_rows_equal_model(bare_site, model_of(*batches))


@BESIDE
def test_without_its_locks_a_repair_would_undo_what_comes_meanwhile(
    bare_site: Site,
    writer: MakeWriter,
    monkeypatch: pytest.MonkeyPatch,
    beside: Callable[..., list[Sequence[Event]]],
) -> None:
    for lock in ("lock_memberships", "lock_sources"):
        monkeypatch.setitem(SQL, lock, "select 1")
    one = writer()
    batches = beside(bare_site, one)
    assert len(reconcile(bare_site)) == 1
    one.commit()
    with pytest.raises(AssertionError, match="1 rows differ"):
        assert_rows_equal_model(bare_site, model_of(*batches))


def test_a_method_that_changes_is_waited_for_and_its_backfill_left_to_the_workers(
    bare_site: Site, writer: MakeWriter, pool: ThreadPoolExecutor
) -> None:
    enabled = method(new_id(), new_id())
    people = [member(enabled.segment_id, new_id(), 1) for _ in range(5)]
    renamed = replace(enabled, event_id=new_id(), version=2, role="tutor")
    one, other = writer(), writer()
    one.batch(enabled)
    one.batch(*people)
    damage(bare_site, "update enrollment set sources = '{}'")
    changing = one.start(lambda session: change_method_in_steps(session, renamed), stop_before="backfill_put")
    one.wait_until_stopped()
    run = pool.submit(reconcile, bare_site)
    wait_until_it_waits(bare_site, run)
    one.go_on()
    changing.result(WAIT_S)
    assert run.result(WAIT_S) == []
    assert bare_site.enrollments() == {}
    assert other.finish_backfills() == 5
    assert_rows_equal_model(bare_site, model_of([enabled], people, [renamed]))


def test_somebody_who_was_erased_since_they_were_looked_at_is_not_named_again(
    bare_site: Site, writer: MakeWriter
) -> None:
    enabled = method(new_id(), new_id())
    one = writer()
    one.batch(enabled)
    one.batch(member(enabled.segment_id, user := new_id(), 1), source(enabled.course_id, user, 1))
    damage(bare_site, "update enrollment set sources = '{}'")
    found = [
        Difference(Kind.MISSING, Key(UUID(enabled.course_id).bytes, UUID(user).bytes, name))
        for name in (enabled.method_id, "manual")
    ]
    erase_person(one.session, UUID(user), "test")
    with one.session.transaction():
        assert repair(one.session, found).found == []
    assert not find(one.session, UUID(user)).erasable


# ── beside workers ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_is_found_on_a_healthy_database_while_workers_apply_events(make_site: Callable[..., Site]) -> None:
    """Two workers in small batches; segments large enough that changes of their methods go by steps."""
    site = make_site(partitions=4, batch_max_records="40")
    history = random_history(
        5, events=6000, segments=2, users=1300, methods_per_segment=2, courses=3,
        shares=Shares(added=0.6, removed=0.2, source=0.15, suspension=0.04, method=0.01),
    )  # fmt: skip
    workers = [site.start_worker(), site.start_worker()]
    found: list[Finding] = []
    for number, part in enumerate(in_batches(history, 500)):
        site.produce(part)
        found += reconcile(site, dry_run=number % 2 == 0, step=200)
    assert found == []
    site.wait_settled(120)
    assert reconcile(site) == []
    model = Model()
    model.apply_batch(history)
    assert_site_equals_model(site, model)
    assert [worker.terminate() for worker in workers] == [0, 0]
