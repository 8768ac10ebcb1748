"""Who publishes: a row that one worker holds for a few seconds at a time, by the database's clock.

It only saves work: what keeps two leaders apart is Kafka's fencing. While held it is renewed from a thread and on a
session of its own, since a Kafka transaction or a long read may take longer than a lease.
"""

import threading
import time
from collections.abc import Callable

import structlog

from sync_worker.database.sessions import Session, relay_session, translated
from sync_worker.database.statements import load
from sync_worker.errors import SyncWorkerError

SQL = load("sync_worker.outbox", "statements.sql")

LEASE_S = 5.0
RENEW_EVERY_S = 1.5
# A holder that doesn't ask for so long is stuck: another worker may do better.
STUCK_AFTER_S = 20.0

log = structlog.get_logger(__name__)


class Lease:
    """The lease as seen by `holder`, a name that no other worker has. `hold` is for one thread."""

    def __init__(self, database_url: str, holder: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = database_url
        self._holder = holder
        self._clock = clock
        self._session: Session = relay_session(database_url)
        self._asked_at = clock()
        self._renewing: threading.Thread | None = None
        self._ended = threading.Event()

    def hold(self) -> bool:
        """Take the lease, or keep it; False where another worker holds it."""
        self._asked_at = self._clock()
        if self._renewing is not None:
            return self._renewing.is_alive()
        if not self._take(self._session):
            return False
        self._ended.clear()
        self._renewing = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._renewing.start()
        return True

    def release(self) -> None:
        """Let another worker lead at once."""
        self._end_renewing()
        self._session.execute(SQL["lease_release"], {"holder": self._holder})

    def close(self) -> None:
        """Stop renewing; the lease then ends by itself."""
        self._end_renewing()
        self._session.close()

    def _take(self, session: Session) -> bool:
        wanted = {"holder": self._holder, "seconds": LEASE_S}
        return session.execute(SQL["lease_hold"], wanted).fetchone() is not None

    def _renew(self) -> None:
        """Until it is lost, or nobody asks for it any more."""
        try:
            with translated(), relay_session(self._url) as session:
                while not self._ended.wait(RENEW_EVERY_S):
                    if self._clock() - self._asked_at > STUCK_AFTER_S or not self._take(session):
                        return
        except SyncWorkerError as error:
            log.warning("lease_not_renewed", reason=str(error))

    def _end_renewing(self) -> None:
        self._ended.set()
        if self._renewing is not None:
            self._renewing.join()
            self._renewing = None
