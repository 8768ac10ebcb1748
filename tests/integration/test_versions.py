"""`versions`: an entity that one absurd version keeps from every later event, found, lowered, and taking events again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from sync_worker.operations.entities import Kind
from sync_worker.operations.versions import Versions
from tests.model.events import Event, MethodChanged
from tests.support.check import assert_changes_are_a_chain
from tests.support.facts import member, method, new_id, source, suspension
from tests.support.sessions import WAIT_S, Writer, change_method_in_steps
from tests.support.site import Site, wait_for

ABSURD = 9_000_000_000_000_000_000


def versions(site: Site, *arguments: str, code: int = 0) -> dict[str, Any]:
    done = site.command("versions", *arguments, "--json")
    assert done.returncode == code, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def interventions(site: Site) -> list[dict[str, Any]]:
    return site.query("select by, operation, detail from intervention order by id")


class Stuck:
    """One entity of a kind: what was said under an absurd version, and what the publisher says next."""

    absurd: Event
    next: Event

    def __init__(self, kind: Kind) -> None:
        segment, course, user = new_id(), new_id(), new_id()
        self.setting: list[Event] = [method(segment, course)]
        self.key = (course, user)
        match kind:
            case Kind.MEMBERSHIP:
                self.ids = [segment, user]
                self.absurd, self.next = member(segment, user, ABSURD), member(segment, user, 8, is_member=False)
            case Kind.METHOD:
                absurd = method(segment, course, version=ABSURD)
                self.setting = [member(segment, user, 1)]
                self.ids = [absurd.method_id]
                self.absurd, self.next = absurd, replace(absurd, event_id=new_id(), version=8, deleted=True)
            case Kind.SOURCE:
                self.ids = [course, user, "manual"]
                self.absurd, self.next = source(course, user, ABSURD), source(course, user, 8, status="ABSENT")
            case Kind.SUSPENSION:
                self.setting = [source(course, user, 1)]
                self.ids = [course, user]
                self.absurd, self.next = suspension(course, user, ABSURD), suspension(course, user, 8, suspended=False)


@pytest.mark.parametrize("kind", list(Kind))
def test_an_entity_that_no_event_reaches_takes_the_next_one_once_its_version_is_lowered(site: Site, kind: Kind) -> None:
    stuck = Stuck(kind)
    site.start_worker()
    site.produce(stuck.setting)
    site.wait_settled()
    site.produce([stuck.absurd])
    site.wait_settled()
    before, events = site.enrollments(), len(site.changes())
    site.produce([stuck.next])
    site.wait_settled()
    assert site.enrollments() == before

    shown = versions(site, "show", kind, *stuck.ids)
    assert (shown["version"], shown["absurd"]) == (ABSURD, True)
    assert shown["event_id"] == (None if kind is Kind.SUSPENSION else stuck.absurd.event_id)
    (found,) = versions(site, "find")["entities"]
    assert found == {name: value for name, value in shown.items() if name != "absurd"}
    assert versions(site, "lower", kind, *stuck.ids, "--to", "7", "--dry-run", code=3)["lowered"] == [found]
    unconfirmed = site.command("versions", "lower", kind, *stuck.ids, "--to", "7")
    assert unconfirmed.returncode == 2
    assert (interventions(site), versions(site, "show", kind, *stuck.ids)["version"]) == ([], ABSURD)

    assert versions(site, "lower", kind, *stuck.ids, "--to", "7", "--yes")["lowered"] == [found]
    assert versions(site, "show", kind, *stuck.ids)["version"] == 7
    assert site.enrollments() == before
    site.wait_settled()
    assert len(site.changes()) == events
    (recorded,) = interventions(site)
    assert "@" in recorded["by"]
    assert recorded["operation"] == "versions lower"
    assert (recorded["detail"]["kind"], recorded["detail"]["to"]) == (kind, 7)
    (entity,) = recorded["detail"]["entities"]
    assert (entity["from"], entity["event_id"]) == (ABSURD, shown["event_id"])
    assert set(stuck.ids) <= set(entity.values())

    site.produce([stuck.next])
    site.wait_settled()
    assert versions(site, "show", kind, *stuck.ids)["version"] == 8
    after = site.enrollments().get(stuck.key)
    assert (after is None) if kind is not Kind.SUSPENSION else (after is not None and after["status"] == "ACTIVE")
    assert assert_changes_are_a_chain(site) == events + 1


def test_the_version_that_was_set_is_a_version_like_others(site: Site) -> None:
    """Its content is what is stored: said again it is a repetition, otherwise a contradiction, and below it is stale."""
    segment, user = new_id(), new_id()
    site.start_worker()
    site.produce([member(segment, user, ABSURD)])
    site.wait_settled()
    versions(site, "lower", "membership", segment, user, "--to", "7", "--yes")
    site.produce([member(segment, user, 6, is_member=False), member(segment, user, 7)])
    site.wait_settled()
    assert site.dead_letters() == []
    site.produce([member(segment, user, 7, is_member=False)])
    site.wait_settled()
    (letter,) = wait_for(site.dead_letters, what="the dead letter")
    assert letter.header("dlq_reason") == b"version_conflict"
    assert site.query("select is_member, version from membership") == [{"is_member": True, "version": 7}]


def test_all_entities_above_a_version_are_lowered_at_once_and_no_other(make_site: Callable[..., Site]) -> None:
    site = make_site(topics=False)
    segment, good = new_id(), new_id()
    bad = [new_id() for _ in range(1200)]
    with Writer(site.database_url) as writer:
        writer.batch(member(segment, good, 5), *(member(segment, user, ABSURD + n) for n, user in enumerate(bad)))
        writer.batch(source(new_id(), bad[0], ABSURD))
    assert len(versions(site, "find", "membership")["entities"]) == len(bad)
    assert len(versions(site, "find", "--above", "4")["entities"]) == len(bad) + 2
    dry = versions(site, "lower", "membership", "--above", "1000", "--to", "0", "--dry-run", code=3)
    assert len(dry["lowered"]) == len(bad)
    done = versions(site, "lower", "membership", "--above", "1000", "--to", "0", "--yes")
    assert {each["user_id"] for each in done["lowered"]} == set(bad)
    stored = {row["user_id"]: row["version"] for row in site.query("select user_id::text, version from membership")}
    assert stored == dict.fromkeys(bad, 0) | {good: 5}
    assert [each["kind"] for each in versions(site, "find")["entities"]] == ["source"]
    recorded = [entity for row in interventions(site) for entity in row["detail"]["entities"]]
    assert {entity["user_id"]: entity["from"] for entity in recorded} == {u: ABSURD + n for n, u in enumerate(bad)}
    assert versions(site, "lower", "membership", "--above", "1000", "--to", "0", "--yes")["lowered"] == []
    shown = site.command("versions", "lower", "source", "--above", "1000", "--to", "0", "--dry-run")
    assert shown.returncode == 3
    assert str(ABSURD) in shown.stdout


def test_a_backfill_under_way_goes_on_when_its_method_is_lowered(make_site: Callable[..., Site]) -> None:
    site = make_site(topics=False)
    absurd = method(segment := new_id(), new_id(), version=ABSURD)
    with Writer(site.database_url) as writer:
        writer.batch(*(member(segment, new_id(), 1) for _ in range(6)))
        writer.start(lambda session: change_method_in_steps(session, absurd)).result(WAIT_S)
        writer.start_step(2).result(WAIT_S)
        versions(site, "lower", "method", absurd.method_id, "--to", "3", "--yes")
        assert site.query("select version, done from backfill") == [{"version": 3, "done": 2}]
        assert writer.finish_backfills(2) == 4
        assert len(site.enrollments()) == 6
        lowered: MethodChanged = replace(absurd, event_id=new_id(), version=4, active=False)
        assert writer.batch(lowered).changes == 6


def test_an_entity_that_took_an_event_since_it_was_looked_at_is_left_alone(make_site: Callable[..., Site]) -> None:
    site = make_site(topics=False)
    segment, user = new_id(), new_id()
    with Writer(site.database_url) as writer:
        writer.batch(member(segment, user, ABSURD))
        operation = Versions(site.settings)
        standings = operation.find(Kind.MEMBERSHIP, 10)
        writer.batch(member(segment, user, ABSURD + 1, is_member=False))
        assert list(operation.lower(standings, 3)) == [[]]
        assert site.query("select version from membership") == [{"version": ABSURD + 1}]
        assert interventions(site) == []


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["show", "membership", new_id()], 2, "segment_id user_id"),
        (["show", "method", "not-an-id"], 2, "method_id 'not-an-id' is not a uuid"),
        (["show", "source", new_id(), new_id(), "manual"], 1, "nothing was ever said"),
        (["show", "person", new_id()], 2, "person"),
        (["lower", "method", new_id(), "--to", "1", "--yes"], 1, "nothing was ever said"),
        (["lower", "method", new_id(), "--above", "5", "--to", "1", "--yes"], 2, "--above"),
        (["lower", "method", "--to", "1", "--yes"], 2, "--above"),
        (["lower", "method", new_id(), "--to", "-1", "--yes"], 2, "--to"),
    ],
)
def test_what_can_not_be_meant_is_said(site_without_topics: Site, arguments: list[str], code: int, says: str) -> None:
    done = site_without_topics.command("versions", *arguments)
    assert done.returncode == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_version_is_never_raised(site_without_topics: Site) -> None:
    with Writer(site_without_topics.database_url) as writer:
        writer.batch(source(course := new_id(), user := new_id(), 5))
    for to in ("5", "6"):
        done = site_without_topics.command("versions", "lower", "source", course, user, "manual", "--to", to, "--yes")
        assert done.returncode == 2
        assert "the stored version is 5" in done.stderr


@pytest.fixture
def site_without_topics(make_site: Callable[..., Site]) -> Site:
    return make_site(topics=False)
