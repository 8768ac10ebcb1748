"""What `preview` says is what then happens: to everybody, in every state that a history can leave, and nothing is written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from devstack import Stack
from sync_worker.database.sessions import Session
from sync_worker.enrollment import backfill
from sync_worker.enrollment.apply import Applied
from sync_worker.enrollment.preview import SQL, preview
from sync_worker.loops.checkpoint import Outcome
from sync_worker.operations.previewing import preview_document, read_method
from sync_worker.operations.publishing import InvalidLine
from sync_worker.operations.snapshot import snapshot
from sync_worker.settings import Settings
from tests.model.events import HandEdit, MethodChanged, to_record
from tests.model.histories import SEGMENTS, BeforeMethod, histories_before_a_method_event
from tests.support.engine import Engine
from tests.support.facts import member, method, new_id, source, suspension
from tests.support.sessions import Writer, change_method_in_steps
from tests.support.site import Site

_FIXTURE = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


@pytest.fixture(scope="module")
def engine(stack: Stack, template: str) -> Iterator[Engine]:
    """One database for all examples; each of them empties it first."""
    url = stack.postgres.create_database("preview_properties", template=template)
    running = Engine(url)
    yield running
    running.close()
    stack.postgres.drop_database("preview_properties")


@pytest.fixture(scope="module")
def configured(stack: Stack, engine: Engine) -> Settings:
    return Settings.model_validate({"database_url": stack.postgres.url("preview_properties")})


def _file(changed: MethodChanged) -> bytes:
    """The event as a file that `preview` and `publish` take."""
    name, fields = to_record(changed)
    return json.dumps({"type": name, **fields}).encode()


def _make(engine: Engine, before: BeforeMethod, held: Sequence[str], steps: int) -> None:
    """A state of the real database: by batches, hand edits, held segments, and a backfill that is not through."""
    _empty(engine)
    for batch in before.batches:
        if isinstance(batch, HandEdit):
            engine.edit(batch)
        else:
            engine.apply(batch)
    for segment in held:
        _hold(engine, segment)
    for batch in before.leaving:
        assert not isinstance(batch, HandEdit)
        engine.apply(batch)
    if before.begun is not None:
        change_method_in_steps(engine.session, before.begun)
        for _ in range(steps):
            backfill.step(engine.session, 1)


def _empty(engine: Engine) -> None:
    engine.reset()
    engine.lms.execute("truncate removal_hold, removal_count, hold_release")


def _hold(engine: Engine, segment: str) -> None:
    engine.lms.execute("insert into removal_hold (segment_id, members, removed) values (%s, 10, 5)", (segment,))


def _said(document: dict[str, Any]) -> dict[str, tuple[str, Any, Any]]:
    """By person, what the document says; each person of a change must be among its samples."""
    people = {}
    for effect, change in document["changes"].items():
        assert len(change["sample"]) == change["people"] == sum(change["status_after"].values())
        for part in ("roles", "groups"):
            others = [one for one in change["sample"] if one["before"][part] != one["after"][part]]
            assert change[f"{part}_changed"] == len(others)
        for one in change["sample"]:
            assert one["user_id"] not in people
            people[one["user_id"]] = (effect, one["before"], one["after"])
    assert len(people) == document["events"]
    return people


@pytest.mark.timeout(900)
@settings(max_examples=120, suppress_health_check=_FIXTURE)
@given(
    before=histories_before_a_method_event(),
    held=st.sampled_from(((), SEGMENTS)),
    steps=st.integers(0, 3),
    in_steps=st.booleans(),
)
def test_what_is_previewed_is_what_then_happens(
    engine: Engine, configured: Settings, before: BeforeMethod, held: Sequence[str], steps: int, in_steps: bool
) -> None:
    _make(engine, before, held, steps)
    try:
        document = preview_document(configured, read_method(configured, _file(before.event)))
    except InvalidLine as fault:
        document, in_steps = {"verdict": "invalid_event", "detail": str(fault), "changes": {}, "events": 0}, False
    event(document["verdict"])
    people = _said(document)
    published = len(engine.changes())

    applied: Applied | Outcome
    if in_steps:
        applied = change_method_in_steps(engine.session, before.event)
        engine.backfill(1)
    else:
        applied = engine.apply([before.event])

    happened = {
        change["user_id"]: (change["change"], change["before"], change["after"])
        for change in engine.changes()[published:]
    }
    if document["verdict"] in {"stale", "repeated"}:
        # Nothing comes of the event; what comes is the rest of the backfill before it, which is not its doing.
        assert not people
        assert applied.results["method", document["verdict"]] == 1
    elif document["verdict"] != "applied":
        assert not people
        ((_, rejection),) = applied.rejected
        assert (rejection.reason, rejection.detail) == (document["verdict"], document["detail"])
    else:
        assert people == happened
        for effect in {effect for effect, _, _ in people.values()}:
            event(effect)


@pytest.mark.parametrize(
    ("fields", "effect", "status"),
    [
        ({"role": "tutor"}, "UPDATED", "ACTIVE"),
        ({"visible": False}, "SUSPENDED", "SUSPENDED"),
        ({"on_removal": "SUSPEND"}, None, None),
        ({"segment_id": new_id()}, "UNENROLLED", "ABSENT"),
        ({"deleted": True}, "UNENROLLED", "ABSENT"),
    ],
    ids=["another role", "eye closed", "another policy", "another segment", "deleted"],
)
def test_whoever_a_hold_keeps_counts_as_a_member(
    engine: Engine, configured: Settings, fields: dict[str, Any], effect: str | None, status: str | None
) -> None:
    """What a held removal left goes the way of a member's, until the method turns to another segment."""
    _empty(engine)
    opened, user = method(new_id(), new_id()), new_id()
    engine.apply([opened])
    engine.apply([member(opened.segment_id, user, 1)])
    _hold(engine, opened.segment_id)
    engine.apply([member(opened.segment_id, user, 2, is_member=False)])
    changed = replace(opened, event_id=new_id(), version=2, **fields)

    people = _said(preview_document(configured, read_method(configured, _file(changed))))
    published = len(engine.changes())
    engine.apply([changed])
    happened = engine.changes()[published:]

    if effect is None:
        assert (people, happened) == ({}, [])
        return
    said, _, after = people[user]
    assert (said, after["status"]) == (effect, status)
    assert [(change["change"], change["after"]) for change in happened] == [(effect, after)]


def test_a_new_name_lets_a_backfill_go_on_and_its_rest_is_what_is_previewed(
    engine: Engine, configured: Settings
) -> None:
    _empty(engine)
    opened, users = method(new_id(), new_id()), sorted(new_id() for _ in range(5))
    engine.apply([member(opened.segment_id, user, 1) for user in users])
    change_method_in_steps(engine.session, opened)
    backfill.step(engine.session, 2)
    renamed = replace(opened, event_id=new_id(), version=2, name="Another name")

    document = preview_document(configured, read_method(configured, _file(renamed)))
    assert document["backfill"] == {"version": 1, "done": 2, "total": 5, "continues": True}
    assert document["untouched"]["as_they_are"]["people"] == 2
    assert _said(document).keys() == set(users[2:])
    turned = preview_document(configured, read_method(configured, _file(replace(renamed, role="tutor"))))
    assert turned["backfill"]["continues"] is False
    assert {effect: change["people"] for effect, change in turned["changes"].items() if change["people"]} == {
        "ENROLLED": 3, "UPDATED": 2,
    }  # fmt: skip

    published = len(engine.changes())
    engine.apply([renamed])
    assert [change["user_id"] for change in engine.changes()[published:]] == users[2:]
    # Without a backfill under way, a new name does nothing: not even to a row that isn't what the facts say.
    engine.lms.execute("update enrollment set sources = '{}' where user_id = %s", (users[4],))
    again = preview_document(configured, read_method(configured, _file(replace(renamed, version=3, name="A third"))))
    assert (again["events"], again["backfill"]) == (0, None)
    assert again["detail"] == "nothing in it bears on what people get: only the method itself would be other"


def _course(session: Writer, segment: str, course: str, people: int) -> list[str]:
    users = [new_id() for _ in range(people)]
    session.batch(*(member(segment, user, 1) for user in users))
    return users


def test_a_backfill_of_thousands_does_what_was_previewed(site: Site) -> None:
    """Some enrolled by hand, some suspended in the course, some who left: everybody counted, in each of the numbers."""
    segment, course, group, own = new_id(), new_id(), new_id(), new_id()
    opened = method(segment, course, group_id=group)
    with Writer(site.database_url) as worker:
        users = _course(worker, segment, course, 2500)
        worker.batch(*(source(course, user, 1) for user in users[:100]))
        worker.batch(*(suspension(course, user, 1) for user in users[90:130]))
        worker.batch(*(member(segment, user, 2, is_member=False) for user in users[2400:]))
        others = [new_id() for _ in range(7)]
        worker.batch(*(source(course, user, 1) for user in others))
        with site.connect() as lms:
            lms.execute(
                "insert into course_group_member (course_id, group_id, user_id) values (%s, %s, %s)",
                (course, own, users[0]),
            )
        said = preview_document(site.settings, read_method(site.settings, _file(opened)))
        before = len(site.query("select from outbox"))
        worker.batch(opened)
        assert worker.finish_backfills() == 2400
    rows = site.query("select before_sources, sources from outbox order by id offset %s", before)

    assert said["events"] == len(rows) == 2400
    assert {effect: change["people"] for effect, change in said["changes"].items()} == {
        "ENROLLED": 2300, "UNENROLLED": 0, "SUSPENDED": 0, "REACTIVATED": 0, "UPDATED": 100,
    }  # fmt: skip
    assert said["changes"]["ENROLLED"]["status_after"] == {"ACTIVE": 2270, "SUSPENDED": 30}
    assert said["changes"]["UPDATED"]["roles_changed"] == 90
    assert said["changes"]["UPDATED"]["groups_changed"] == 100
    assert {why: each["people"] for why, each in said["untouched"].items()} == {
        "as_they_are": 0, "nothing_given": 0, "not_seen": 0, "others": 7,
    }  # fmt: skip
    assert all(len(change["sample"]) == min(5, change["people"]) for change in said["changes"].values())


def test_preview_waits_for_nobody_and_nobody_waits_for_it(site: Site) -> None:
    segment, course, user = new_id(), new_id(), new_id()
    first = method(segment, course)
    closed = replace(first, event_id=new_id(), version=2, visible=False)
    with Writer(site.database_url) as worker, Writer(site.database_url) as other:
        worker.batch(first)
        worker.batch(member(segment, user, 1))
        # A batch of methods that isn't committed: it holds the exclusive lock, the method's row and the member's enrollment.
        other.begin(closed)
        said = preview_document(
            site.settings, read_method(site.settings, _file(replace(first, version=3, deleted=True)))
        )
        assert said["changes"]["UNENROLLED"]["sample"][0]["before"]["status"] == "ACTIVE"
        other.commit()

        with snapshot(site.settings, "preview") as session:
            found = preview(session, read_method(site.settings, _file(replace(first, version=3))))
            assert [case.effect for case in found.cases] == ["REACTIVATED"]
            # In the middle of it: a batch, and one that changes the very method.
            worker.batch(member(segment, user, 2, is_member=False))
            other.batch(replace(first, version=4, deleted=True))
            row = session.execute(
                "select pg_current_xact_id_if_assigned(), current_setting('transaction_read_only')"
            ).fetchone()
            assert row == (None, "on")


def test_a_user_who_can_only_read_can_preview(site: Site) -> None:
    name = f"reader_{new_id()[:8]}"
    opened = method(new_id(), new_id())
    with Writer(site.database_url) as worker:
        worker.batch(member(opened.segment_id, new_id(), 1))
    with site.connect() as owner:
        owner.execute(f"create role {name} login")
        owner.execute(
            f"grant usage on schema sync_worker to {name}; grant select on all tables in schema sync_worker to {name}"
        )
        owner.execute(f"alter role {name} set default_transaction_read_only = on")
    url = site.stack.postgres.url(site.database_url.rpartition("/")[2], user=name)
    reading = site.settings.model_copy(update={"database_url": SecretStr(url)})
    assert preview_document(reading, read_method(reading, _file(opened)))["changes"]["ENROLLED"]["people"] == 1
    with site.connect() as owner:
        owner.execute(f"drop owned by {name}; drop role {name}")


class _Explaining:
    """A session that keeps the plan of the statement that does the work."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.plan = ""

    def execute(self, query: Any, *arguments: Any, **options: Any) -> Any:
        if query == SQL["effect"]:
            self.plan = json.dumps(self._session.execute(f"explain (format json) {query}", *arguments).fetchone())
        return self._session.execute(query, *arguments, **options)


def test_the_plan_counts_cases_and_sorts_nobody(site: Site) -> None:
    """Statistics make the planner take every person for a case of their own."""
    opened = method(new_id(), new_id())
    with site.connect() as connection:
        connection.execute(
            "insert into membership (segment_id, user_id, is_member, version) "
            "select %s, gen_random_uuid(), true, 1 from generate_series(1, 5000)",
            (opened.segment_id,),
        )
        connection.execute("analyze membership")
    with snapshot(site.settings, "preview") as session:
        explaining = _Explaining(session)
        found = preview(cast("Session", explaining), read_method(site.settings, _file(opened)))
    assert [(case.effect, case.people) for case in found.cases] == [("ENROLLED", 5000)]
    assert '"Strategy": "Hashed"' in explaining.plan
    assert '"Node Type": "Sort"' not in explaining.plan
