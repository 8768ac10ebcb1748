"""An upgrade in two halves, with workers of both versions side by side and traffic all the while: nothing is lost, repeated or wrong.

The next version is this one's sources with a column more, which its post half insists on and this version's workers don't fill.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from random import Random

import psycopg
import pytest

import sync_worker
from sync_worker.schema.store import schema_folder
from tests.model.events import Event
from tests.model.model import Model
from tests.support.check import assert_site_equals_model
from tests.support.facts import member, method, new_id
from tests.support.site import Site, WorkerProcess, wait_for

REVISION = '''"""{title}

Revision ID: {name}
"""
from alembic import op

revision = "{name}"
down_revision = "{before}"
branch_labels = None
depends_on = None
half = "{half}"


def upgrade() -> None:
    op.execute("alter table sync_worker.membership {change}")
'''
# A worker's version without compiled files, several of them, and commands that each start one.
pytestmark = pytest.mark.timeout(900)
PRE, POST, POST_LATER = "9001", "9002", "9003"
INSERT = "insert into membership as s (segment_id, user_id, is_member, version"
WRITES = {
    f"{INSERT}, event_id, occurred_at)\n  select *": f"{INSERT}, event_id, occurred_at, written_by)\n  select *, 'next'",
    f"{INSERT})\nselect %(segment)s::uuid, u, false, 0": f"{INSERT}, written_by)\nselect %(segment)s::uuid, u, false, 0, 'next'",
}


def next_version(folder: Path, *halves: tuple[str, str, str]) -> list[str]:
    """The command of a version with these further revisions: (name, half, change of the table membership)."""
    package = folder / "sync_worker"
    shutil.copytree(Path(sync_worker.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(schema_folder(), folder / "schemas")
    statements = package / "enrollment" / "statements.sql"
    text = statements.read_text("utf-8")
    for old, new in WRITES.items():
        assert text.count(old) == 1, "the statement that the next version writes another way isn't there"
        text = text.replace(old, new)
    statements.write_text(text, "utf-8")
    before = "0002"
    for name, half, change in halves:
        revision = REVISION.format(title="Who wrote it", name=name, before=before, half=half, change=change)
        (package / "database" / "migrations" / "versions" / f"{name}.py").write_text(revision, "utf-8")
        before = name
    start = f"import sys, runpy; sys.path.insert(0, {str(folder)!r}); runpy.run_module('sync_worker', run_name='__main__', alter_sys=True)"
    return [sys.executable, "-c", start]


@pytest.fixture
def following(tmp_path: Path) -> Sequence[str]:
    return next_version(
        tmp_path / "next",
        (PRE, "pre", "add column written_by text not null default 'this'"),
        (POST, "post", "alter column written_by drop default"),
    )


class Traffic:
    """Members come and go; methods open, close and change segment."""

    def __init__(self, site: Site) -> None:
        self.site, self.model = site, Model()
        self._random, self._versions = Random(4), count(1)
        self._segments = [new_id() for _ in range(4)]
        self._users: list[str] = []
        self._methods = [method(new_id(), segment, group_id=new_id()) for segment in self._segments]

    def send(self, events: int = 300) -> None:
        self._users += [new_id() for _ in range(40)]
        batch = list(self._events(events))
        self.model.apply_batch(batch)
        self.site.produce(batch)

    def _events(self, events: int) -> Iterator[Event]:
        for each in self._methods:
            role = self._random.choice(["student", "guest"])
            yield method(
                each.course_id,
                self._random.choice(self._segments),
                method_id=each.method_id,
                group_id=each.group_id,
                role=role,
                version=next(self._versions),
            )
        for _ in range(events):
            segment, user = self._random.choice(self._segments), self._random.choice(self._users)
            yield member(segment, user, next(self._versions), is_member=self._random.random() < 0.7)


def is_at_work(worker: WorkerProcess) -> Callable[[], bool]:
    return lambda: bool(worker.events("partition_started"))


def test_workers_of_both_versions_go_on_side_by_side_between_the_halves(
    make_site: Callable[..., Site], following: Sequence[str]
) -> None:
    # Three partitions of memberships, which tell who wrote, for three workers: each topic is shared out by itself (ADR 15).
    site = make_site(removal_hold_min="0")
    present, traffic = site.program, Traffic(site)

    def run(*arguments: str) -> str:
        done = site.command(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stderr + done.stdout

    old = [site.start_worker(), site.start_worker()]
    traffic.send()
    site.program = following
    assert f"revision 0002 -> {PRE}" in run("migrate", "--pre")
    assert f"at revision {PRE}, nothing to do" in run("migrate", "--pre")
    traffic.send()

    # A worker of this version that dies in the middle of the upgrade comes back.
    site.program = present
    old[0].kill()
    old[0] = site.start_worker()
    assert old[0].wait_for_event("schema_is_newer")["revision"] == PRE
    site.program = following
    new = site.start_worker()
    wait_for(is_at_work(new), what="the next version taking partitions")
    wait_for(is_at_work(old[0]), what="this version taking partitions again")

    # A rebalance may still be under way: sooner or later both have written.
    def both_wrote() -> bool:
        traffic.send()
        site.wait_settled()
        written_by = {row["written_by"] for row in site.query("select distinct written_by from membership")}
        return written_by == {"this", "next"}

    wait_for(both_wrote, what="rows written by both versions")
    assert assert_site_equals_model(site, traffic.model) > 0

    for worker in old:
        assert worker.terminate() == 0
    traffic.send()
    assert f"revision {PRE} -> {POST}" in run("migrate")
    traffic.send()

    def settled() -> bool:
        done = site.command("status", "--json")  # which gives a service ten seconds to answer
        return done.returncode == 0 and bool(json.loads(done.stdout)["settled"])

    wait_for(settled, what="settled")
    assert_site_equals_model(site, traffic.model)

    site.program = present
    refused = site.start_worker()
    assert refused.wait(180) == 1
    assert f"at revision {POST}, which this version of the worker does not know" in refused.log()
    assert "install a newer worker" in refused.log()


def test_the_next_version_does_not_start_before_its_pre_half(site: Site, following: Sequence[str]) -> None:
    site.program = following
    refused = site.start_worker()
    assert refused.wait(180) == 1
    assert f"is at revision 0002, this worker needs {PRE}: run `sync-worker migrate`" in refused.log()


def test_a_version_that_skips_a_post_half_says_so_instead_of_shutting_workers_out(site: Site, tmp_path: Path) -> None:
    site.program = next_version(
        tmp_path / "later",
        (PRE, "pre", "add column written_by text not null default 'this'"),
        (POST, "post", "alter column written_by drop default"),
        (POST_LATER, "pre", "add column more text"),
    )
    done = site.command("migrate", "--pre")
    assert done.returncode == 1
    assert f"no worker of revision 0002 goes on beside revision {POST_LATER}, as {POST} comes before it" in done.stderr
    with psycopg.connect(site.database_url) as connection:
        assert connection.execute("select version_num from sync_worker.alembic_version").fetchone() == ("0002",)
