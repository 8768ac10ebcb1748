"""Each checker reports what it is for: a history in which nothing is wrong, falsified in one place."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import pytest

from tests.faults.checkers import CHECKERS, judge
from tests.faults.doctored import COURSE, GROUPS, METHOD, SEGMENT, USERS, chain_of, sound_history
from tests.faults.editing import Edited
from tests.faults.history import History, Leftovers
from tests.faults.watching import Sample
from tests.model.events import HandEdit

Doctor = Callable[[History], None]


def test_a_history_in_which_nothing_is_wrong_is_found_sound() -> None:
    assert judge(sound_history()) == []


def an_acknowledged_record_that_kafka_lost(history: History) -> None:
    history.acknowledged[next(iter(history.acknowledged))] = 2


def a_record_of_an_aborted_transaction(history: History) -> None:
    value = history.inputs[0].record.value
    assert value is not None
    history.aborted.add(value)


def a_site_that_never_settles(history: History) -> None:
    history.unsettled = "not settled"


def a_fact_of_an_older_version(history: History) -> None:
    history.tables.memberships[SEGMENT, USERS[1]] = (False, 2)


def a_fact_that_nobody_published(history: History) -> None:
    history.tables.sources[COURSE, USERS[3], "self"] = ("ACTIVE", None, 1)


def a_method_with_another_role(history: History) -> None:
    history.tables.methods[METHOD]["role"] = "teacher"


def a_suspension_that_nobody_published(history: History) -> None:
    history.tables.rows[COURSE, USERS[3]] |= {"suspended": True, "suspension_version": 4}


def a_member_without_contribution(history: History) -> None:
    del history.tables.rows[COURSE, USERS[3]]["sources"][METHOD]


def a_contribution_with_another_role(history: History) -> None:
    history.tables.rows[COURSE, USERS[3]]["sources"][METHOD]["role"] = "teacher"


def a_leftover_of_nothing(history: History) -> None:
    methods = [n for n, each in enumerate(history.inputs) if each.record.topic == "methods"]
    content = history.inputs[methods[0]].content
    switched = replace(content, active=False)  # type: ignore[type-var]  # a method
    history.inputs[methods[0]] = replace(history.inputs[methods[0]], content=switched)
    history.tables.methods[METHOD]["active"] = False
    left = {"kind": "SEGMENT_SYNC", "status": "SUSPENDED", "role": "student", "group_id": GROUPS[0], "member": True}
    for user in USERS:
        history.tables.rows[COURSE, user]["sources"][METHOD] = left
    history.inputs = [each for each in history.inputs if getattr(each.content, "user_id", "") != USERS[3]]


def a_view_that_shows_another_status(history: History) -> None:
    history.tables.enrollments[COURSE, USERS[3]]["status"] = "SUSPENDED"


def a_view_that_lacks_a_member(history: History) -> None:
    history.tables.members.pop()


def a_lost_event(history: History) -> None:
    del history.changes[chain_of(history, USERS[1])[1]]


def a_lost_last_event(history: History) -> None:
    del history.changes[chain_of(history, USERS[1])[-1]]


def a_row_without_any_event(history: History) -> None:
    for n in reversed(chain_of(history, USERS[3])):
        del history.changes[n]


def a_repeated_event(history: History) -> None:
    again = history.changes[chain_of(history, USERS[1])[0]]
    history.changes.append(replace(again, record=again.record._replace(offset=99)))


def events_out_of_order(history: History) -> None:
    first, second, *_ = chain_of(history, USERS[1])
    history.changes[first], history.changes[second] = history.changes[second], history.changes[first]


def an_event_in_another_partition(history: History) -> None:
    n = chain_of(history, USERS[1])[-1]
    history.changes[n] = replace(history.changes[n], record=history.changes[n].record._replace(partition=1))


def a_before_that_was_not_the_after(history: History) -> None:
    history.changes[chain_of(history, USERS[1])[1]].event["before"]["roles"] = ["teacher"]


def a_last_event_that_is_not_the_row(history: History) -> None:
    history.changes[chain_of(history, USERS[3])[-1]].event["after"]["roles"] = ["teacher"]


def an_event_id_of_chance(history: History) -> None:
    history.changes[0].event["event_id"] = "00000000-0000-0000-0000-000000000000"


def a_change_of_the_wrong_kind(history: History) -> None:
    history.changes[chain_of(history, USERS[1])[0]].event["change"] = "UPDATED"


def an_event_caused_by_nothing(history: History) -> None:
    history.changes[0].event["cause"]["event_id"] = "00000000-0000-0000-0000-000000000000"


def an_event_caused_by_somebody_else(history: History) -> None:
    ours, theirs = chain_of(history, USERS[1])[0], chain_of(history, USERS[3])[0]
    history.changes[ours].event["cause"] = history.changes[theirs].event["cause"]


def a_follower_that_missed_one(history: History) -> None:
    del history.followed[0]


def a_follower_that_saw_one_twice(history: History) -> None:
    history.followed.append(history.followed[0])


def an_uncommitted_event_that_never_came(history: History) -> None:
    first = history.followed_uncommitted[0]
    event = deepcopy(first.event) | {"version": 7, "event_id": "00000000-0000-0000-0000-000000000000"}
    history.followed_uncommitted.append(replace(first, event=event))


def an_event_published_again_with_other_content(history: History) -> None:
    first = history.followed_uncommitted[0]
    history.followed_uncommitted.append(replace(first, record=first.record._replace(value=b"other")))


def an_edit_without_its_event(history: History) -> None:
    history.edits.append(Edited(HandEdit("insert", COURSE, GROUPS[1], USERS[3]), 9, "committed"))


def an_edit_that_nobody_made(history: History) -> None:
    history.edits.clear()


def a_hand_made_group_that_was_lost(history: History) -> None:
    history.tables.rows[COURSE, USERS[2]]["hand"] = []


def a_dead_letter_that_was_lost(history: History) -> None:
    history.dead_letters.clear()


def a_dead_letter_twice(history: History) -> None:
    history.dead_letters.append(history.dead_letters[0]._replace(offset=1))


def a_dead_letter_with_another_byte(history: History) -> None:
    history.dead_letters[0] = history.dead_letters[0]._replace(value=b"\x99!")


def a_dead_letter_with_another_key(history: History) -> None:
    history.dead_letters[0] = history.dead_letters[0]._replace(key=None)


def a_dead_letter_that_lost_a_header(history: History) -> None:
    history.dead_letters[0] = history.dead_letters[0]._replace(headers=history.dead_letters[0].headers[1:])


def a_dead_letter_of_a_sound_record(history: History) -> None:
    letter = history.dead_letters[0]
    headers = tuple((name, b"0" if name == "dlq_offset" else value) for name, value in letter.headers)
    history.dead_letters.append(letter._replace(headers=headers))


def a_position_that_went_back(history: History) -> None:
    sample = history.seen.samples[-1]
    history.seen.samples.append(replace(sample, positions=dict.fromkeys(sample.positions, 50)))


def a_window_number_that_went_back(history: History) -> None:
    history.seen.samples.append(replace(history.seen.samples[-1], relay_window=1))


def a_position_short_of_the_end(history: History) -> None:
    history.tables.positions = dict.fromkeys(history.tables.positions, 0)


def an_outbox_row_that_was_never_published(history: History) -> None:
    history.tables.outbox.append((COURSE, USERS[0], 77))


def an_outbox_without_bounds(history: History) -> None:
    history.seen.samples.append(Sample(3.0, {}, 10_000_000, 9_000_000, 2, 0, 4))


def a_worker_that_ended_by_itself(history: History) -> None:
    history.ends[0] = replace(history.ends[0], told="", code=1)


def a_worker_that_did_not_end_in_order(history: History) -> None:
    history.ends[0] = replace(history.ends[0], code=1)


def a_worker_that_took_too_long_to_end(history: History) -> None:
    history.ends[0] = replace(history.ends[0], seconds=70.0)


def a_defect_in_a_log(history: History) -> None:
    history.ends[1] = replace(history.ends[1], log="Traceback (most recent call last):\n  …")


def a_thread_too_many(history: History) -> None:
    history.seen.threads_max["worker-0"] = 5000


def a_session_left_open(history: History) -> None:
    history.leftovers = Leftovers(["sync-worker apply (idle)"])


def a_lock_left_behind(history: History) -> None:
    history.leftovers = Leftovers(advisory_locks=1)


CASES: dict[Doctor, tuple[str, str]] = {
    an_acknowledged_record_that_kafka_lost: ("inputs", "harness"),
    a_record_of_an_aborted_transaction: ("inputs", "harness"),
    a_site_that_never_settles: ("settled", "unsettled"),
    a_fact_of_an_older_version: ("facts", "wrong"),
    a_fact_that_nobody_published: ("facts", "wrong"),
    a_method_with_another_role: ("facts", "wrong"),
    a_suspension_that_nobody_published: ("facts", "wrong"),
    a_member_without_contribution: ("rows", "lost"),
    a_contribution_with_another_role: ("rows", "wrong"),
    a_leftover_of_nothing: ("rows", "wrong"),
    a_view_that_shows_another_status: ("rows", "wrong"),
    a_view_that_lacks_a_member: ("rows", "wrong"),
    a_lost_event: ("chains", "lost"),
    a_lost_last_event: ("chains", "lost"),
    a_row_without_any_event: ("chains", "lost"),
    a_repeated_event: ("chains", "repeated"),
    events_out_of_order: ("chains", "reordered"),
    an_event_in_another_partition: ("chains", "reordered"),
    a_before_that_was_not_the_after: ("chains", "wrong"),
    a_last_event_that_is_not_the_row: ("chains", "wrong"),
    an_event_id_of_chance: ("chains", "wrong"),
    a_change_of_the_wrong_kind: ("chains", "wrong"),
    an_event_caused_by_nothing: ("causes", "wrong"),
    an_event_caused_by_somebody_else: ("causes", "wrong"),
    a_follower_that_missed_one: ("followers", "lost"),
    a_follower_that_saw_one_twice: ("followers", "repeated"),
    an_uncommitted_event_that_never_came: ("followers", "repeated"),
    an_event_published_again_with_other_content: ("followers", "wrong"),
    an_edit_without_its_event: ("hand_made", "lost"),
    an_edit_that_nobody_made: ("hand_made", "repeated"),
    a_hand_made_group_that_was_lost: ("hand_made", "wrong"),
    a_dead_letter_that_was_lost: ("dead_letters", "lost"),
    a_dead_letter_twice: ("dead_letters", "repeated"),
    a_dead_letter_with_another_byte: ("dead_letters", "dead_letter"),
    a_dead_letter_with_another_key: ("dead_letters", "dead_letter"),
    a_dead_letter_that_lost_a_header: ("dead_letters", "dead_letter"),
    a_dead_letter_of_a_sound_record: ("dead_letters", "dead_letter"),
    a_position_that_went_back: ("positions", "position"),
    a_window_number_that_went_back: ("positions", "position"),
    a_position_short_of_the_end: ("positions", "lost"),
    an_outbox_row_that_was_never_published: ("outbox", "lost"),
    an_outbox_without_bounds: ("outbox", "outbox"),
    a_worker_that_ended_by_itself: ("workers", "worker"),
    a_worker_that_did_not_end_in_order: ("workers", "worker"),
    a_worker_that_took_too_long_to_end: ("workers", "worker"),
    a_defect_in_a_log: ("workers", "worker"),
    a_thread_too_many: ("workers", "leak"),
    a_session_left_open: ("leftovers", "leak"),
    a_lock_left_behind: ("leftovers", "leak"),
}


@pytest.mark.parametrize("doctor", CASES, ids=lambda doctor: doctor.__name__)
def test_what_is_wrong_is_reported_by_the_checker_for_it(doctor: Doctor) -> None:
    history = sound_history()
    doctor(history)
    assert CASES[doctor] in {(violation.checker, violation.kind) for violation in judge(history)}


def test_every_checker_reports_something() -> None:
    assert {checker for checker, _ in CASES.values()} == set(CHECKERS)
