"""Fixtures: one stack of services for the session, a database cloned per test from a migrated template, a site per test."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import hypothesis
import pytest

from devstack import Stack
from tests.support.databases import copy_database, drop_database
from tests.support.site import Site

# The machines are shared: a test may be slow without being wrong.
hypothesis.settings.register_profile(
    "default",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large],
)
hypothesis.settings.register_profile("ci", parent=hypothesis.settings.get_profile("default"), derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")

TEMPLATE = "sync_worker_template"
# Minutes each, most of it waiting: begun last, they would be waited for alone. Each file stays with one process.
LONGEST = (
    "test_tls.py", "test_database_went_back.py", "test_short.py", "test_outages.py", "test_failpoints.py", "test_relay_adopt_cases.py",
    "test_relay_adopt.py", "test_registry_worker.py", "test_injection.py", "test_pages.py", "test_operating_story.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """Kafka and PostgreSQL for all tests that don't break them. Not durable, so that it is fast: nobody crashes this one."""
    with Stack.start(durable=False) as running:
        yield running


@pytest.fixture(scope="session")
def template(stack: Stack) -> str:
    """The name of a migrated database, to be cloned."""
    from sync_worker.database.migrate import migrate  # noqa: PLC0415 - not for unit tests

    migrate(stack.postgres.create_database(TEMPLATE))
    return TEMPLATE


@pytest.fixture
def database_url(stack: Stack, template: str) -> Iterator[str]:
    """A migrated database of this test's own."""
    name = f"test_{uuid4().hex[:12]}"
    yield copy_database(stack, name, template)
    drop_database(stack, name)


@pytest.fixture
def make_site(stack: Stack, template: str, tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Makes sites: `make_site(partitions=3, batch_max_records="100")`."""
    sites: list[tuple[Site, str]] = []

    def make(partitions: int = 3, *, topics: bool = True, **settings: str) -> Site:
        name = f"site_{uuid4().hex[:12]}"
        directory = tmp_path / name
        directory.mkdir()
        url = copy_database(stack, name, template)
        site = Site(stack, url, directory, {f"SYNC_WORKER_{key.upper()}": value for key, value in settings.items()})
        sites.append((site, name))
        if topics:
            site.create_topics(partitions)
        return site

    yield make
    for site, name in sites:
        site.close()
        drop_database(stack, name)


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    """A site with three partitions per topic and no worker yet."""
    return make_site()
