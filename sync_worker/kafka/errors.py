"""Kafka's errors as the worker's own: which one means "wait", which one "stop and do this" (design §6).

A client's error callback tells the reason (a refused password, a name that isn't known), the call
that failed afterwards only that it took too long. So both are put into the message.
"""

import re
import time
from collections.abc import Callable
from typing import Any, Final

from confluent_kafka import KafkaError

from sync_worker.errors import FatalError, RetryableError, SyncWorkerError

_NOT_ALLOWED: Final = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "topic",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "consumer group",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "cluster",
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: "transactional id",
}
_LOGIN: Final = frozenset({KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED})
# Of failed TLS handshakes those that fail again until somebody mends a certificate. A broker that restarts breaks one off, too.
_UNTRUSTED: Final = re.compile(
    r"certificate verify failed|alert .*certificate|alert unknown ca|certificate_unknown", re.IGNORECASE
)
COMPLAINT_MAX_AGE_S: Final = 30.0
_AWAY: Final = frozenset({
    KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._RESOLVE, KafkaError._SSL, KafkaError._TIMED_OUT,
    KafkaError._TIMED_OUT_QUEUE, KafkaError._MSG_TIMED_OUT,
})  # fmt: skip
# What a broker says while it starts or hands over to another, which Kafka's own clients try again. Asked for by the
# admin client, librdkafka doesn't mark it as retriable.
_PASSING: Final = frozenset({
    KafkaError.LEADER_NOT_AVAILABLE, KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH, KafkaError.OFFSET_NOT_AVAILABLE, KafkaError.PREFERRED_LEADER_NOT_AVAILABLE,
    KafkaError.ELIGIBLE_LEADERS_NOT_AVAILABLE, KafkaError.REPLICA_NOT_AVAILABLE, KafkaError.KAFKA_STORAGE_ERROR,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS, KafkaError.COORDINATOR_NOT_AVAILABLE, KafkaError.NOT_COORDINATOR,
    KafkaError.UNSTABLE_OFFSET_COMMIT, KafkaError.CONCURRENT_TRANSACTIONS, KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError.UNKNOWN_MEMBER_ID, KafkaError.ILLEGAL_GENERATION, KafkaError.FENCED_MEMBER_EPOCH,
    KafkaError.STALE_MEMBER_EPOCH, KafkaError.NOT_CONTROLLER, KafkaError.STALE_BROKER_EPOCH,
    KafkaError.BROKER_NOT_AVAILABLE, KafkaError.NETWORK_EXCEPTION, KafkaError.REQUEST_TIMED_OUT,
    KafkaError.REBOOTSTRAP_REQUIRED, KafkaError.THROTTLING_QUOTA_EXCEEDED, KafkaError.NOT_ENOUGH_REPLICAS,
    KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND, KafkaError._WAIT_COORD, KafkaError._WAIT_CACHE,
    KafkaError._UNKNOWN_BROKER, KafkaError._NODE_UPDATE, KafkaError._DESTROY_BROKER, KafkaError._DESTROY,
    KafkaError._RETRY, KafkaError._NOENT,  # no leaders found
})  # fmt: skip


class KafkaFaults:
    """What a client complained about, kept for the message of the call that failed. `config` goes to the client."""

    def __init__(self, address: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._address = address
        self._clock = clock
        self._last: KafkaError | None = None
        self._noted_at = float("-inf")
        self._answered = False

    def answered(self) -> None:
        """Kafka has answered. A certificate that is refused from now on is one that is being replaced, or ran out: wait."""
        self._answered = True

    @property
    def config(self) -> dict[str, Any]:
        """The client's error callback."""
        return {"error_cb": self._noted}

    def _noted(self, error: KafkaError) -> None:
        # "All brokers down" follows the reason and would hide it.
        if self._complaint() is None or error.code() != KafkaError._ALL_BROKERS_DOWN:
            self._last, self._noted_at = error, self._clock()

    def _complaint(self) -> KafkaError | None:
        """What was complained about lately. Older complaints are of other faults."""
        return self._last if self._clock() - self._noted_at < COMPLAINT_MAX_AGE_S else None

    def error(self, doing: str, failed: KafkaError | Exception) -> SyncWorkerError:
        """The worker's error for a call that failed while `doing` something ("creating topics")."""
        error: Any = failed.args[0] if isinstance(failed, Exception) and failed.args else failed
        if not isinstance(error, KafkaError):
            return FatalError(f"{doing}: {failed}")
        if refused := self._refused(doing, error):
            return refused
        if error.code() in _AWAY:
            complaint = self._complaint()
            if complaint is not None and not self._answered and _UNTRUSTED.search(complaint.str()):
                return FatalError(
                    f"{doing}: no trust between us and Kafka at {self._address}: {complaint.str()}; look at the certificates and"
                    " at SYNC_WORKER_KAFKA_SSL_CA_LOCATION, _CERTIFICATE_LOCATION and _KEY_LOCATION"
                )
            reason = f" ({complaint.str()})" if complaint is not None else ""
            return RetryableError(f"{doing}: Kafka at {self._address} does not answer{reason}")
        kind = RetryableError if error.retriable() or error.code() in _PASSING else FatalError
        return kind(f"{doing}: {error.str()}")

    def waited_for(self, doing: str, failed: KafkaError | Exception) -> SyncWorkerError:
        """The same for a loop of `run`, which waits for whatever an operator needn't mend: a broker's error may pass."""
        error = self.error(doing, failed)
        if isinstance(error, RetryableError):
            return error
        kafka_error: Any = failed.args[0] if isinstance(failed, Exception) and failed.args else failed
        if isinstance(kafka_error, KafkaError) and self._refused(doing, kafka_error) is None:
            return RetryableError(str(error))
        return error

    def _refused(self, doing: str, error: KafkaError) -> FatalError | None:
        """What only an operator can mend: a refused login or a missing right."""
        complaint = self._complaint()
        if complaint is not None and complaint.code() in _LOGIN:
            return FatalError(f"{doing}: Kafka at {self._address} refused the login: {complaint.str()}")
        if error.code() in _LOGIN:
            return FatalError(f"{doing}: Kafka at {self._address} refused the login: {error.str()}")
        if error.code() in _NOT_ALLOWED:
            return FatalError(f"{doing}: not allowed to use this {_NOT_ALLOWED[error.code()]}: {error.str()}")
        return None
