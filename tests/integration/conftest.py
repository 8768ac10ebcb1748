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
