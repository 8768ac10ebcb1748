"""A batch that is mostly known already, as after positions were set back: what is known is looked up before anything is locked.

That it ends as the model says, however records repeat, is what the property tests ask; these ask what only looking first does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from sync_worker.errors import RejectionReason
from tests.support.facts import member, method, new_id
from tests.support.sessions import WAIT_S, Writer, assert_ends_as
from tests.support.site import Site

MakeWriter = Callable[..., Writer]


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    """Only a database: the sessions are the test's own."""
    return make_site(topics=False)


def test_a_replay_waits_for_nobody_who_changes_the_same_people(site: Site, writer: MakeWriter) -> None:
    enabled = method(segment := new_id(), new_id())
    added = [member(segment, new_id(), 1) for _ in range(40)]
    removed = [replace(event, event_id=new_id(), version=2, is_member=False) for event in added]
    one, other = writer(), writer()
    one.batch(enabled)
    one.batch(*added)
    one.begin(*removed)
    again = other.batch(*added)
    assert again.results == {("membership", "repeated"): 40}
    one.commit()
    assert other.batch(*added).results == {("membership", "stale"): 40}
    assert_ends_as(site, [enabled], added, removed)


def test_what_is_new_in_a_replay_is_applied_and_what_contradicts_is_rejected(site: Site, writer: MakeWriter) -> None:
    enabled = method(segment := new_id(), new_id())
    known = [member(segment, new_id(), 2) for _ in range(40)]
    older = replace(known[0], event_id=new_id(), version=1)
    newer = replace(known[1], event_id=new_id(), version=3, is_member=False)
    unknown = member(segment, new_id(), 1)
    contrary = replace(known[2], event_id=new_id(), is_member=False)
    one = writer()
    one.batch(enabled)
    one.batch(*known)
    again = one.batch(older, newer, contrary, unknown, *known[3:])
    assert again.changes == 2
    assert again.results == {("membership", "applied"): 2, ("membership", "stale"): 1, ("membership", "repeated"): 37}
    ((record, rejection),) = again.rejected
    assert rejection.reason is RejectionReason.VERSION_CONFLICT
    assert record.content.version == 2  # type: ignore[union-attr]  # a membership
    assert_ends_as(site, [enabled], known, [newer, unknown])


def test_what_another_worker_overtakes_between_the_look_and_the_lock_is_stale(site: Site, writer: MakeWriter) -> None:
    enabled = method(segment := new_id(), new_id())
    known = [member(segment, new_id(), 1) for _ in range(40)]
    removed = replace(known[0], event_id=new_id(), version=2, is_member=False)
    returned = replace(known[0], event_id=new_id(), version=3)
    one, other = writer(), writer()
    one.batch(enabled)
    one.batch(*known)
    replay = one.start_batch(removed, *known[1:], stop_before="memberships")
    one.wait_until_stopped()
    assert other.batch(returned).results == {("membership", "applied"): 1}
    one.go_on()
    assert replay.result(WAIT_S).results == {("membership", "repeated"): 39, ("membership", "stale"): 1}
    assert_ends_as(site, [enabled], known, [returned])
