"""Are the facts in the database the newest versions of what was published (semantics §4)?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tests.faults.checkers.expected import Expected
from tests.faults.checkers.violation import Violation
from tests.faults.history import History
from tests.model.events import MethodChanged


def check_facts(history: History, expected: Expected) -> Iterator[Violation]:
    model, tables = expected.model, history.tables
    memberships = {key: (event.is_member, event.version) for key, event in model.memberships.items()}
    yield from _compare("membership", memberships, tables.memberships)
    sources = {key: (event.status, event.role, event.version) for key, event in model.sources.items()}
    yield from _compare("source", sources, tables.sources)
    methods = {method_id: _columns(event) for method_id, event in model.methods.items()}
    yield from _compare("method", methods, tables.methods)
    suspensions = {key: (event.suspended, event.version) for key, event in model.suspensions.items()}
    found = {
        pair: (row["suspended"], row["suspension_version"])
        for pair, row in tables.rows.items()
        if row["suspension_version"] or row["suspended"]
    }
    yield from _compare("suspension", suspensions, found)


def _columns(method: MethodChanged) -> dict[str, Any]:
    names = (
        "version", "course_id", "segment_id", "segment_name", "kind", "name", "active", "visible", "role", "group_id", "on_removal",
        "deleted",
    )  # fmt: skip
    return {name: getattr(method, name) for name in names}


def _compare(what: str, expected: Mapping[Any, Any], found: Mapping[Any, Any]) -> Iterator[Violation]:
    for key in sorted(expected.keys() | found.keys(), key=str):
        if expected.get(key) != found.get(key):
            name = ":".join(key) if isinstance(key, tuple) else key
            yield Violation("facts", "wrong", name, f"{what} is {found.get(key)}, should be {expected.get(key)}")
