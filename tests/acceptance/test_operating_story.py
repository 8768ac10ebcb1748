"""docs/operating.md is true: each of its commands is run in order, on a site of its own, and prints what the page shows."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from devstack import Stack
from tests.support.site import DEFAULT_NAMES, Site, wait_for
from tests.support.story import follow

# Forty commands, each a process of its own.
pytestmark = pytest.mark.timeout(900)

STORY = Path(__file__).parents[2] / "docs" / "operating.md"
# The lease and what Kafka was told are behind for a moment where a worker stood still.
LOOKS = {"sync-worker relay show", "sync-worker positions show"}
DAMAGE = "update sync_worker.enrollment set sources = sources - 'manual' where sources ? 'manual'"


@pytest.fixture
def new_site(tmp_path: Path) -> Iterator[Site]:
    """Nothing but Kafka, an empty database, and the names that are the default."""
    with Stack.start() as stack:
        site = Site(
            stack,
            stack.postgres.create_database("lms"),
            tmp_path,
            DEFAULT_NAMES,
        )
        yield site
        site.close()


def test_a_stranger_can_follow_the_page(new_site: Site, tmp_path: Path) -> None:
    site = new_site

    def run() -> None:
        site.start_worker()

    def damage() -> None:
        with psycopg.connect(site.database_url, autocommit=True) as connection:
            connection.execute(DAMAGE)

    def settle() -> None:
        if site.workers:
            site.wait_settled()
            wait_for(lambda: not site.query("select from outbox"), what="the clean-up")

    environment = {**site.environment, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    folder = tmp_path / "reader"
    folder.mkdir()
    commands = follow(
        STORY,
        folder,
        environment,
        instead={
            "sync-worker run": run,
            f'psql "$SYNC_WORKER_DATABASE_URL" -c "{DAMAGE}"': damage,
        },
        settle=settle,
        looks=LOOKS,
    )
    assert commands > 25
