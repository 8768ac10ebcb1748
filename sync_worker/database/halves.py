"""Which workers go on beside which revision of the schema: upgrades come in halves, so that no worker stands still for one.

A revision says `half = "pre"` where it only adds, so that workers of the version before go on beside it, or `half = "post"`
where it takes away, or insists on, what those did not know. A worker must never run against a schema that was changed
past it: the database itself says which is the oldest that it supports.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from sync_worker.errors import FatalError


@dataclass(frozen=True, slots=True)
class Revision:
    """One revision of the schema, in the order in which they are applied."""

    name: str
    half: Literal["pre", "post"]


def config(connection: Connection | None = None) -> Config:
    """Alembic's, for the revisions of this installation."""
    made = Config()
    made.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    made.attributes["connection"] = connection
    return made


@cache
def revisions() -> tuple[Revision, ...]:
    """Every revision that this version has heard of, the first one first."""
    scripts = reversed(list(ScriptDirectory.from_config(config()).walk_revisions()))
    found = tuple(Revision(script.revision, script.module.half) for script in scripts)
    if not found:
        raise FatalError("this installation holds no migrations: install the worker again")
    return found


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


def supported_from(connection: Connection) -> str | None:
    """What the newer version that migrated this database said of the oldest worker; None where it said nothing."""
    if connection.execute(text("select to_regclass('sync_worker.schema_support')")).scalar() is None:
        return None
    found: str | None = connection.execute(text("select oldest_worker from sync_worker.schema_support")).scalar()
    return found
