"""Databases copied and dropped with patience: PostgreSQL gives sessions of others (autovacuum's, those that it ends) five seconds
to leave, and on a busy machine that isn't always enough.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from devstack import DevstackError, Stack

_T = TypeVar("_T")
_PATIENCE_S = 60.0


def copy_database(stack: Stack, name: str, template: str) -> str:
    """The URL of a new database that is a copy."""
    return _patiently(lambda: stack.postgres.create_database(name, template=template))


def drop_database(stack: Stack, name: str) -> None:
    """Drop it if it exists, ending the sessions that use it."""
    _patiently(lambda: stack.postgres.drop_database(name))


def _patiently(attempt: Callable[[], _T]) -> _T:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return attempt()
        except DevstackError as error:
            if "is being accessed by other users" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(0.5)
