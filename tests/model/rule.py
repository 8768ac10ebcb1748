"""The rule for one method and one user (semantics §2) and what follows for one course and user (semantics §3).

Pure functions over plain data: they must never remember anything or read anything that isn't an argument.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from tests.model.events import MethodChanged, SourceChanged

ContributionKind = Literal["SEGMENT_SYNC", "SEGMENT_GROUP", "OTHER"]
ContributionStatus = Literal["ACTIVE", "SUSPENDED"]
EnrollmentStatus = Literal["ABSENT", "ACTIVE", "SUSPENDED"]
ChangeKind = Literal["ENROLLED", "UNENROLLED", "SUSPENDED", "REACTIVATED", "UPDATED"]


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one source gives one user."""

    kind: ContributionKind
    status: ContributionStatus
    role: str | None
    group_id: str | None
    member: bool


@dataclass(frozen=True, slots=True)
class SourceState:
    """A contribution as EnrollmentState lists it."""

    source: str
    kind: ContributionKind
    status: ContributionStatus
    role: str | None
    group_id: str | None
    member: bool


@dataclass(frozen=True, slots=True)
class EnrollmentState:
    """The visible state of one (course, user), as in contract §2."""

    status: EnrollmentStatus
    roles: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    suspended_in_course: bool = False
    sources: tuple[SourceState, ...] = ()


ABSENT = EnrollmentState("ABSENT")


def contribution_of_method(method: MethodChanged, is_member: bool, now: Contribution | None) -> Contribution | None:
    """The table of semantics §2, row by row."""
    if method.deleted:
        return None
    if is_member:
        if method.enabled:
            return Contribution(method.kind, "ACTIVE", method.role, method.group_id, True)
        if now is None:
            return None
        return Contribution(method.kind, "SUSPENDED", method.role, method.group_id, True)
    if now is None or method.kind == "SEGMENT_GROUP" or method.on_removal == "UNENROLL":
        return None
    # The role that is kept is the one the person had, not the one the method would give its members by now.
    role = now.role if method.on_removal == "SUSPEND" else None
    return Contribution(method.kind, "SUSPENDED", role, None, False)


def contribution_of_source(source: SourceChanged) -> Contribution | None:
    if source.status == "ABSENT":
        return None
    return Contribution("OTHER", source.status, source.role, None, True)


def methods_wanting(contributions: Mapping[str, Contribution], group_id: str) -> tuple[str, ...]:
    """The sources that keep a person in a group, sorted; the person is managed there when there is any."""
    return tuple(sorted(source for source, each in contributions.items() if each.member and each.group_id == group_id))


def visible_state(
    contributions: Mapping[str, Contribution], hand_made_groups: Collection[str], suspended_in_course: bool
) -> EnrollmentState:
    """What semantics §3 makes of the contributions, the hand-made groups and the suspension in the course."""
    enrolling = [each for each in contributions.values() if each.kind != "SEGMENT_GROUP"]
    if not enrolling:
        return ABSENT
    active = not suspended_in_course and any(each.status == "ACTIVE" for each in enrolling)
    roles = {
        each.role for each in contributions.values() if active and each.status == "ACTIVE" and each.role is not None
    }
    groups = {each.group_id for each in contributions.values() if each.member and each.group_id is not None}
    return EnrollmentState(
        status="ACTIVE" if active else "SUSPENDED",
        roles=tuple(sorted(roles)),
        groups=tuple(sorted(groups.union(hand_made_groups))),
        suspended_in_course=suspended_in_course,
        sources=tuple(
            SourceState(source, each.kind, each.status, each.role, each.group_id, each.member)
            for source, each in sorted(contributions.items())
        ),
    )


def change_kind(before: EnrollmentState, after: EnrollmentState) -> ChangeKind:
    if before.status == "ABSENT":
        return "ENROLLED"
    if after.status == "ABSENT":
        return "UNENROLLED"
    if before.status == after.status:
        return "UPDATED"
    return "SUSPENDED" if after.status == "SUSPENDED" else "REACTIVATED"
