"""The removal breaker (semantics §5): how removals are counted, what a hold keeps, and how it ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from uuid import UUID

import pytest

from sync_worker.database.sessions import Session
from sync_worker.enrollment import apply, release
from sync_worker.enrollment.breaker import Breaker, Guard, Limits
from sync_worker.loops import checkpoint
from tests.model.events import Event, MembershipChanged, MethodChanged
from tests.support.facts import ANYWHERE, AT, facts_of, member, method, new_id, records_of
from tests.support.sessions import WAIT_S, Writer, chain_in_outbox, wait_until_blocked
from tests.support.site import Site

LIMITS = Limits(3, 50)
MINUTE = 60_000_000


class Segment:
    """A segment with an enabled method, and a session that applies to it under a breaker."""

    def __init__(self, site: Site, members: int, limits: Limits = LIMITS) -> None:
        self.site = site
        self.id, self.course = new_id(), new_id()
        self.method = method(self.id, self.course, group_id=new_id())
        self.users = sorted(new_id() for _ in range(members))
        self.limits = limits
        self._position = 0
        site.query(
            "insert into position (topic, partition, next_offset) values (%s, %s, 0) on conflict do nothing returning 1",
            *ANYWHERE,
        )
        self.writer = Writer(site.database_url)
        self.breaker = Breaker(limits)
        self.apply(self.method)
        self.apply(*(member(self.id, user, 1) for user in self.users))

    def apply(self, *events: Event) -> checkpoint.Outcome:
        """A batch, as the applying loop commits it."""
        outcome = checkpoint.Outcome()
        self.writer.start(lambda session: self.commit(session, self.breaker, events, outcome)).result(WAIT_S)
        return outcome

    def commit(self, session: Session, breaker: Breaker, events: Sequence[Event], outcome: checkpoint.Outcome) -> None:
        row = session.execute("select next_offset from position where topic = %s", [ANYWHERE.topic]).fetchone()
        assert row is not None
        records = records_of(events, first_offset=row[0])
        checkpoint.commit(session, records, {ANYWHERE: row[0]}, outcome, breaker=breaker)

    def leaves(self, *users: str, version: int = 2, at: int = AT) -> list[MembershipChanged]:
        return [replace(member(self.id, user, version, is_member=False), occurred_at=at) for user in users]

    def enrolled(self) -> list[str]:
        rows = self.site.query(
            "select user_id::text from course_enrollment where course_id = %s order by user_id", self.course
        )
        return [row["user_id"] for row in rows]

    def held(self) -> list[str]:
        rows = self.site.query(
            "select user_id::text from membership where segment_id = %s and hold is not null order by user_id", self.id
        )
        return [row["user_id"] for row in rows]

    def hold(self) -> tuple[int, int] | None:
        """(members, removed) of the hold there is."""
        rows = self.site.query("select members, removed from removal_hold where segment_id = %s", self.id)
        return (rows[0]["members"], rows[0]["removed"]) if rows else None

    def contribution(self, user: str) -> dict[str, object] | None:
        rows = self.site.query(
            "select sources->%s as c from course_enrollment where course_id = %s and user_id = %s",
            self.method.method_id,
            self.course,
            user,
        )
        return rows[0]["c"] if rows else None

    def release(self, people_per_step: int = 1000) -> int:
        """End the hold and take every step; how many steps."""
        assert release.end_hold(self.writer.session, UUID(self.id).bytes, "test") is not None
        steps = 0
        while release.step(self.writer.session, people_per_step) is not None:
            steps += 1
        return steps

    def events(self) -> list[str]:
        return [row["cause"] for row in self.site.query("select cause_type::text as cause from outbox order by id")]


@pytest.fixture
def ten(site: Site) -> Iterator[Segment]:
    segment = Segment(site, 10)
    yield segment
    chain_in_outbox(site)
    segment.writer.close()


def test_removals_up_to_the_limit_are_applied_and_the_transaction_that_crosses_it_is_held(ten: Segment) -> None:
    for user in ten.users[:5]:
        ten.apply(*ten.leaves(user))
    assert ten.hold() is None
    assert ten.enrolled() == ten.users[5:]
    outcome = ten.apply(*ten.leaves(ten.users[5]))
    assert ten.hold() == (10, 5)
    assert ten.held() == [ten.users[5]]
    assert outcome.results["membership", "held"] == 1
    ten.apply(*ten.leaves(*ten.users[6:]))
    assert ten.enrolled() == ten.users[5:]
    assert ten.held() == ten.users[5:]


def test_one_transaction_that_empties_a_segment_removes_nobody(ten: Segment) -> None:
    outcome = ten.apply(*ten.leaves(*ten.users))
    assert ten.enrolled() == ten.held() == ten.users
    assert ten.hold() == (10, 0)
    assert outcome.changes == 0
    assert outcome.transactions == 1


def test_other_segments_of_the_transaction_that_crosses_go_on(site: Site) -> None:
    one, other = Segment(site, 10), Segment(site, 10)
    one.apply(*one.leaves(*one.users), *other.leaves(*other.users[:4]))
    assert one.enrolled() == one.users
    assert other.enrolled() == other.users[4:]
    assert other.hold() is None
    other.apply(*other.leaves(other.users[4], other.users[5]))
    assert other.hold() == (10, 4)
    for segment in (one, other):
        segment.writer.close()


@pytest.mark.parametrize(
    ("members", "limits"),
    [(3, Limits(3, 50)), (10, Limits(3, 100)), (10, Limits(0, 50)), (10, Limits(3, 0)), (10, Limits(10, 1))],
    ids=[
        "as many as the minimum",
        "of all of them",
        "no minimum: never",
        "no percentage: never",
        "minimum not exceeded",
    ],
)
def test_not_more_than_both_limits_is_not_held(site: Site, members: int, limits: Limits) -> None:
    segment = Segment(site, members, limits)
    segment.apply(*segment.leaves(*segment.users))
    assert segment.enrolled() == []
    assert segment.hold() is None
    segment.writer.close()


def test_removals_that_occurred_further_apart_are_not_counted_together_whenever_they_arrive(ten: Segment) -> None:
    """A worker that catches up after an hour's outage finds an hour's removals in one batch."""
    events = [ten.leaves(user, at=AT + n * 7 * MINUTE)[0] for n, user in enumerate(ten.users)]
    ten.apply(*events)
    assert ten.enrolled() == []
    assert ten.hold() is None


def test_removals_of_five_minutes_are_counted_together_across_the_full_minute(ten: Segment) -> None:
    start = AT - AT % MINUTE + MINUTE - 1
    ten.apply(*ten.leaves(*ten.users[:3], at=start))
    ten.apply(*ten.leaves(*ten.users[3:6], at=start + 5 * MINUTE))
    assert ten.hold() == (10, 3)


def test_removals_that_arrive_in_the_wrong_order_are_counted_by_when_they_occurred(ten: Segment) -> None:
    ten.apply(*ten.leaves(*ten.users[:3], at=AT + 4 * MINUTE))
    ten.apply(*ten.leaves(*ten.users[3:6], at=AT))
    assert ten.hold() == (10, 3)


def test_who_came_back_is_not_lost_however_often_it_happens(ten: Segment) -> None:
    for n in range(30):
        ten.apply(*ten.leaves(ten.users[0], version=2 * n + 2))
        ten.apply(member(ten.id, ten.users[0], 2 * n + 3))
    assert ten.hold() is None
    assert ten.enrolled() == ten.users
    assert ten.site.query("select removed from removal_count where removed <> 0") == []


def test_a_replay_counts_nothing(ten: Segment) -> None:
    leaving = ten.leaves(*ten.users[:5])
    for _ in range(4):
        ten.apply(*leaving)
    assert ten.hold() is None
    assert ten.site.query("select sum(removed) as n from removal_count") == [{"n": 5}]


def test_the_rule_sees_a_held_member_as_a_member_still(ten: Segment) -> None:
    ten.apply(*ten.leaves(*ten.users))
    user = ten.users[0]
    changed = replace(ten.method, event_id=new_id(), version=2, role="tutor")
    ten.apply(changed)
    assert ten.contribution(user) == _of(ten.method, "ACTIVE", "tutor")
    closed = replace(changed, event_id=new_id(), version=3, visible=False)
    ten.apply(closed)
    assert ten.contribution(user) == _of(ten.method, "SUSPENDED", "tutor")
    ten.apply(replace(closed, event_id=new_id(), version=4, visible=True))
    assert ten.contribution(user) == _of(ten.method, "ACTIVE", "tutor")


def test_no_contribution_comes_to_a_held_removal_and_a_deleted_method_ends_one(ten: Segment) -> None:
    ten.apply(*ten.leaves(*ten.users))
    later = method(ten.id, new_id())
    ten.apply(later)
    assert ten.site.query("select 1 from course_enrollment where course_id = %s", later.course_id) == []
    ten.apply(replace(ten.method, event_id=new_id(), version=2, deleted=True))
    assert ten.enrolled() == []


def test_additions_are_never_held_and_coming_back_clears_the_mark_without_an_event(ten: Segment) -> None:
    ten.apply(*ten.leaves(*ten.users))
    before = len(ten.events())
    newcomer = new_id()
    ten.apply(member(ten.id, ten.users[0], 3), member(ten.id, newcomer, 1))
    assert ten.held() == ten.users[1:]
    assert len(ten.events()) == before + 1
    assert newcomer in ten.enrolled()
    ten.apply(*ten.leaves(ten.users[0], version=4))
    assert ten.held() == ten.users


def test_who_was_no_member_when_removed_under_a_hold_is_not_marked(ten: Segment) -> None:
    """A leftover of an earlier removal must not become a membership by a hold."""
    ten.apply(replace(ten.method, event_id=new_id(), version=2, on_removal="SUSPEND"))
    left = ten.users[0]
    ten.apply(*ten.leaves(left))
    ten.apply(*ten.leaves(*ten.users[1:]))
    stranger = new_id()
    ten.apply(*ten.leaves(left, version=3), *ten.leaves(stranger))
    assert ten.held() == ten.users[1:]
    ten.apply(replace(ten.method, event_id=new_id(), version=3, on_removal="SUSPEND", role="tutor"))
    assert ten.contribution(left) == {
        "kind": "SEGMENT_SYNC", "status": "SUSPENDED", "role": "student", "group_id": None, "member": False,
    }  # fmt: skip


def test_a_release_applies_what_was_held_in_steps_and_says_why(ten: Segment) -> None:
    leaving = ten.leaves(*ten.users)
    ten.apply(*leaving)
    ten.apply(member(ten.id, ten.users[3], 3))
    assert ten.release(people_per_step=2) == 5
    assert ten.enrolled() == [ten.users[3]]
    assert ten.held() == []
    assert ten.site.query("select 1 from hold_release") == []
    causes = ten.site.query(
        "select cause_event_id::text as event, user_id::text from outbox where cause_type = 'HOLD_RELEASED'"
    )
    assert {row["user_id"]: row["event"] for row in causes} == {
        event.user_id: event.event_id for event in leaving if event.user_id != ten.users[3]
    }
    (record,) = ten.site.query("select by, operation, detail from intervention")
    assert record["operation"] == "holds release"
    assert record["detail"]["removals"] == 9


def test_a_release_empties_the_window_so_that_it_does_not_trip_it_again(ten: Segment) -> None:
    ten.apply(*ten.leaves(*ten.users[:5]))
    ten.apply(*ten.leaves(*ten.users[5:8]))
    assert ten.hold() is not None
    ten.release()
    assert ten.enrolled() == ten.users[8:]
    ten.apply(*ten.leaves(*ten.users[8:]))
    assert ten.hold() is None
    assert ten.enrolled() == []


def test_a_new_hold_during_a_release_keeps_its_own(ten: Segment) -> None:
    """The steps of the first release must not let go what the second hold keeps."""
    ten.apply(*ten.leaves(*ten.users))
    assert release.end_hold(ten.writer.session, UUID(ten.id).bytes, "test") is not None
    joining = sorted(new_id() for _ in range(8))
    ten.apply(*(member(ten.id, user, 1) for user in joining))
    ten.apply(*ten.leaves(*joining))
    assert ten.hold() is not None
    assert set(ten.held()) == {*ten.users, *joining}
    while release.step(ten.writer.session, 3) is not None:
        pass
    assert ten.held() == ten.enrolled() == joining


def test_a_removal_after_the_release_of_somebody_still_marked_is_applied_at_once(ten: Segment) -> None:
    ten.apply(*ten.leaves(*ten.users))
    assert release.end_hold(ten.writer.session, UUID(ten.id).bytes, "test") is not None
    ten.apply(*ten.leaves(ten.users[0], version=3))
    assert ten.users[0] not in ten.enrolled()
    assert ten.held() == ten.users[1:]
    while release.step(ten.writer.session) is not None:
        pass
    assert ten.enrolled() == []


def test_two_workers_cannot_cross_the_limit_side_by_side(ten: Segment) -> None:
    """Each removes what would be within the limit, in a minute of its own; the second waits for what the first counted."""
    _leave_in_an_open_transaction(ten, ten.users[:4])
    with Writer(ten.site.database_url) as other:
        running = other.start(lambda session: _remove(ten, session, ten.users[4:8]))
        wait_until_blocked(ten.site, other)
        ten.writer.commit()
        running.result(WAIT_S)
    assert ten.hold() == (10, 4)
    assert ten.enrolled() == ten.users[4:]
    assert ten.held() == ten.users[4:8]


def test_without_the_lock_two_workers_cross_the_limit(ten: Segment) -> None:
    _leave_in_an_open_transaction(ten, ten.users[:4])
    with Writer(ten.site.database_url, instead={"removals_lock": "select 1"}) as other:
        other.start(lambda session: _remove(ten, session, ten.users[4:8])).result(WAIT_S)
        ten.writer.commit()
    assert ten.hold() is None
    assert ten.enrolled() == ten.users[8:]


def test_two_workers_that_cross_at_once_set_one_hold(ten: Segment) -> None:
    _leave_in_an_open_transaction(ten, ten.users[:2])
    with Writer(ten.site.database_url) as one, Writer(ten.site.database_url) as other:
        first = one.start(lambda session: _remove(ten, session, ten.users[2:6]))
        second = other.start(lambda session: _remove(ten, session, ten.users[6:]))
        for writer in (one, other):
            wait_until_blocked(ten.site, writer)
        ten.writer.commit()
        first.result(WAIT_S)
        second.result(WAIT_S)
    # Whichever came first was within the limit; the other one crossed it.
    hold = ten.hold()
    assert hold is not None
    assert hold[1] <= 5
    assert len(ten.enrolled()) == 10 - hold[1]
    assert ten.site.query("select count(*) as n from removal_hold") == [{"n": 1}]


def test_a_hold_counts_who_leaves_while_it_is_being_set(ten: Segment) -> None:
    """Between finding the limit crossed and holding the segment, others may remove whom the limit still allows."""
    ten.apply(*ten.leaves(*ten.users[:2]))
    with Writer(ten.site.database_url) as setting, Writer(ten.site.database_url) as other:
        running = setting.start(lambda session: _remove(ten, session, ten.users[5:9]), stop_before="hold_put")
        setting.wait_until_stopped()
        other.start(lambda session: _remove(ten, session, ten.users[2:4])).result(WAIT_S)
        _leave_in_an_open_transaction(ten, ten.users[4:5])
        setting.go_on()
        wait_until_blocked(ten.site, setting)
        assert ten.hold() is None
        ten.writer.commit()
        running.result(WAIT_S)
    assert ten.hold() == (10, 5)
    assert ten.held() == ten.users[5:9]
    assert ten.enrolled() == ten.users[5:]


def test_a_hold_that_is_set_after_the_batch_looked_is_found_by_its_transaction(ten: Segment) -> None:
    with Writer(ten.site.database_url) as other:
        running = other.start(lambda session: _remove(ten, session, ten.users[:2]), stop_before="lock_shared")
        other.wait_until_stopped()
        ten.apply(*ten.leaves(*ten.users[2:]))
        assert ten.hold() is not None
        other.go_on()
        running.result(WAIT_S)
    assert ten.enrolled() == ten.held() == ten.users


def test_a_hold_that_ends_after_the_batch_looked_marks_nobody(ten: Segment) -> None:
    ten.apply(*ten.leaves(*ten.users[2:]))
    with Writer(ten.site.database_url) as other:
        running = other.start(lambda session: _remove(ten, session, ten.users[:2]), stop_before="lock_shared")
        other.wait_until_stopped()
        ten.release()
        other.go_on()
        running.result(WAIT_S)
    assert ten.held() == []
    assert ten.enrolled() == []


def test_a_release_waits_for_a_batch_that_is_marking(ten: Segment) -> None:
    """Otherwise its marks would come after the last step, and stay for ever."""
    ten.apply(*ten.leaves(*ten.users[2:]))
    with Writer(ten.site.database_url) as marking, Writer(ten.site.database_url) as releasing:
        running = marking.start(lambda session: _remove(ten, session, ten.users[:2]), stop_before="hold_mark")
        marking.wait_until_stopped()
        ending = releasing.start(lambda session: release.end_hold(session, UUID(ten.id).bytes, "test"))
        wait_until_blocked(ten.site, releasing)
        marking.go_on()
        running.result(WAIT_S)
        ended = ending.result(WAIT_S)
    assert ended is not None
    assert ended.total == 10
    while release.step(ten.writer.session) is not None:
        pass
    assert ten.held() == ten.enrolled() == []


def _leave_in_an_open_transaction(ten: Segment, users: Sequence[str]) -> None:
    """They leave through our session, which has counted them and not committed."""
    guard = Guard(ten.limits, counted={UUID(ten.id).bytes: 10})

    def work(session: Session) -> None:
        ten.writer.session.execute("begin")
        apply.apply_people(session, facts_of(ten.leaves(*users)), guard)

    ten.writer.start(work).result(WAIT_S)


def _remove(ten: Segment, session: Session, users: Sequence[str]) -> checkpoint.Outcome:
    """Another worker's batch, of a partition of its own, a minute later."""
    elsewhere = ANYWHERE._replace(number=1 + ten.users.index(users[0]))
    session.execute("insert into position (topic, partition, next_offset) values (%s, %s, 0)", elsewhere)
    outcome = checkpoint.Outcome()
    leaving = records_of(ten.leaves(*users, at=AT + MINUTE), elsewhere)
    checkpoint.commit(session, leaving, {elsewhere: 0}, outcome, breaker=Breaker(ten.limits))
    return outcome


def _of(of: MethodChanged, status: str, role: str) -> dict[str, object]:
    return {"kind": of.kind, "status": status, "role": role, "group_id": of.group_id, "member": True}
