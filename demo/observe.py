"""What can be seen of the worker's result: the two public views, and EnrollmentChanged, by names instead of ids.

Must never read anything but what the contract shows to everybody.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import psycopg
from psycopg.rows import dict_row

from demo.cast import name_of, with_names
from demo.errors import DemoError
from demo.scene import GroupEdit, Row

_ROWS: Final = (
    "SELECT course_id, user_id, status, roles, groups, suspended_in_course, version FROM sync_worker.course_enrollment"
)
_GROUPS: Final = "SELECT course_id, group_id, user_id, managed FROM sync_worker.course_group_member"
_INSERT: Final = "INSERT INTO sync_worker.course_group_member (course_id, group_id, user_id) VALUES (%s, %s, %s)"
_DELETE: Final = "DELETE FROM sync_worker.course_group_member WHERE course_id = %s AND group_id = %s AND user_id = %s"

Key = tuple[str, str]
"""Course and person, by name."""


class GroupMember(NamedTuple):
    """A row of course_group_member."""

    course: str
    group: str
    person: str
    managed: bool


@dataclass(frozen=True, slots=True)
class Tables:
    """The two views at one moment. `rows` hold what both say together, `versions` the version of each."""

    rows: dict[Key, Row]
    versions: dict[Key, int]
    members: tuple[GroupMember, ...]


class Database:
    """A session as the LMS would have one."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg.connect(url, autocommit=True, row_factory=dict_row, connect_timeout=10)

    def close(self) -> None:
        """End the session."""
        self._connection.close()

    def tables(self) -> Tables:
        """Both views, in one snapshot."""
        with self._connection.transaction():
            self._connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            enrollments = self._connection.execute(_ROWS).fetchall()
            memberships = self._connection.execute(_GROUPS).fetchall()
        members = sorted(
            GroupMember(name_of(row["course_id"]), name_of(row["group_id"]), name_of(row["user_id"]), row["managed"])
            for row in memberships
        )
        rows, versions = {}, {}
        for enrollment in enrollments:
            course, person = key = (name_of(enrollment["course_id"]), name_of(enrollment["user_id"]))
            own = [member for member in members if (member.course, member.person) == key]
            groups = _names(enrollment["groups"])
            if groups != tuple(member.group for member in own):
                raise DemoError(f"{person} in {course}: one view says groups {groups}, the other {own}")
            by_hand = tuple(member.group for member in own if not member.managed)
            roles = tuple(enrollment["roles"])
            rows[key] = Row(enrollment["status"], roles, groups, by_hand, enrollment["suspended_in_course"])
            versions[key] = enrollment["version"]
        return Tables(rows, versions, tuple(members))

    def edit_group(self, edit: GroupEdit) -> str | None:
        """Do it; the SQLSTATE and message when the database refuses, with names for ids."""
        try:
            self._connection.execute(
                _INSERT if edit.verb == "INSERT" else _DELETE, (edit.course.id, edit.group.id, edit.person.id)
            )
        except psycopg.Error as error:
            if error.sqlstate is None or not error.sqlstate.startswith("SW"):
                raise
            return f"{error.sqlstate}: {with_names(error.diag.message_primary or '')}"
        return None


class State(NamedTuple):
    """An EnrollmentState, by names; `status` may be ABSENT."""

    status: str
    roles: tuple[str, ...]
    groups: tuple[str, ...]
    suspended_in_course: bool


class Change(NamedTuple):
    """An EnrollmentChanged."""

    key: Key
    version: int
    kind: str
    before: State
    after: State


def change_of(document: dict[str, Any]) -> Change:
    """The change in a line of `tail`."""
    return Change(
        (name_of(document["course_id"]), name_of(document["user_id"])),
        document["version"],
        document["change"],
        _state(document["before"]),
        _state(document["after"]),
    )


def state_of(row: Row | None) -> State:
    """What an EnrollmentChanged says of somebody with this row."""
    if row is None:
        return State("ABSENT", (), (), False)
    return State(row.status, row.roles, row.groups, row.suspended_in_course)


def _state(document: dict[str, Any]) -> State:
    return State(
        document["status"], tuple(document["roles"]), _names(document["groups"]), document["suspended_in_course"]
    )


def _names(ids: Iterable[Any]) -> tuple[str, ...]:
    return tuple(sorted(name_of(id_) for id_ in ids))
