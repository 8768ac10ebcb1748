"""Erases a person, and says what is out of its reach: `erase USER` (contract §5).

The tables are cleared through enrollment/erase.py. Topics can't be: what they still hold of the person, and for how long,
is read from the broker beforehand, so that no erasure ends without saying it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar
from uuid import UUID

import structlog
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from sync_worker.database.revision import expect_revision
from sync_worker.database.sessions import Contention, Session, apply_session
from sync_worker.enrollment import erase
from sync_worker.enrollment.erase import Traces
from sync_worker.kafka.broker import Broker
from sync_worker.operations.operator import operator
from sync_worker.settings import Settings

# An LMS transaction that was left open with a row of the person ends by itself after 10 s.
PATIENCE_S = 30.0

_T = TypeVar("_T")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Retention:
    """How long a topic keeps what it holds of the person; times in milliseconds, -1 without end.

    deleted_after_ms: None where the topic is only compacted. compacted_after_ms and tombstones_kept_ms: None where it is
    not compacted. A log segment goes as a whole, which adds up to `segment_ms`.
    """

    topic: str
    deleted_after_ms: int | None
    compacted_after_ms: int | None
    tombstones_kept_ms: int | None
    segment_ms: int


class Erasure:
    """One person in the database and topics of the settings."""

    def __init__(self, settings: Settings, user_id: UUID) -> None:
        """Raises RetryableError while the database or the broker is away; nothing has happened then."""
        self._user_id = user_id
        topics = (
            settings.membership_topic, settings.sources_topic, settings.changes_topic, settings.dead_letters_topic
        )  # fmt: skip
        broker = Broker(settings)
        self.topics = [_retention(broker, topic) for topic in topics if topic]
        url = settings.database_url.get_secret_value()
        expect_revision(url, "erase")
        self._session: Session = apply_session(url, "erase")

    def close(self) -> None:
        self._session.close()

    def find(self) -> Traces:
        """What names the person now."""
        return erase.find(self._session, self._user_id)

    def erase(self) -> Traces:
        """Remove it; what was removed, and as `outbox` what the relay has still to publish. May be run again after any error."""
        by = operator()
        dead_letters = self._patiently(lambda: erase.erase_dead_letters(self._session, self._user_id, by))
        gone = self._patiently(lambda: erase.erase_person(self._session, self._user_id, by))
        return gone.with_dead_letters(dead_letters)

    def _patiently(self, attempt: Callable[[], _T]) -> _T:
        """A lock that is held too long is waited for in the worker's way: give way, and try again."""
        retrying = Retrying(
            retry=retry_if_exception_type(Contention),
            wait=wait_random_exponential(multiplier=0.1, max=1.0),
            stop=stop_after_delay(PATIENCE_S),
            before_sleep=_say,
            reraise=True,
        )
        return retrying(attempt)


def _say(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    log.warning("lock_wait", attempt=state.attempt_number, reason=str(error))


def _retention(broker: Broker, topic: str) -> Retention:
    config = broker.topic_config(topic)
    policies = config["cleanup.policy"].split(",")
    compacted = "compact" in policies
    return Retention(
        topic,
        deleted_after_ms=int(config["retention.ms"]) if "delete" in policies else None,
        compacted_after_ms=int(config["min.compaction.lag.ms"]) if compacted else None,
        tombstones_kept_ms=int(config["delete.retention.ms"]) if compacted else None,
        segment_ms=int(config["segment.ms"]),
    )
