"""Who publishes: a row that one worker holds for a few seconds at a time, by the database's clock.

It only saves work: what keeps two leaders apart is Kafka's fencing. On a session of its own, since the windows' one may
be in the middle of a long read when the lease must be renewed.
"""

import time
from collections.abc import Callable

from sync_worker.database.sessions import Session, relay_session
from sync_worker.database.statements import load

SQL = load("sync_worker.outbox", "statements.sql")

LEASE_S = 5.0
RENEW_AFTER_S = 1.5


class Lease:
    """The lease as seen by `holder`, a name that no other worker has."""

    def __init__(self, database_url: str, holder: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._session: Session = relay_session(database_url)
        self._holder = holder
        self._clock = clock
        self._renewed_at = float("-inf")

    def hold(self) -> bool:
        """Take the lease, or keep it; False where another worker holds it."""
        if self._clock() - self._renewed_at < RENEW_AFTER_S:
            return True
        held = self._session.execute(SQL["lease_hold"], {"holder": self._holder, "seconds": LEASE_S}).fetchone()
        self._renewed_at = self._clock() if held is not None else float("-inf")
        return held is not None

    def release(self) -> None:
        """Let another worker lead at once."""
        self._renewed_at = float("-inf")
        self._session.execute(SQL["lease_release"], {"holder": self._holder})

    def close(self) -> None:
        self._session.close()
