"""`explain`: the right words for each row of the rule, nothing that isn't so in any state, and a history that is whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings

from devstack import Stack
from sync_worker.enrollment import backfill
from sync_worker.operations.explaining import explain_document
from sync_worker.settings import Settings
from tests.model.events import Batch, Event, HandEdit, MethodChanged
from tests.model.histories import COURSES, USERS, batched_histories
from tests.support.databases import copy_database, drop_database
from tests.support.engine import Engine
from tests.support.facts import member, method, new_id, source, suspension
from tests.support.sessions import change_method_in_steps

_FIXTURE = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
C, U, S, G = (new_id() for _ in range(4))


@pytest.fixture(scope="module")
def engine(stack: Stack, template: str) -> Iterator[Engine]:
    """One database for all; each test empties it first."""
    url = copy_database(stack, "explaining", template)
    running = Engine(url)
    yield running
    running.close()
    drop_database(stack, "explaining")


@pytest.fixture
def explained(stack: Stack, engine: Engine) -> Callable[..., dict[str, Any]]:
    """What explain says of U in C, after these batches."""
    configured = Settings.model_validate({"database_url": stack.postgres.url("explaining")})
    engine.reset()
    engine.lms.execute("truncate removal_hold, removal_count, hold_release")

    def explain(*batches: Sequence[Event], course: str = C, user: str = U) -> dict[str, Any]:
        for batch in batches:
            engine.apply(batch)
        return explain_document(configured, UUID(course), UUID(user))

    return explain


def m7(version: int = 1, **fields: Any) -> MethodChanged:
    base = {"method_id": METHOD, "version": version, "name": "m7", "segment_name": "s2", "group_id": G}
    return method(S, C, **{**base, **fields})


METHOD, ELSEWHERE = new_id(), new_id()
_JOINED, _LEFT = member(S, U, 3), member(S, U, 4, is_member=False)
_SINCE = "2026-01-01T00:00:00Z"
_MEMBER = f"member of s2 since {_SINCE} (version 3)"
_REMOVED = f"not a member of s2: removed {_SINCE} (version 4)"
_CLOSED = {"visible": False}
_ENABLED_ROW = {"kind": "SEGMENT_SYNC", "status": "ACTIVE", "role": "student", "group_id": G, "member": True}
_SUSPENDED_ROW = {**_ENABLED_ROW, "status": "SUSPENDED"}
_LEFTOVER = {"kind": "SEGMENT_SYNC", "status": "SUSPENDED", "role": "student", "group_id": None, "member": False}

# name → batches, what the method gives, its words, the status, the summary
_NOT_IN = "not in the course: nothing gives a place in it"
_NOTHING_ACTIVE = "in the course, but suspended: nothing that enrolls is active"
CASES: dict[str, tuple[list[list[Event]], dict[str, Any] | None, str, str, str]] = {
    "deleted": (
        [[m7()], [_JOINED], [m7(2, deleted=True)]],
        None, "m7 was deleted (version 2), which is final", "ABSENT", _NOT_IN,
    ),
    "member, enabled": (
        [[m7()], [_JOINED]], _ENABLED_ROW, f"{_MEMBER}, and m7 is enabled", "ACTIVE", "in the course through m7",
    ),
    "member, its eye closed, nothing before": (
        [[m7(**_CLOSED)], [_JOINED]], None, f"{_MEMBER}, but m7's eye is closed", "ABSENT", _NOT_IN,
    ),
    "member, not active, nothing before": (
        [[m7(active=False)], [_JOINED]], None, f"{_MEMBER}, but m7 is not active", "ABSENT", _NOT_IN,
    ),
    "member, neither, nothing before": (
        [[m7(active=False, visible=False)], [_JOINED]],
        None, f"{_MEMBER}, but m7 is not active, and its eye is closed", "ABSENT", _NOT_IN,
    ),
    "member, its eye closed, something before": (
        [[m7()], [_JOINED], [m7(2, **_CLOSED)]],
        _SUSPENDED_ROW, f"{_MEMBER}, but m7's eye is closed, so what there was stays, suspended", "SUSPENDED", _NOTHING_ACTIVE,
    ),
    "never a member": (
        [[m7()], [member(S, new_id(), 1)], [source(C, U, 1, "ABSENT", None)]],
        None, "not a member of s2: never heard of there", "ABSENT", _NOT_IN,
    ),
    "never a member, and not enabled": (
        [[m7(**_CLOSED)], [source(C, U, 1, "ABSENT", None)]],
        None, "not a member of s2: never heard of there; besides, m7's eye is closed", "ABSENT", _NOT_IN,
    ),
    "left, UNENROLL": ([[m7()], [_JOINED], [_LEFT]], None, _REMOVED, "ABSENT", _NOT_IN),
    "left, SUSPEND": (
        [[m7(on_removal="SUSPEND")], [_JOINED], [_LEFT]],
        _LEFTOVER, f"{_REMOVED}; on_removal is SUSPEND, so what there was stays, suspended, with its role",
        "SUSPENDED", _NOTHING_ACTIVE,
    ),
    "left, SUSPEND_WITHOUT_ROLES": (
        [[m7(on_removal="SUSPEND_WITHOUT_ROLES")], [_JOINED], [_LEFT]],
        {**_LEFTOVER, "role": None},
        f"{_REMOVED}; on_removal is SUSPEND_WITHOUT_ROLES, so what there was stays, suspended, without a role",
        "SUSPENDED", _NOTHING_ACTIVE,
    ),
    "a group alone": (
        [[m7(kind="SEGMENT_GROUP", role=None)], [_JOINED]],
        {**_ENABLED_ROW, "kind": "SEGMENT_GROUP", "role": None},
        f"{_MEMBER}, and m7 is enabled; it gives a group and enrolls nobody", "ABSENT",
        "not in the course: only a method that gives a group wants them, which enrolls nobody",
    ),
    "suspended in the course": (
        [[m7()], [_JOINED], [suspension(C, U, 5)]],
        _ENABLED_ROW, f"{_MEMBER}, and m7 is enabled", "SUSPENDED",
        "in the course, but suspended in it since version 5 of that fact",
    ),
    "suspended in the course before": (
        [[m7()], [suspension(C, U, 5)]],
        None, "not a member of s2: never heard of there", "ABSENT",
        "not in the course: nothing gives a place in it; should something enroll them, they come suspended",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_row_of_the_rule_is_told_in_words(explained: Callable[..., dict[str, Any]], case: str) -> None:
    batches, gives, why, status, summary = CASES[case]
    document = explained(*batches)
    (by_method,) = [each for each in document["sources"] if each["source"] == METHOD]
    assert by_method["why"] == why
    assert by_method["gives"] == by_method["should_give"] == gives
    assert (document["status"], document["summary"]) == (status, summary)
    assert not document["differs"]


def test_the_facts_stand_beside_the_words(explained: Callable[..., dict[str, Any]]) -> None:
    opened = m7(2)
    document = explained(
        [m7()], [opened], [_JOINED], [source(C, U, 9)], [suspension(C, U, 5)], [suspension(C, U, 6, suspended=False)]
    )
    by_method, manual = document["sources"]
    assert by_method["method"]["version"] == 2
    assert by_method["method"]["event_id"] == opened.event_id
    assert by_method["method"]["enabled"] is True
    assert by_method["membership"] == {
        "is_member": True, "version": 3, "occurred_at": "2026-01-01T00:00:00+00:00", "event_id": _JOINED.event_id,
        "held": False, "held_since": None,
    }  # fmt: skip
    assert manual["source"] == "manual"
    assert manual["why"] == f"manual said ACTIVE {_SINCE} (version 9)"
    assert manual["said"]["status"] == "ACTIVE"
    assert document["summary"] == "in the course through m7, manual"
    assert (document["roles"], document["suspended_in_course"], document["suspension_version"]) == (
        ["student", "teacher"],
        False,
        6,
    )
    assert document["cause"]["type"] == "CourseSuspensionChanged"
    assert document["version"] == 4


def test_groups_are_told_with_who_manages_them(explained: Callable[..., dict[str, Any]], engine: Engine) -> None:
    own, second = new_id(), m7(method_id=new_id(), name="m8")
    explained([m7()], [second], [_JOINED])
    assert engine.edit(HandEdit("insert", C, own, U)) == "ok"
    members = {each["group_id"]: each for each in explained()["group_members"]}
    assert members[own] == {"group_id": own, "hand_made": True, "managed_by": []}
    assert members[G]["hand_made"] is False
    assert {each["name"] for each in members[G]["managed_by"]} == {"m7", "m8"}


def test_who_was_never_heard_of_is_told_so(explained: Callable[..., dict[str, Any]]) -> None:
    course, user = new_id(), new_id()
    document = explained([m7()], [_JOINED], course=course)
    assert document["known"] == {"course": False, "user": True}
    assert document["summary"].startswith(f"never heard of course {course}:")
    document = explained(user=user)
    assert document["known"] == {"course": True, "user": False}
    assert document["summary"].startswith(f"never heard of user {user}:")
    assert document["sources"][0]["why"] == "not a member of s2: never heard of there"
    assert (document["status"], document["version"]) == ("ABSENT", None)


def test_a_backfill_that_has_not_come_to_the_person_is_told(
    explained: Callable[..., dict[str, Any]], engine: Engine
) -> None:
    explained([m7()], [_JOINED])
    change_method_in_steps(engine.session, m7(2, role="tutor"))
    document = explained()
    (by_method,) = document["sources"]
    assert document["differs"]
    assert by_method["differs"]["by"] == "backfill"
    assert by_method["differs"]["why"] == (
        f"m7: the row has ACTIVE, student, group {G}, the facts say ACTIVE, tutor, group {G}; a backfill of version 2 is under way "
        "(0 of an unknown number done) and has not come to this person yet"
    )
    while backfill.step(engine.session) is not None:
        pass
    assert not explained()["differs"]


def test_a_held_removal_is_told_until_it_is_released(explained: Callable[..., dict[str, Any]], engine: Engine) -> None:
    explained([m7()], [_JOINED])
    engine.lms.execute("insert into removal_hold (segment_id, members, removed) values (%s, 10, 5)", (S,))
    (by_method,) = explained([_LEFT])["sources"]
    assert by_method["gives"] == _ENABLED_ROW
    assert by_method["why"].startswith(f"removed from s2 {_SINCE} (version 4), which is held since ")
    assert by_method["why"].endswith(": counts as a member still, and m7 is enabled")
    assert by_method["differs"] == {
        "by": "hold",
        "why": "m7: what a removed member had stays, as the removal is held; it ends with the hold: "
        f"`sync-worker holds release {S}`",
    }
    assert by_method["membership"]["held"] is True

    engine.lms.execute("with ended as (delete from removal_hold returning number, segment_id) "
                       "insert into hold_release (number, segment_id, total) select number, segment_id, 1 from ended")  # fmt: skip
    (by_method,) = explained()["sources"]
    assert by_method["differs"]["why"].endswith(
        "its hold was released, and what was held is being applied (0 of 1 done)"
    )


def test_a_held_removal_of_somebody_who_had_nothing_is_no_difference(
    explained: Callable[..., dict[str, Any]], engine: Engine
) -> None:
    explained([m7(**_CLOSED)], [_JOINED])
    engine.lms.execute("insert into removal_hold (segment_id, members, removed) values (%s, 10, 5)", (S,))
    (by_method,) = explained([_LEFT])["sources"]
    assert by_method["gives"] is by_method["differs"] is None
    assert by_method["why"].endswith(", with nothing to keep; besides, m7's eye is closed")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (f"""sources - '{METHOD}'""", f"m7: the row has nothing, the facts say ACTIVE, student, group {G}"),
        (
            f"""jsonb_set(sources, '{{{METHOD},role}}', '"tutor"')""",
            f"the row has ACTIVE, tutor, group {G}, the facts say",
        ),
        ("""sources - 'manual'""", "manual: the row has nothing, the facts say ACTIVE, teacher"),
        (
            """sources || '{"self": {"kind": "OTHER", "status": "ACTIVE", "member": true}}'""",
            "self: the row has ACTIVE, the facts say nothing",
        ),
        (
            f"""sources || '{{"{ELSEWHERE}": {{"kind": "SEGMENT_SYNC", "status": "ACTIVE", "member": true}}}}'""",
            f"{ELSEWHERE}: the row has ACTIVE, and no fact is known behind it",
        ),
    ],
    ids=["contribution gone", "wrong role", "source gone", "a source too many", "another course's method"],
)
def test_a_row_that_is_not_what_the_facts_say_is_told_with_the_cure(
    explained: Callable[..., dict[str, Any]], engine: Engine, damage: str, words: str
) -> None:
    explained([m7()], [_JOINED], [source(C, U, 1)], [method(S, new_id(), method_id=ELSEWHERE, active=False)])
    engine.lms.execute(f"update enrollment set sources = {damage}")
    document = explained()
    (differs,) = [each["differs"] for each in document["sources"] if each["differs"]]
    assert document["differs"]
    assert differs["by"] == "reconcile"
    assert words in differs["why"]
    assert differs["why"].endswith(f"nothing is on the way: `sync-worker reconcile --course {C}` repairs it")


def test_a_contribution_of_a_method_that_nobody_knows_is_told_to_wait_for_facts(
    explained: Callable[..., dict[str, Any]], engine: Engine
) -> None:
    explained([m7()], [_JOINED])
    engine.lms.execute("delete from method")
    (orphan,) = explained()["sources"]
    assert orphan["why"] == f"nothing is known of a method {METHOD}"
    assert orphan["differs"]["by"] == "unknown_method"
    assert "let the topic of methods be read again" in orphan["differs"]["why"]


@settings(max_examples=40, suppress_health_check=_FIXTURE)
@given(history=batched_histories())
def test_whatever_happened_what_is_explained_is_what_is_and_nothing_differs(
    stack: Stack, engine: Engine, history: list[Batch]
) -> None:
    configured = Settings.model_validate({"database_url": stack.postgres.url("explaining")})
    engine.reset()
    for batch in history:
        if isinstance(batch, HandEdit):
            engine.edit(batch)
        else:
            engine.apply(batch)
    rows = engine.enrollments()
    for course in COURSES:
        for user in USERS:
            document = explain_document(configured, UUID(course), UUID(user))
            row = rows.get((course, user))
            assert document["status"] == ("ABSENT" if row is None else row["status"])
            assert not document["differs"]
            if row is not None:
                given_ = {each["source"]: each["gives"] for each in document["sources"] if each["gives"] is not None}
                assert given_ == row["sources"]
                assert (document["roles"], document["groups"]) == (row["roles"], row["groups"])
                assert document["version"] == row["version"]
                assert [each["group_id"] for each in document["group_members"]] == row["groups"]
            assert all(each["why"] for each in document["sources"])


def test_explaining_writes_nothing_and_waits_for_nobody(
    explained: Callable[..., dict[str, Any]], engine: Engine
) -> None:
    explained([m7()], [_JOINED])
    with engine.session.transaction():
        engine.session.execute("select pg_advisory_xact_lock(7001)")
        engine.session.execute("select from membership for update")
        engine.session.execute("select from enrollment for update")
        assert explained()["status"] == "ACTIVE"
    later = replace(_JOINED, event_id=new_id(), version=9)
    assert explained([later])["sources"][0]["membership"]["version"] == 9
