"""`reconcile` on damaged databases: what was done to them by hand is found and repaired, all of it and nothing else.

Damage is plain SQL on the tables, in every way that the rule knows, on the state that a random history left. What it was
before is what it must be afterwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from random import Random
from typing import Any
from uuid import UUID

import pytest
from psycopg.types.json import Jsonb

from sync_worker.enrollment.reconcile import Scope
from sync_worker.errors import SettingsError
from sync_worker.operations.reconciling import Reconciliation
from sync_worker.operations.tally import Counts, Finding
from tests.model.events import Event, HandEdit
from tests.model.traffic import Shares, in_batches, random_history
from tests.support.check import ABSENT, state_of
from tests.support.damage import Damage
from tests.support.engine import Engine
from tests.support.facts import member, method, new_id, source
from tests.support.sessions import change_method_in_steps
from tests.support.site import Site

Found = set[tuple[str, str, str, str]]
"""(kind, course, user, source) of each difference; the source is empty for what is wrong with a row."""
EVERYTHING = Scope()
METHODS_CHANGE = Shares(added=0.5, removed=0.2, source=0.2, suspension=0.05, method=0.05)
pytestmark = pytest.mark.usefixtures("time_to_stand_still")


@pytest.fixture
def engine(site: Site) -> Iterator[Engine]:
    """The site has topics, but no worker: nothing is published, so the outbox holds everything that was ever to be."""
    running = Engine(site.database_url)
    yield running
    running.close()


def reconcile(site: Site, scope: Scope = EVERYTHING, *, dry_run: bool = False, step: int = 40) -> tuple[Found, Counts]:
    """A run in small steps: what it found, and its counts, which must be those of what it reported."""
    findings: list[Finding] = []
    with closing(Reconciliation(site.settings, scope, dry_run=dry_run, step=step)) as run:
        counts = run.run(findings.append)
    found = {named(finding) for finding in findings}
    assert len(found) == len(findings), "a difference was reported twice"
    assert Counter(finding.difference.kind.value for finding in findings) == counts.found
    assert counts.repaired.total() == sum(finding.repaired is True for finding in findings)
    assert all((finding.repaired is None) == dry_run for finding in findings)
    return found, counts


def named(finding: Finding) -> tuple[str, str, str, str]:
    key = finding.difference.key
    return finding.difference.kind.value, str(UUID(bytes=key.course)), str(UUID(bytes=key.user)), key.source


def live(engine: Engine, seed: int, events: int = 1200) -> list[Event]:
    """A random history, applied: methods in every state, some deleted, and groups by hand."""
    history = random_history(
        seed, events=events, segments=8, users=60, methods_per_segment=3, courses=5, shares=METHODS_CHANGE
    )[: -8 * 3]  # without the last word that brings every method in order
    for batch in in_batches(history, 40):
        engine.apply(batch)
    random = Random(seed)
    for (course, user), row in engine.enrollments().items():
        if random.random() < 0.2 and row["status"] != "ABSENT":
            engine.edit(HandEdit("insert", course, new_id(), user))
    return history


def seen(engine: Engine) -> tuple[Any, Any]:
    """All that anybody can see, versions aside."""
    rows = {pair: {name: row[name] for name in row if name != "version"} for pair, row in engine.enrollments().items()}
    return rows, engine.group_members()


def assert_gapless(engine: Engine) -> None:
    """Versions from 1 without a gap, the last event is the row; before is the previous after, but for what was damaged between."""
    chains: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for event in engine.changes():
        chains.setdefault((event["course_id"], event["user_id"]), []).append(event)
    rows = engine.enrollments()
    for pair, chain in chains.items():
        assert [event["version"] for event in chain] == list(range(1, len(chain) + 1))
        for before, event in pairwise(chain):
            assert event["cause"]["type"] == "RECONCILE" or event["before"] == before["after"]
        row = rows.pop(pair, None)
        assert chain[-1]["after"] == (ABSENT if row is None else state_of(row))
        assert row is None or row["version"] == len(chain)
    assert not rows


@pytest.mark.parametrize("seed", range(4))
def test_what_was_damaged_is_found_and_repaired_and_nothing_else(site: Site, engine: Engine, seed: int) -> None:
    live(engine, seed)
    before, changes = seen(engine), len(engine.changes())
    assert reconcile(site, dry_run=True)[0] == set(), "found on a healthy database"
    injected = Damage(engine.lms, Random(seed)).do(times=2)
    assert len(injected) >= 30
    expected = {damaged.difference for damaged in injected}

    in_a_dry_run, counts = reconcile(site, dry_run=True)
    assert in_a_dry_run == expected
    assert counts.left == len(injected)
    assert len(engine.changes()) == changes, "a dry run changed something"
    found, counts = reconcile(site)
    assert found == expected
    assert (counts.left, counts.repaired.total()) == (0, len(injected))
    assert seen(engine) == before
    assert_gapless(engine)
    assert engine.lms.execute("select from source where version = 0").fetchall() == [], "a lock was left as a fact"
    causes = [event["cause"] for event in engine.changes()[changes:]]
    assert {cause["type"] for cause in causes} == {"RECONCILE"}
    assert len(causes) == counts.events

    again, counts = reconcile(site)
    assert (again, counts.events) == (set(), 0)
    assert seen(engine) == before


def test_a_run_in_steps_of_one_finds_the_same(site: Site, engine: Engine) -> None:
    live(engine, 11, events=300)
    before = seen(engine)
    expected = {damaged.difference for damaged in Damage(engine.lms, Random(11)).do(times=1)}
    assert reconcile(site, step=1)[0] == expected
    assert seen(engine) == before


def test_several_contributions_of_one_row_are_repaired_by_one_event(site: Site, engine: Engine) -> None:
    course, user = new_id(), new_id()
    first, second = method(new_id(), course, group_id=new_id()), method(new_id(), course, role="tutor")
    engine.apply([first, second])
    engine.apply([member(first.segment_id, user, 1), member(second.segment_id, user, 1), source(course, user, 1)])
    engine.edit(HandEdit("insert", course, new_id(), user))
    before = seen(engine)
    engine.lms.execute(
        "update enrollment set sources = %s",
        (Jsonb({first.method_id: {"kind": "SEGMENT_SYNC", "status": "SUSPENDED", "role": "guest", "member": False}}),),
    )
    found, counts = reconcile(site)
    assert found == {
        ("different", course, user, first.method_id),
        ("missing", course, user, second.method_id),
        ("missing", course, user, "manual"),
    }
    assert counts.left == 0
    assert seen(engine) == before
    assert_gapless(engine)


def test_groups_by_hand_survive_contributions_that_were_lost(site: Site, engine: Engine) -> None:
    """The row is ABSENT meanwhile, where such groups end; a run that looked at rows first would end them."""
    enabled = method(new_id(), new_id())
    engine.apply([enabled])
    engine.apply([member(enabled.segment_id, user := new_id(), 1)])
    engine.edit(HandEdit("insert", enabled.course_id, group := new_id(), user))
    before = seen(engine)
    engine.lms.execute("update enrollment set sources = '{}'")
    missing = {("missing", enabled.course_id, user, enabled.method_id)}
    assert reconcile(site, dry_run=True)[0] == missing
    assert reconcile(site)[0] == missing
    assert seen(engine) == before
    assert group in engine.enrollments()[enabled.course_id, user]["groups"]


# ── what no fact knows ──────────────────────────────────────────────────────────────────────────────────────────────


def test_what_depends_on_the_past_is_counted_and_left_alone(site: Site, engine: Engine) -> None:
    keeps = method(new_id(), new_id(), on_removal="SUSPEND", group_id=new_id())
    engine.apply([keeps])
    left, stays = new_id(), new_id()
    engine.apply([member(keeps.segment_id, left, 1), member(keeps.segment_id, stays, 1)])
    engine.apply([member(keeps.segment_id, left, 2, is_member=False)])
    engine.edit(HandEdit("insert", keeps.course_id, new_id(), stays))
    # A leftover that never was one looks like any other, and one that is gone like somebody who never came.
    never = new_id()
    engine.lms.execute(
        "insert into enrollment (course_id, user_id, version, sources, cause_type) values (%s, %s, 1, %s, 'SQL')",
        (
            keeps.course_id,
            never,
            Jsonb({keeps.method_id: {"kind": "SEGMENT_SYNC", "status": "SUSPENDED", "role": "x", "member": False}}),
        ),
    )
    before = seen(engine)
    found, counts = reconcile(site)
    assert found == set()
    assert (counts.suspended, counts.hand_made) == (2, 1)
    assert seen(engine) == before


def test_one_who_was_made_active_without_being_a_member_becomes_what_the_method_leaves_of_members(
    site: Site, engine: Engine
) -> None:
    keeps = method(new_id(), new_id(), on_removal="SUSPEND_WITHOUT_ROLES")
    engine.apply([keeps])
    engine.apply([member(keeps.segment_id, user := new_id(), 1)])
    engine.apply([member(keeps.segment_id, user, 2, is_member=False)])
    before = seen(engine)
    active = {"kind": "SEGMENT_SYNC", "status": "ACTIVE", "role": "student", "member": True}
    engine.lms.execute("update enrollment set sources = %s", (Jsonb({keeps.method_id: active}),))
    assert reconcile(site)[0] == {("different", keeps.course_id, user, keeps.method_id)}
    assert seen(engine) == before


def test_a_method_that_nothing_is_known_of_is_reported_and_its_people_stay(site: Site, engine: Engine) -> None:
    lost = method(new_id(), new_id())
    engine.apply([lost])
    engine.apply([member(lost.segment_id, user := new_id(), 1)])
    before = seen(engine)
    engine.lms.execute("delete from method")
    for _ in range(2):
        found, counts = reconcile(site)
        assert found == {("unknown_method", lost.course_id, user, lost.method_id)}
        assert counts.left == 1
        assert seen(engine) == before
    engine.apply([lost])  # as its topic, which is compacted, gives it again
    assert reconcile(site)[0] == set()


def test_what_no_event_could_say_is_set_right_and_never_reaches_the_outbox(site: Site, engine: Engine) -> None:
    """Also where its membership is held, and the rule asks it whether it was a member's."""
    enabled = method(new_id(), new_id(), group_id=new_id())
    engine.apply([enabled])
    engine.apply([member(enabled.segment_id, user := new_id(), 1)])
    engine.apply([member(enabled.segment_id, held := new_id(), 1), source(enabled.course_id, held, 1)])
    before = seen(engine)
    engine.lms.execute("update membership set is_member = false, hold = 1 where user_id = %s", (held,))
    engine.lms.execute(
        """update enrollment set sources = replace(sources::text, '"member": true', '"member": "maybe"')::jsonb"""
    )
    found, counts = reconcile(site)
    assert {each[0] for each in found} == {"different", "unwanted"}  # no fact knows any more what was held
    assert counts.left == 0
    assert engine.enrollments()[enabled.course_id, user] == before[0][enabled.course_id, user] | {"version": 2}
    assert list(engine.enrollments()[enabled.course_id, held]["sources"]) == ["manual"]
    engine.changes()  # the relay reads and encodes all of them


def test_a_row_that_cannot_be_read_is_reported_and_left_alone(site: Site, engine: Engine) -> None:
    engine.apply([source(course := new_id(), user := new_id(), 1)])
    engine.lms.execute("""update enrollment set sources = '["manual"]'""")
    found, counts = reconcile(site)
    assert found == {("unreadable", course, user, "")}
    assert counts.left == 1


# ── what is on its way ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_backfill_that_is_pending_is_no_difference(site: Site, engine: Engine) -> None:
    hidden = method(new_id(), new_id(), visible=False)
    engine.apply([hidden])
    engine.apply([member(hidden.segment_id, new_id(), 1) for _ in range(20)])
    change_method_in_steps(engine.session, replace(hidden, version=2, visible=True, event_id=new_id()))
    for dry_run in (True, False):
        found, counts = reconcile(site, dry_run=dry_run)
        assert found == set()
        assert counts.pending == 20
    engine.backfill()
    found, counts = reconcile(site)
    assert (found, counts.pending) == (set(), 0)


def test_removals_that_a_hold_keeps_back_are_no_difference(site: Site, engine: Engine) -> None:
    enabled = method(new_id(), new_id(), group_id=new_id())
    engine.apply([enabled])
    engine.apply([member(enabled.segment_id, new_id(), 1) for _ in range(3)])
    engine.lms.execute("update membership set is_member = false, hold = 1, version = 2")
    before = seen(engine)
    assert reconcile(site)[0] == set()
    assert seen(engine) == before
    # The rule sees them as members, so what is wrong with them is what would be wrong with members.
    engine.lms.execute("""update enrollment set sources = replace(sources::text, 'student', 'janitor')::jsonb""")
    assert {kind for kind, *_ in reconcile(site)[0]} == {"different"}
    assert seen(engine) == before


# ── scopes ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_scope_takes_in_what_belongs_to_it_alone(site: Site, engine: Engine) -> None:
    segment, other_segment, course, other_course, user = (new_id() for _ in range(5))
    here, there, beside = method(segment, course), method(segment, other_course), method(other_segment, course)
    engine.apply([here, there, beside])
    engine.apply([member(segment, user, 1), member(other_segment, user, 1), source(course, user, 1)])
    before = seen(engine)
    places = {each.method_id: ("missing", each.course_id, user, each.method_id) for each in (here, there, beside)}
    manual = ("missing", course, user, "manual")
    of = {
        EVERYTHING: {*places.values(), manual},
        Scope(course=UUID(course)): {places[here.method_id], places[beside.method_id], manual},
        Scope(segment=UUID(segment)): {places[here.method_id], places[there.method_id]},
        Scope(method=UUID(there.method_id)): {places[there.method_id]},
        Scope(course=UUID(course), segment=UUID(segment)): {places[here.method_id]},
        Scope(course=UUID(new_id())): set(),
    }
    engine.lms.execute("update enrollment set sources = '{}'")
    for scope, expected in of.items():
        assert reconcile(site, scope, dry_run=True)[0] == expected, scope
    engine.lms.execute(
        "update enrollment set sources = sources || %s where course_id = %s",
        (Jsonb({here.method_id: {"status": "SUSPENDED"}}), course),
    )
    assert reconcile(site, Scope(method=UUID(here.method_id)))[0] == {("different", *places[here.method_id][1:])}
    assert reconcile(site, Scope(segment=UUID(segment)))[0] == {places[there.method_id]}
    assert reconcile(site, Scope(course=UUID(course)))[0] == {places[beside.method_id], manual}
    assert seen(engine) == before
    with pytest.raises(SettingsError, match="no such method"):
        reconcile(site, Scope(method=UUID(new_id())))
