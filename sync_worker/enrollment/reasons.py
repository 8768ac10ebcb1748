"""In words: what a source gives a person and why, what is missing where it gives nothing, and why a row isn't what the facts say.

Tells what explain.py read and what the rule answered. Must never decide what somebody should have.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from sync_worker.enrollment.explain import (
    ByMethod,
    BySource,
    Contribution,
    Explanation,
    Fact,
    MembershipFacts,
    MethodFacts,
    Step,
)


@dataclass(frozen=True, slots=True)
class Difference:
    """Why what is differs from what the facts say. by: `backfill` (on the way), `hold` (the breaker keeps it), `reconcile` (nothing
    is on the way: a repair is due), or `unknown_method` (a repair has to wait for facts)."""

    by: str
    why: str


def of_method(by: ByMethod) -> str:
    """Why a method gives what the facts say it should, or what is missing for it to give anything."""
    method, due = by.method, by.due
    if method.deleted:
        return f"{_state(method)}, which is final"
    who = _membership(by)
    if due is None:
        if by.stands:
            return f"{who}, but {_state(method)}"
        return who if method.enabled else f"{who}; besides, {_state(method)}"
    if not by.stands:
        kept = "with its role" if due.get("role") is not None else "without a role"
        return f"{who}; on_removal is {method.on_removal}, so what there was stays, suspended, {kept}"
    if due["status"] == "SUSPENDED":
        return f"{who}, but {_state(method)}, so what there was stays, suspended"
    return f"{who}, and {_state(method)}" + (
        "; it gives a group and enrolls nobody" if method.kind == "SEGMENT_GROUP" else ""
    )


def of_source(by: BySource) -> str:
    """The same for another way in."""
    if by.status is None:
        return f"no event of {by.source} is known here"
    return f"{by.source} said {by.status}{_said(by.fact)}"


def of_orphan(source: str, *, elsewhere: bool) -> str:
    """The same for a contribution that nothing known stands behind. elsewhere: it is another course's method."""
    return f"{source} is a method of another course" if elsewhere else f"nothing is known of a method {source}"


def method_difference(by: ByMethod, course: str) -> Difference | None:
    """Where the row has something else than the rule says, or has it because of a hold alone."""
    label = label_of(by.method)
    if by.now != by.due:
        differs = f"{label}: the row has {contribution(by.now)}, the facts say {contribution(by.due)}"
        if by.backfill is not None:
            return Difference(
                "backfill",
                f"{differs}; a backfill of version {by.backfill_version} is under way ({_progress(by.backfill)}) and has not come "
                "to this person yet",
            )
        return _repair(differs, course)
    if by.membership.held is not None and by.stands:
        release = by.membership.release
        if release is not None:
            why = f"its hold was released, and what was held is being applied ({_progress(release)})"
        else:
            why = f"it ends with the hold: `sync-worker holds release {by.method.segment_id}`"
        return Difference("hold", f"{label}: what a removed member had stays, as the removal is held; {why}")
    return None


def source_difference(by: BySource, course: str) -> Difference | None:
    if by.now == by.due:
        return None
    return _repair(f"{by.source}: the row has {contribution(by.now)}, the facts say {contribution(by.due)}", course)


def orphan_difference(source: str, now: Contribution, course: str, *, elsewhere: bool) -> Difference:
    differs = f"{source}: the row has {contribution(now)}, and no fact is known behind it"
    if elsewhere:
        return _repair(differs, course)
    return Difference(
        "unknown_method",
        f"{differs}; let the topic of methods be read again, or publish the method with deleted = true, and then "
        f"`sync-worker reconcile --course {course}` repairs it",
    )


def summary(found: Explanation, course: str, user: str) -> str:
    """In one sentence, whether the person is in the course, and through what."""
    row = found.row
    if row is not None and row.status != "ABSENT":
        if row.suspended:
            return f"in the course, but suspended in it since version {row.suspension_version} of that fact"
        if row.status == "SUSPENDED":
            return "in the course, but suspended: nothing that enrolls is active"
        return f"in the course through {', '.join(_enrolling(found))}"
    if not found.course_known:
        return f"never heard of course {course}: no method, no other source and no enrollment of it is known here"
    if not found.user_known:
        return f"never heard of user {user}: in no course, and in no segment that a method uses"
    wants = (
        "only a method that gives a group wants them, which enrolls nobody" if row is not None and row.sources else None
    )
    later = "; should something enroll them, they come suspended" if row is not None and row.suspended else ""
    return f"not in the course: {wants or 'nothing gives a place in it'}{later}"


def label_of(method: MethodFacts) -> str:
    """A method by its name, or where it has none by its id."""
    return method.name or method.method_id


def contribution(given: Contribution | None) -> str:
    """A contribution in a few words."""
    if given is None:
        return "nothing"
    parts = [given["status"], given.get("role"), f"group {given['group_id']}" if given.get("group_id") else None]
    return ", ".join(part for part in parts if part)


def time_words(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _enrolling(found: Explanation) -> Iterator[str]:
    """The labels of what enrolls and is active, in the order in which sources are told."""
    given = [(label_of(each.method), each.now) for each in found.methods]
    given += [(each.source, each.now) for each in found.sources]
    given += found.orphans.items()
    for label, now in given:
        if now is not None and now["kind"] != "SEGMENT_GROUP" and now["status"] == "ACTIVE":
            yield label


def _state(method: MethodFacts) -> str:
    label = label_of(method)
    if method.deleted:
        return f"{label} was deleted (version {method.version})"
    if method.enabled:
        return f"{label} is enabled"
    if method.active:
        return f"{label}'s eye is closed"
    return f"{label} is not active" + ("" if method.visible else ", and its eye is closed")


def _membership(by: ByMethod) -> str:
    segment, membership = by.method.segment_name or by.method.segment_id, by.membership
    if membership.is_member:
        return f"member of {segment}{_said(membership.fact, 'since ')}"
    if membership.fact.version is None:
        return f"not a member of {segment}: never heard of there"
    if membership.held is None:
        return f"not a member of {segment}: removed{_said(membership.fact)}"
    return f"removed from {segment}{_said(membership.fact)}, {_held(membership, stands=by.stands)}"


def _held(membership: MembershipFacts, *, stands: bool) -> str:
    since = f" since {time_words(membership.held_since)}" if membership.held_since is not None else ""
    return (
        f"which is held{since}: counts as a member still" if stands else f"which is held{since}, with nothing to keep"
    )


def _said(fact: Fact, word: str = "") -> str:
    """Since when a fact holds, as words to follow."""
    when = f" {word}{time_words(fact.occurred_at)}" if fact.occurred_at is not None else ""
    return f"{when} (version {fact.version})"


def _progress(step: Step) -> str:
    return f"{step.done} of {'an unknown number' if step.total is None else step.total} done"


def _repair(differs: str, course: str) -> Difference:
    return Difference(
        "reconcile", f"{differs}; nothing is on the way: `sync-worker reconcile --course {course}` repairs it"
    )
