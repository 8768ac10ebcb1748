"""What the tests of several rooms at once share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.support.sessions import Writer
from tests.support.site import Site


@pytest.fixture
def writer(site: Site) -> Iterator[Callable[..., Writer]]:
    """Makes sessions of the worker's own code over the test's site, and closes them in the end."""
    with ExitStack() as opened:
        yield lambda **options: opened.enter_context(Writer(site.database_url, **options))


@pytest.fixture
def time_to_stand_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions of the worker's code in the test's process outlive it standing still in the middle of a transaction.

    A worker takes the transaction again; an operator runs the command again, which tests don't.
    """
    monkeypatch.setattr("sync_worker.database.sessions.IDLE_IN_TRANSACTION_TIMEOUT_S", 120)
