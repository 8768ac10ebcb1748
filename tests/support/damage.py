"""Damage to a database by hand-written SQL, in every way that the rule knows, each with the difference that it must be found as.

Only what the facts determine is damaged, at most once for each person in a course, so that the state before is the state
after a repair. It must never use the worker's code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import Any, NamedTuple
from uuid import uuid4

import psycopg
from psycopg.types.json import Jsonb


class Damaged(NamedTuple):
    """What was done, and the difference as `reconcile` names it: kind, course, user, source (empty for a row's)."""

    how: str
    kind: str
    course: str
    user: str
    source: str

    @property
    def difference(self) -> tuple[str, str, str, str]:
        return self[1:]


class _Row(NamedTuple):
    course: str
    user: str
    sources: dict[str, dict[str, Any]]
    status: str


class Damage:
    """Does damage to the database of a session whose search_path is the schema's."""

    def __init__(self, session: psycopg.Connection[Any], random: Random) -> None:
        self._session = session
        self._random = random
        self._untouched: list[_Row] = []

    def do(self, times: int) -> list[Damaged]:
        """Each way up to so many times, as often as there are people for it."""
        rows = self._session.execute("select course_id::text, user_id::text, sources, status from enrollment")
        self._untouched = [_Row(*row) for row in rows.fetchall()]
        self._random.shuffle(self._untouched)
        ways: list[Callable[[], Damaged | None]] = [
            *(self._of_method(how) for how in _CHANGES),
            *(self._of_other(how) for how in ("gone", "status", "role", "kind", "member", "malformed")),
            self._row_gone, self._hand_made_left, self._not_a_member, self._deleted, self._of_another_course,
            self._without_fact, self._absent_by_fact,
        ]  # fmt: skip
        return [done for way in ways for _ in range(times) if (done := way()) is not None]

    def _of_method(self, how: str) -> Callable[[], Damaged | None]:
        """A contribution of a member by an enabled method, changed or gone."""

        def way() -> Damaged | None:
            for row, source, contribution in self._contributions():
                if contribution["kind"] != "OTHER" and contribution["status"] == "ACTIVE":
                    return self._change(how, row, source, contribution)
            return None

        return way

    def _of_other(self, how: str) -> Callable[[], Damaged | None]:
        def way() -> Damaged | None:
            for row, source, contribution in self._contributions():
                if contribution["kind"] == "OTHER":
                    return self._change(f"{how}", row, source, contribution)
            return None

        return way

    def _contributions(self) -> Iterator[tuple[_Row, str, dict[str, Any]]]:
        for row in list(self._untouched):
            for source, contribution in row.sources.items():
                yield row, source, contribution

    def _change(self, how: str, row: _Row, source: str, contribution: dict[str, Any]) -> Damaged:
        after = _CHANGES[how](dict(contribution))
        if after is None:
            return self._put("missing", how, row, source, None)
        return self._put("different", how, row, source, after)

    def _put(self, kind: str, how: str, row: _Row, source: str, contribution: dict[str, Any] | None) -> Damaged:
        delta = {source: contribution}
        self._session.execute(
            "update enrollment set sources = case when %s then sources - %s::text else sources || %s end "
            "where course_id = %s and user_id = %s",
            (contribution is None, source, Jsonb(delta), row.course, row.user),
        )
        self._untouched.remove(row)
        return Damaged(how, kind, row.course, row.user, source)

    def _row_gone(self) -> Damaged | None:
        """Of somebody whom the facts enroll; where only the past knows of a row, nobody can miss it."""
        for row, _, contribution in self._contributions():
            if contribution["kind"] == "OTHER" or contribution["status"] == "ACTIVE":
                self._session.execute(
                    "delete from enrollment where course_id = %s and user_id = %s", (row.course, row.user)
                )
                self._untouched.remove(row)
                return Damaged("row gone", "row_gone", row.course, row.user, "")
        return None

    def _hand_made_left(self) -> Damaged | None:
        for row in self._untouched:
            if row.status == "ABSENT":
                self._session.execute(
                    "update enrollment set hand = array[gen_random_uuid()] where course_id = %s and user_id = %s",
                    (row.course, row.user),
                )
                self._untouched.remove(row)
                return Damaged("hand-made group left", "hand_made_left", row.course, row.user, "")
        return None

    def _not_a_member(self) -> Damaged | None:
        return self._too_many(
            "not a member",
            "m.course_id = e.course_id and not m.deleted and (m.on_removal = 'UNENROLL' or m.kind = 'SEGMENT_GROUP') and not exists "
            "(select from membership s where s.segment_id = m.segment_id and s.user_id = e.user_id and s.is_member)",
        )

    def _deleted(self) -> Damaged | None:
        return self._too_many("deleted method", "m.course_id = e.course_id and m.deleted")

    def _of_another_course(self) -> Damaged | None:
        return self._too_many("another course's method", "m.course_id <> e.course_id")

    def _too_many(self, how: str, condition: str) -> Damaged | None:
        methods = self._session.execute(
            "select e.course_id::text, e.user_id::text, m.method_id::text, m.kind, m.role, m.group_id::text from enrollment e, method m "
            f"where {condition} and not e.sources ? m.method_id::text"
        ).fetchall()
        self._random.shuffle(methods)
        for course, user, method, kind, role, group in methods:
            row = self._find(course, user)
            if row is not None:
                given = {"kind": kind, "status": "ACTIVE", "role": role, "group_id": group, "member": True}
                return self._put(
                    "unwanted", how, row, method, {n: value for n, value in given.items() if value is not None}
                )
        return None

    def _without_fact(self) -> Damaged | None:
        if not self._untouched:
            return None
        given = {"kind": "OTHER", "status": "ACTIVE", "role": "teacher", "member": True}
        return self._put("unwanted", "source without a fact", self._untouched[0], f"by-hand-{uuid4().hex[:8]}", given)

    def _absent_by_fact(self) -> Damaged | None:
        absent = self._session.execute(
            "select f.course_id::text, f.user_id::text, f.source from source f where f.status = 'ABSENT'"
        ).fetchall()
        for course, user, source in absent:
            row = self._find(course, user)
            if row is not None:
                given = {"kind": "OTHER", "status": "ACTIVE", "role": "teacher", "member": True}
                return self._put("unwanted", "source that is ABSENT", row, source, given)
        return None

    def _find(self, course: str, user: str) -> _Row | None:
        return next((row for row in self._untouched if (row.course, row.user) == (course, user)), None)


_CHANGES: dict[str, Callable[[dict[str, Any]], dict[str, Any] | None]] = {
    "gone": lambda _: None,
    "role": lambda c: c | {"role": "janitor"},
    "no role": lambda c: {name: value for name, value in c.items() if name != "role"} | {"group_id": str(uuid4())},
    "group": lambda c: c | {"group_id": str(uuid4())},
    "status": lambda c: c | {"status": "SUSPENDED" if c["status"] == "ACTIVE" else "ACTIVE"},
    "kind": lambda c: c | {"kind": "OTHER" if c["kind"] != "OTHER" else "SEGMENT_SYNC"},
    "member": lambda c: c | {"member": False},
    "malformed": lambda _: {"status": ["ACTIVE"], "kind": "GUEST", "note": "hello"},
}
