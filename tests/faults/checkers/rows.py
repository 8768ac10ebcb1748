"""Is every enrollment what the newest facts make of it (semantics §2, §3)?

ACTIVE contributions, roles and managed groups follow from the facts alone. A SUSPENDED one also depends on what was there
when they were applied; of it must hold that applying the rule once more changes nothing, and that there is something it
can be left over from.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.faults.checkers.expected import Expected
from tests.faults.checkers.violation import Violation
from tests.faults.history import History, Pair
from tests.model.rule import (
    ABSENT,
    Contribution,
    EnrollmentState,
    contribution_of_method,
    contribution_of_source,
    methods_wanting,
    visible_state,
)

Contributions = dict[Pair, dict[str, Contribution]]
Members = set[tuple[str, str, str, bool, tuple[str, ...]]]


def check_rows(history: History, expected: Expected) -> Iterator[Violation]:
    yield from _check_contributions(history, expected)
    yield from _check_views(history)


def contribution_of(shown: dict[str, Any]) -> Contribution:
    """As the tables and events hold it, with or without its nulls."""
    return Contribution(shown["kind"], shown["status"], shown.get("role"), shown.get("group_id"), shown["member"])


def _check_contributions(history: History, expected: Expected) -> Iterator[Violation]:
    members: dict[str, set[str]] = {}
    for (segment, user), event in expected.model.memberships.items():
        if event.is_member:
            members.setdefault(segment, set()).add(user)
    found: Contributions = {
        pair: {source: contribution_of(shown) for source, shown in row["sources"].items()}
        for pair, row in history.tables.rows.items()
    }
    yield from _check_other_sources(found, expected)
    yield from _check_methods(found, members, expected)
    yield from _check_missing(found, members, expected)


def _check_other_sources(found: Contributions, expected: Expected) -> Iterator[Violation]:
    should: Contributions = {}
    for (course, user, source), other in expected.model.sources.items():
        if (contribution := contribution_of_source(other)) is not None:
            should.setdefault((course, user), {})[source] = contribution
    for pair in sorted(found.keys() | should.keys()):
        own = {source: each for source, each in found.get(pair, {}).items() if each.kind == "OTHER"}
        if own != should.get(pair, {}):
            yield _wrong(pair, f"other sources are {own}, should be {should.get(pair, {})}")


def _check_methods(found: Contributions, members: dict[str, set[str]], expected: Expected) -> Iterator[Violation]:
    """Of what methods give: would the rule give it?"""
    for pair, contributions in found.items():
        for source, contribution in contributions.items():
            if contribution.kind == "OTHER":
                continue
            method = expected.model.methods.get(source)
            if method is None or method.course_id != pair[0]:
                yield _wrong(pair, f"a contribution of {source}, which is no method of this course: {contribution}")
                continue
            is_member = pair[1] in members.get(method.segment_id, set())
            should = contribution_of_method(method, is_member, contribution)
            if should != contribution:
                yield _wrong(
                    pair, f"{source} gives {contribution}, should give {should} (member: {is_member}; {method})"
                )
            elif contribution.status == "SUSPENDED" and not _left_over(expected, source, pair[1], contribution):
                yield _wrong(
                    pair, f"{source} gives {contribution}, and nothing was there that it can be left over from"
                )


def _check_missing(found: Contributions, members: dict[str, set[str]], expected: Expected) -> Iterator[Violation]:
    """Does every enabled method give what it must to every member?"""
    for method in expected.model.methods.values():
        should = contribution_of_method(method, True, None)
        for user in sorted(members.get(method.segment_id, set())) if should is not None else ():
            if method.method_id not in found.get((method.course_id, user), {}):
                key = f"{method.course_id}:{user}"
                yield Violation("rows", "lost", key, f"{method.method_id} gives nothing, should give {should}")


def _left_over(expected: Expected, method_id: str, user: str, contribution: Contribution) -> bool:
    """Was this person ever a member of a segment that the method pointed to, and did it ever give such a role?"""
    was_member = any(user in expected.joined.get(segment, set()) for segment in expected.pointed.get(method_id, set()))
    return was_member and contribution.role in expected.roles[method_id]


def _check_views(history: History) -> Iterator[Violation]:
    """The public views show what the contributions come to, and nothing else."""
    tables = history.tables
    members: Members = set()
    for pair, row in tables.rows.items():
        contributions = {source: contribution_of(shown) for source, shown in row["sources"].items()}
        state = visible_state(contributions, row["hand"], row["suspended"])
        view = tables.enrollments.get(pair)
        if state.status != row["status"]:
            yield _wrong(pair, f"its status is {row['status']}, should be {state.status}")
        shown = None if view is None else state_of_view(view)
        if (shown or ABSENT) != state or (view is not None and view["version"] != row["version"]):
            yield _wrong(pair, f"course_enrollment shows {view}, should show {state} version {row['version']}")
        if state == ABSENT and row["hand"]:
            yield _wrong(pair, f"it is absent, and in groups by hand: {row['hand']}")
        for group in state.groups:
            methods = methods_wanting(contributions, group)
            members.add((*pair[:1], group, pair[1], bool(methods), methods))
    for pair in tables.enrollments.keys() - tables.rows.keys():
        yield _wrong(pair, "course_enrollment shows a row that isn't there")
    for member in sorted(members ^ tables.members):
        text = "shows" if member in tables.members else "lacks"
        yield _wrong((member[0], member[2]), f"course_group_member {text} {member}")


def state_of_view(view: dict[str, Any]) -> EnrollmentState:
    """A row of course_enrollment as the model's state."""
    contributions = {source: contribution_of(shown) for source, shown in view["sources"].items()}
    derived = visible_state(contributions, (), view["suspended_in_course"])
    return EnrollmentState(
        view["status"], tuple(view["roles"]), tuple(view["groups"]), view["suspended_in_course"], derived.sources
    )


def _wrong(pair: Pair, detail: str) -> Violation:
    return Violation("rows", "wrong", ":".join(pair), detail)
