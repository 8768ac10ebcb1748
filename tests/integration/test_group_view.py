"""Hand-made group membership through the view, as an LMS edits it in its own transactions (contract §3, design §3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from tests.model.events import HandEdit, MethodChanged
from tests.model.model import Model
from tests.support.check import assert_rows_equal_model
from tests.support.facts import member, method, new_id, suspension
from tests.support.sessions import WAIT_S, Writer, chain_in_outbox, wait_until_blocked
from tests.support.site import Site

INSERT = "insert into sync_worker.course_group_member (course_id, group_id, user_id) values (%s, %s, %s)"
DELETE = "delete from sync_worker.course_group_member where course_id = %s and group_id = %s and user_id = %s"


@dataclass
class Class:
    """A course with one method and one member of its segment, and the model of both."""

    site: Site
    writer: Writer
    method: MethodChanged
    user: str
    model: Model

    @property
    def course(self) -> str:
        return self.method.course_id

    def edit(self, action: Any, group: str, user: str = "") -> None:
        """Insert or delete, in the database and in the model; raises what the database says."""
        edit = HandEdit(action, self.course, group, user or self.user)
        expected = self.model.edit(edit)
        with self.site.connect() as lms:
            try:
                lms.execute(INSERT if action == "insert" else DELETE, (self.course, group, user or self.user))
            except psycopg.Error as error:
                assert error.sqlstate == expected
                raise
        assert expected == "ok"

    def apply(self, *events: Any) -> None:
        self.writer.batch(*events)
        self.model.apply_batch(events)

    def assert_as_the_model_says(self) -> None:
        assert_rows_equal_model(self.site, self.model)
        assert sum(map(len, chain_in_outbox(self.site).values())) == len(self.model.changes)


@pytest.fixture
def course(make_site: Callable[..., Site]) -> Iterator[Class]:
    site = make_site(topics=False)
    with Writer(site.database_url) as writer:
        enabled = method(
            new_id(), new_id(), name="Sales people", segment_name="Sales", group_id=new_id(), on_removal="UNENROLL"
        )
        taught = Class(site, writer, enabled, new_id(), Model())
        taught.apply(enabled)
        taught.apply(member(enabled.segment_id, taught.user, 1))
        yield taught


# ── what may be done by hand ────────────────────────────────────────────────────────────────────────────────────────


def test_somebody_put_into_a_group_and_taken_out_by_hand_makes_a_change_each_caused_by_sql(course: Class) -> None:
    group = new_id()
    course.edit("insert", group)
    course.assert_as_the_model_says()
    course.edit("insert", group)
    course.edit("delete", group)
    course.edit("delete", group)
    course.assert_as_the_model_says()
    (chain,) = chain_in_outbox(course.site).values()
    assert [(each["cause_type"], each["cause_event_id"], each["cause_method_id"]) for each in chain[1:]] == [
        ("SQL", None, None)
    ] * 2


def test_who_is_not_enrolled_cannot_be_put_into_a_group(course: Class) -> None:
    with pytest.raises(psycopg.Error, match="is not enrolled in course") as refused:
        course.edit("insert", new_id(), new_id())
    assert refused.value.sqlstate == "SW001"
    course.apply(member(course.method.segment_id, course.user, 2, is_member=False))
    with pytest.raises(psycopg.Error) as absent:
        course.edit("insert", new_id())
    assert absent.value.sqlstate == "SW001"
    course.assert_as_the_model_says()


def test_taking_out_a_managed_member_is_refused_with_the_methods_and_segments_to_leave(course: Class) -> None:
    group = course.method.group_id
    assert group is not None
    other = method(new_id(), course.course, name="Partners", segment_name=None, group_id=group)
    course.apply(other)
    course.apply(member(other.segment_id, course.user, 1))
    with pytest.raises(psycopg.Error) as refused:
        course.edit("delete", group)
    assert refused.value.sqlstate == "SW002"
    message = str(refused.value.diag.message_primary)
    assert f"user {course.user} is a managed member of group {group}" in message
    leave = f"method {course.method.method_id} (Sales people): leave segment {course.method.segment_id} (Sales) to leave this group"
    assert leave in message
    assert f"method {other.method_id} (Partners): leave segment {other.segment_id} to leave this group" in message
    course.assert_as_the_model_says()


def test_putting_in_a_managed_member_does_nothing_and_is_not_remembered(course: Class) -> None:
    group = course.method.group_id
    assert group is not None
    stays = method(new_id(), course.course, role="tutor")
    course.apply(stays)
    course.apply(member(stays.segment_id, course.user, 1))
    course.edit("insert", group)
    course.assert_as_the_model_says()
    course.apply(member(course.method.segment_id, course.user, 2, is_member=False))
    course.assert_as_the_model_says()
    assert course.site.group_members() == set()


def test_who_was_in_by_hand_before_a_method_came_stays_when_the_method_goes(course: Class) -> None:
    group = new_id()
    course.edit("insert", group)
    other = method(course.method.segment_id, course.course, group_id=group)
    course.apply(other)
    with pytest.raises(psycopg.Error, match="managed"):
        course.edit("delete", group)
    course.apply(
        method(other.segment_id, other.course_id, method_id=other.method_id, version=2, deleted=True, group_id=group)
    )
    course.assert_as_the_model_says()
    assert (course.course, group, course.user, False, ()) in course.site.group_members()


def test_hand_made_membership_ends_with_the_enrollment_and_does_not_come_back(course: Class) -> None:
    course.edit("insert", new_id())
    course.apply(member(course.method.segment_id, course.user, 2, is_member=False))
    course.apply(member(course.method.segment_id, course.user, 3))
    course.assert_as_the_model_says()
    assert {managed for _, _, _, managed, _ in course.site.group_members()} == {True}


def test_somebody_suspended_is_enrolled_and_can_be_put_into_a_group(course: Class) -> None:
    course.apply(suspension(course.course, course.user, 1))
    course.edit("insert", new_id())
    course.assert_as_the_model_says()


def test_the_view_refuses_updates_and_missing_values(course: Class) -> None:
    update = "update sync_worker.course_group_member set group_id = gen_random_uuid()"
    with course.site.connect() as lms:
        with pytest.raises(
            psycopg.errors.FeatureNotSupported, match="DELETE the old membership and INSERT the new one"
        ):
            lms.execute(update)
        for missing in range(3):
            values = [course.course, new_id(), course.user]
            values[missing] = None  # type: ignore[call-overload]  # that is the test
            with pytest.raises(psycopg.errors.NotNullViolation, match="are needed"):
                lms.execute(INSERT, values)
        assert lms.execute(DELETE, (course.course, new_id(), course.user)).rowcount == 0
    course.assert_as_the_model_says()


# ── beside the worker ───────────────────────────────────────────────────────────────────────────────────────────────


def test_an_edit_that_waits_for_the_end_of_an_enrollment_finds_that_nobody_is_enrolled(course: Class) -> None:
    leaves = member(course.method.segment_id, course.user, 2, is_member=False)
    course.writer.begin(leaves)
    with Writer(course.site.database_url) as lms:
        edit = lms.start(lambda session: session.execute(INSERT, (course.course, new_id(), course.user)))
        wait_until_blocked(course.site, lms)
        course.writer.commit()
        with pytest.raises(psycopg.Error) as refused:
            edit.result(WAIT_S)
    assert refused.value.sqlstate == "SW001"
    course.model.apply_batch([leaves])
    course.assert_as_the_model_says()


def test_a_batch_that_waits_for_an_edit_keeps_it(course: Class) -> None:
    other, group = method(course.method.segment_id, course.course, role="tutor"), new_id()
    with Writer(course.site.database_url) as lms:
        lms.start(lambda session: session.execute("begin")).result(WAIT_S)
        lms.start(lambda session: session.execute(INSERT, (course.course, group, course.user))).result(WAIT_S)
        # The limit that an edit sets is not this test's.
        lms.session.execute("set local idle_in_transaction_session_timeout = '120s'")
        batch = course.writer.start_batch(other)
        wait_until_blocked(course.site, course.writer)
        lms.commit()
        batch.result(WAIT_S)
    course.model.hand_insert(course.course, group, course.user)
    course.model.apply_batch([other])
    course.assert_as_the_model_says()


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_users_of_a_stricter_isolation_edit_what_is_or_get_a_serialization_failure(course: Class, level: str) -> None:
    group = new_id()
    with course.site.connect() as lms:
        lms.execute(f"begin isolation level {level}")
        lms.execute("select from sync_worker.course_enrollment")
        course.apply(suspension(course.course, course.user, 1))
        with pytest.raises(psycopg.errors.SerializationFailure):
            lms.execute(INSERT, (course.course, group, course.user))
        lms.execute("rollback")
        course.assert_as_the_model_says()
        lms.execute(f"begin isolation level {level}")
        lms.execute(INSERT, (course.course, group, course.user))
        lms.execute("commit")
    course.model.hand_insert(course.course, group, course.user)
    course.assert_as_the_model_says()


def test_an_edit_rolled_back_leaves_nothing(course: Class) -> None:
    with course.site.connect() as lms:
        lms.execute("begin")
        lms.execute(INSERT, (course.course, new_id(), course.user))
        lms.execute("rollback")
    course.assert_as_the_model_says()


@pytest.mark.parametrize(("own_limit", "during"), [("0", "10s"), ("1min", "10s"), ("10s", "10s"), ("9s", "9s")])
def test_an_edit_lowers_the_limit_of_an_idle_transaction_for_that_transaction_and_never_raises_it(
    course: Class, own_limit: str, during: str
) -> None:
    with course.site.connect() as lms:

        def shown() -> Any:
            return lms.execute("show idle_in_transaction_session_timeout").fetchone()

        lms.execute(f"set idle_in_transaction_session_timeout = '{own_limit}'")
        lms.execute("begin")
        lms.execute(INSERT, (course.course, new_id(), course.user))
        assert shown() == {"idle_in_transaction_session_timeout": during}
        lms.execute("commit")
        assert shown() == {"idle_in_transaction_session_timeout": own_limit}


def test_an_edit_left_open_is_ended_by_its_limit_and_the_batch_behind_it_goes_on(course: Class) -> None:
    other = method(course.method.segment_id, course.course, role="tutor")
    with course.site.connect() as lms:
        lms.execute("begin")
        lms.execute(INSERT, (course.course, new_id(), course.user))
        course.apply(other)
        with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout):
            lms.execute("commit")
    course.assert_as_the_model_says()
