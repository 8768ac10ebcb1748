"""Kafka's errors as the worker's own: an outage is waited for, a refusal stops, and both say why."""

import pytest
from confluent_kafka import KafkaError, KafkaException

from sync_worker.errors import FatalError, RetryableError, SyncWorkerError
from sync_worker.kafka.errors import KafkaFaults

TRANSPORT, ALL_DOWN, AUTHENTICATION, TIMED_OUT = (
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._AUTHENTICATION,
    KafkaError._TIMED_OUT,
)


def said(*before: KafkaError) -> KafkaFaults:
    faults = KafkaFaults("broker.example:9092")
    for error in before:
        faults.config["error_cb"](error)
    return faults


@pytest.mark.parametrize("code", [TRANSPORT, ALL_DOWN, TIMED_OUT])
def test_a_broker_that_does_not_answer_is_an_outage_with_the_reason_heard_before(code: int) -> None:
    faults = said(KafkaError(TRANSPORT, "connection refused"), KafkaError(ALL_DOWN, "1/1 brokers are down"))
    error = faults.error("creating topics", KafkaException(KafkaError(code, "timed out")))
    assert isinstance(error, RetryableError)
    assert str(error) == "creating topics: Kafka at broker.example:9092 does not answer (connection refused)"


def test_a_refused_login_is_no_outage_though_it_ends_in_a_timeout() -> None:
    faults = said(KafkaError(AUTHENTICATION, "invalid credentials"), KafkaError(ALL_DOWN))
    error = faults.error("reading x", KafkaError(TIMED_OUT))
    assert isinstance(error, FatalError)
    assert "refused the login: invalid credentials" in str(error)


UNTRUSTED = [
    "SSL handshake failed: error:0A000086:SSL routines::certificate verify failed: broker certificate could not be verified",
    "Receive failed: error:0A000412:SSL routines::ssl/tls alert bad certificate: SSL alert number 42",
    "Receive failed: error:0A000418:SSL routines::tlsv1 alert unknown ca: SSL alert number 48",
    "Receive failed: error:0A00045C:SSL routines::tlsv13 alert certificate required: SSL alert number 116",
]


@pytest.mark.parametrize("reason", UNTRUSTED)
def test_a_certificate_that_is_refused_stops_who_starts_and_lets_wait_who_was_answered_before(reason: str) -> None:
    faults = said(KafkaError(KafkaError._SSL, reason), KafkaError(ALL_DOWN))
    timeout = KafkaError(TIMED_OUT)
    error = faults.error("asking for topics", timeout)
    assert isinstance(error, FatalError)
    assert reason in str(error)
    assert "SYNC_WORKER_KAFKA_SSL_CA_LOCATION" in str(error)
    assert isinstance(faults.waited_for("reading", timeout), RetryableError)
    faults.answered()
    waits = faults.error("asking for topics", timeout)
    assert isinstance(waits, RetryableError)
    assert reason in str(waits)


def test_a_handshake_that_was_broken_off_is_waited_for() -> None:
    faults = said(
        KafkaError(KafkaError._SSL, "SSL handshake failed: Disconnected: connecting to a PLAINTEXT broker listener?")
    )
    assert isinstance(faults.error("asking for topics", KafkaError(TIMED_OUT)), RetryableError)


def test_what_is_not_allowed_is_named() -> None:
    error = said().error("reading x", KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED))
    assert isinstance(error, FatalError)
    assert "not allowed to use this topic" in str(error)


@pytest.mark.parametrize(
    ("failed", "kind"),
    [
        (KafkaError(KafkaError.NOT_ENOUGH_REPLICAS, None, False, True), RetryableError),
        (KafkaError(KafkaError.POLICY_VIOLATION), FatalError),
        (ValueError("nonsense"), FatalError),
    ],
)
def test_any_other_error_is_an_outage_only_if_kafka_says_so(
    failed: KafkaError | Exception, kind: type[SyncWorkerError]
) -> None:
    error = said().error("reading x", failed)
    assert type(error) is kind
    assert str(error).startswith("reading x: ")


@pytest.mark.parametrize(
    "code",
    [
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.NOT_COORDINATOR,
        KafkaError._WAIT_COORD,
    ],
)
def test_what_a_broker_says_while_it_starts_is_waited_for_though_librdkafka_does_not_mark_it(code: int) -> None:
    error = said().error("asking for offsets of x", KafkaException(KafkaError(code)))
    assert isinstance(error, RetryableError)


def test_a_complaint_of_long_ago_explains_nothing_of_now() -> None:
    now = 0.0
    faults = KafkaFaults("broker.example:9092", lambda: now)
    faults.config["error_cb"](KafkaError(AUTHENTICATION, "invalid credentials"))
    now = 60.0
    error = faults.error("reading x", KafkaError(TIMED_OUT))
    assert isinstance(error, RetryableError)
    assert str(error) == "reading x: Kafka at broker.example:9092 does not answer"


def test_a_tls_handshake_that_broke_off_is_an_outage() -> None:
    """A broker that restarts breaks them off; a certificate that is really wrong says so for as long as it is."""
    faults = said(KafkaError(KafkaError._SSL, "SSL handshake failed: disconnected"))
    error = faults.error("reading x", KafkaError(TIMED_OUT))
    assert isinstance(error, RetryableError)
    assert "SSL handshake failed" in str(error)


def test_a_loop_waits_for_whatever_an_operator_need_not_mend() -> None:
    assert isinstance(said().waited_for("reading x", KafkaError(KafkaError.UNKNOWN)), RetryableError)
    assert isinstance(said().waited_for("reading x", KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)), FatalError)
    assert isinstance(said().waited_for("reading x", KafkaError(AUTHENTICATION)), FatalError)
