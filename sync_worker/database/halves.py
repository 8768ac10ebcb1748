"""Which workers go on beside which revision of the schema: upgrades come in halves, so that no worker stands still for one.

A revision says `half = "pre"` where it only adds, so that workers of the version before go on beside it, or `half = "post"`
where it takes away, or insists on, what those did not know. A worker must never run against a schema that was changed
past it: the database itself says which is the oldest that it supports.
"""

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

from sync_worker.errors import FatalError

MIGRATIONS: Final = Path(__file__).with_name("migrations")
"""Alembic's folder."""


@dataclass(frozen=True, slots=True)
class Revision:
    """One revision of the schema, in the order in which they are applied."""

    name: str
    half: Literal["pre", "post"]


@cache
def revisions() -> tuple[Revision, ...]:
    """Every revision that this version has heard of, the first one first.

    Their files are read, not run: that takes Alembic, which a worker does without (ADR 11).
    """
    after = {constants["down_revision"]: constants for constants in map(_constants, _files())}
    found, last = [], None
    while last in after:
        found.append(Revision(after[last]["revision"], after[last]["half"]))
        last = after[last]["revision"]
    if not found:
        raise FatalError("this installation holds no migrations: install the worker again")
    return tuple(found)


def _files() -> list[Path]:
    return list((MIGRATIONS / "versions").glob("[0-9]*.py"))


def _constants(file: Path) -> dict[str, Any]:
    """What a module assigns plainly: `revision = "0001"`."""
    return {
        statement.targets[0].id: ast.literal_eval(statement.value)
        for statement in ast.parse(file.read_bytes(), str(file)).body
        if isinstance(statement, ast.Assign)
        and isinstance(statement.targets[0], ast.Name)
        and isinstance(statement.value, ast.Constant)
    }


def _names() -> list[str]:
    return [each.name for each in revisions()]


def head() -> str:
    """The revision that `migrate` ends with."""
    return _names()[-1]


def needed() -> str:
    """The first revision that workers of this version can run with: their last pre half."""
    return [each.name for each in revisions() if each.half == "pre"][-1]


def is_known(revision: str) -> bool:
    return revision in _names()


def is_enough(revision: str) -> bool:
    """Whether a known revision has all that workers of this version need."""
    return _names().index(revision) >= _names().index(needed())


def shut_out_by_pre(before: str) -> str | None:
    """The post half between `before` and what this version needs, if there is one: no worker of `before` goes on beside it."""
    between = revisions()[_names().index(before) + 1 : _names().index(needed())]
    return next((each.name for each in between if each.half == "post"), None)


def oldest_worker(at: str) -> str:
    """The revision that a worker must have heard of to run with a database at `at`."""
    oldest = needs = revisions()[0].name
    for each in revisions():
        if each.half == "pre":
            needs = each.name
        else:
            oldest = needs
        if each.name == at:
            break
    return oldest


def newer_message(revision: str) -> str:
    """What is wrong with a database at a revision that this version doesn't know."""
    return (
        f"the database's schema sync_worker is at revision {revision}, which this version of the worker does not know "
        f"(it knows up to {head()}): install a newer worker"
    )
