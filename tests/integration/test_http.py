"""The HTTP port with a real server and real sockets: what each endpoint answers, and that none can be held up."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from devstack.ports import free_port
from sync_worker.errors import FatalError, RetryableError
from sync_worker.events import Partition
from sync_worker.service.document import StatusDocument
from sync_worker.service.health import Health
from sync_worker.service.http import HttpServer, routes
from sync_worker.service.metrics import Metrics
from sync_worker.service.page.observing import Observer
from sync_worker.service.page.rendering import Page
from sync_worker.service.redaction import Redactor
from tests.support.site import wait_for


class Served:
    """A server on a free port with everything that its routes show."""

    def __init__(self) -> None:
        self.health = Health(["database"])
        self.metrics = Metrics(CollectorRegistry())
        self.status: Callable[[], Mapping[str, Any]] = lambda: {"settled": True}
        self.now = 0.0
        redactor = Redactor(["s3cr3t-w0rd"])
        self.document = StatusDocument(self.read_status, redactor, lambda: self.now)
        page = Page(Observer(self.document, list, redactor), self.health, holder="host:1:a", group="group")
        shown = routes(self.health, self.metrics.registry, self.document, page)
        self.server = HttpServer("127.0.0.1", 0, shown)
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.server.port}", timeout=60)

    def read_status(self) -> Mapping[str, Any]:
        return self.status()

    def connect(self) -> socket.socket:
        assert self.server.port is not None
        return socket.create_connection(("127.0.0.1", self.server.port), timeout=60)


@pytest.fixture
def served() -> Iterator[Served]:
    one = Served()
    yield one
    one.http.close()
    one.server.close()


@contextmanager
def held(served: Served) -> Iterator[threading.Event]:
    """A status document that is being made until the event is set."""
    entered, release = threading.Event(), threading.Event()

    def slow() -> Mapping[str, Any]:
        entered.set()
        release.wait(200)
        return {"settled": False}

    served.status = slow
    reader = threading.Thread(target=served.http.get, args=("/status.json",))
    reader.start()
    try:
        assert entered.wait(60)
        yield release
    finally:
        release.set()
        reader.join()


def test_livez_names_each_loop_and_fails_when_one_hangs(served: Served) -> None:
    served.health.register("intake", max_silence_s=60)
    answer = served.http.get("/livez")
    assert answer.status_code == 200
    assert answer.text.startswith("ok intake: ")
    served.health.register("relay", max_silence_s=-1)
    answer = served.http.get("/livez")
    assert answer.status_code == 503
    assert "failed relay: last progress" in answer.text
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"


def test_readyz_names_each_condition_and_why_not(served: Served) -> None:
    served.health.set_ready("broker", ok=False, reason="postgresql://u:word@h\nrefused")
    answer = served.http.get("/readyz")
    assert answer.status_code == 503
    assert answer.text == "failed database: not known yet\nfailed broker: postgresql://u:***@h\\nrefused\nfailed\n"
    served.health.set_ready("database", ok=True)
    served.health.set_ready("broker", ok=True)
    answer = served.http.get("/readyz")
    assert (answer.status_code, answer.text) == (200, "ok database\nok broker\nok\n")


def test_metrics_are_prometheus_text_with_our_names_only(served: Served) -> None:
    served.metrics.records.labels("segments.membership", "applied").inc(3)
    served.metrics.set_partition(Partition("segments.membership", 2), position=5, end=9)
    served.metrics.set_partition(Partition("segments.membership", 3), position=5, end=4)
    served.metrics.forget_partition(Partition("segments.membership", 3))
    answer = served.http.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    assert all(name[0].startswith("sync_worker_") for name in samples)
    assert samples["sync_worker_records_total", "applied", "segments.membership"] == 3
    lags = {name: value for name, value in samples.items() if name[0] == "sync_worker_lag"}
    assert lags == {("sync_worker_lag", "2", "segments.membership"): 4}
    assert samples["sync_worker_dead_letters_total", "undecodable"] == 0


def test_status_is_the_document_kept_for_a_second(served: Served) -> None:
    calls = count(1)
    served.status = lambda: {"settled": True, "calls": next(calls)}
    assert served.http.get("/status.json").json() == {"settled": True, "calls": 1}
    served.now = 0.9
    assert served.http.get("/status.json").json()["calls"] == 1
    served.now = 1.1
    answer = served.http.get("/status.json")
    assert answer.json()["calls"] == 2
    assert answer.headers["content-type"] == "application/json"


def test_a_status_that_cannot_be_read_is_503_with_the_reason_and_no_secret(served: Served) -> None:
    def away() -> Mapping[str, Any]:
        raise RetryableError("the database does not answer: postgresql://u:word@h, s3cr3t-w0rd")

    served.status = away
    answer = served.http.get("/status.json")
    assert answer.status_code == 503
    assert answer.json() == {"error": "the database does not answer: postgresql://u:***@h, ***"}

    def defect() -> Mapping[str, Any]:
        raise ValueError("s3cr3t-w0rd")

    served.now, served.status = 2.0, defect
    answer = served.http.get("/status.json")
    assert answer.status_code == 503
    assert answer.json() == {"error": "ValueError; the worker's log says more"}
    served.now, served.status = 4.0, lambda: {"leader": "postgresql://u:word@h"}
    assert served.http.get("/status.json").json() == {"leader": "postgresql://u:***@h"}


@pytest.mark.parametrize("path", ["/nope", "/status.json/", "/livez/../metrics", "/%00", "/metrics%0d%0aX:y"])
def test_anything_else_is_404_and_points_at_the_status(served: Served, path: str) -> None:
    with served.connect() as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = everything(connection)
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert answer.endswith(b"the worker's state is at / and /status.json\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_other_methods_than_get_and_head_are_405(served: Served, method: str) -> None:
    for path in ("/", "/livez", "/status.json"):
        answer = served.http.request(method, path)
        assert answer.status_code == 405
        assert answer.headers["allow"] == "GET, HEAD"


def test_head_is_get_without_a_body(served: Served) -> None:
    got, head = served.http.get("/status.json"), served.http.head("/status.json")
    assert head.status_code == got.status_code == 200
    assert head.headers["content-length"] == got.headers["content-length"]
    assert head.content == b""


def test_every_answer_has_the_security_headers_and_names_no_server(served: Served) -> None:
    for path in ("/", "/livez", "/readyz", "/metrics", "/status.json", "/nope"):
        headers = served.http.get(path).headers
        assert headers["cache-control"] == "no-store"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["referrer-policy"] == "no-referrer"
        assert "server" not in headers


def test_a_slow_status_holds_up_no_probe(served: Served) -> None:
    readers: list[threading.Thread] = []

    def probes_are_answered_at_once() -> bool:
        coming = [threading.Thread(target=served.http.get, args=("/status.json",)) for _ in range(20)]
        readers.extend(coming)
        for reader in coming:
            reader.start()
        started = time.monotonic()
        for _ in range(5):
            assert served.http.get("/livez").status_code == 200
        return time.monotonic() - started < 3

    with held(served):
        # Behind those who wait for a status they would never be; on a busy machine anything may take as long now and then.
        wait_for(probes_are_answered_at_once, what="probes beside a slow status")
    for reader in readers:
        reader.join()


def test_more_readers_than_may_wait_are_sent_away(served: Served) -> None:
    with held(served):
        readers: list[threading.Thread] = []

        def five_are_sent_away() -> bool:
            """Of eight. Who may wait does so for five seconds: where some come later than that, others are to come."""
            said: list[str] = []
            coming = [
                threading.Thread(target=lambda: said.append(served.http.get("/status.json").text)) for _ in range(8)
            ]
            readers.extend(coming)
            for reader in coming:
                reader.start()
            deadline = time.monotonic() + 4
            while sum("too many" in text for text in said) < 5 and time.monotonic() < deadline:
                threading.Event().wait(0.01)
            return sum("too many" in text for text in said) >= 5

        wait_for(five_are_sent_away, what="five that are sent away")
    for reader in readers:
        reader.join()


def test_a_client_that_sends_a_byte_now_and_then_is_cut_off(served: Served) -> None:
    with served.connect() as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\n")
        assert 4 < seconds_until_cut_off(connection) < 100


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (b"GET /livez HTTP/1.1\r\nX: " + b"a" * 20_000 + b"\r\n\r\n", b"431"),
        (b"POST /livez HTTP/1.1\r\nContent-Length: 5000000\r\n\r\n", b"413"),
        (b"nonsense\r\n\r\n", b"400"),
    ],
    ids=["huge header", "huge body", "no http"],
)
def test_requests_that_are_too_large_or_none_are_refused(served: Served, request_: bytes, code: bytes) -> None:
    with served.connect() as connection:
        connection.sendall(request_)
        answer = everything(connection)
    # With more of it still coming, the answer may be overtaken by the end of the connection.
    assert answer[9:12] in {code, b""}
    assert served.http.get("/livez").status_code == 200


def test_minus_one_is_off() -> None:
    server = HttpServer("127.0.0.1", -1, {})
    assert server.port is None
    server.close()


def test_a_port_that_is_taken_is_an_error_that_says_what_to_do(served: Served) -> None:
    assert served.server.port is not None
    with pytest.raises(FatalError, match="SYNC_WORKER_HTTP_PORT"):
        HttpServer("127.0.0.1", served.server.port, {})
    with pytest.raises(FatalError, match="SYNC_WORKER_HTTP_HOST"):
        HttpServer("no-such-host.invalid", 0, {})


def test_close_frees_the_port_and_may_be_repeated() -> None:
    port = free_port()  # none that the system gives to somebody else in between
    server = HttpServer("127.0.0.1", port, {})
    with socket.create_connection(("127.0.0.1", port), timeout=60):
        server.close()
        server.close()
    again = HttpServer("127.0.0.1", port, {})
    assert again.port == port
    again.close()


def test_a_loop_that_ends_by_itself_while_it_is_closed_keeps_its_trigger(monkeypatch: pytest.MonkeyPatch) -> None:
    server = HttpServer("127.0.0.1", 0, {})
    pull, thread = server._server.pull_trigger, server._thread
    assert thread is not None

    def pull_late() -> None:
        thread.join(2)  # longer than one turn of the loop, which has seen by then that it is to end
        pull()

    monkeypatch.setattr(server._server, "pull_trigger", pull_late)
    server.close()
    assert not thread.is_alive()


def test_a_route_that_fails_is_500_and_tells_nothing() -> None:
    def broken() -> Any:
        raise ValueError("s3cr3t-w0rd")

    server = HttpServer("127.0.0.1", 0, {"/broken": broken})
    answer = httpx.get(f"http://127.0.0.1:{server.port}/broken", timeout=60)
    server.close()
    assert answer.status_code == 500
    assert "s3cr3t" not in answer.text


def everything(connection: socket.socket) -> bytes:
    received = b""
    with suppress(ConnectionResetError):
        while chunk := connection.recv(65536):
            received += chunk
    return received


def seconds_until_cut_off(connection: socket.socket) -> float:
    """Send a byte now and then until the other side has had enough."""
    started = time.monotonic()
    with suppress(ConnectionError):
        while time.monotonic() - started < 120:
            connection.sendall(b"x")
            threading.Event().wait(0.5)
    return time.monotonic() - started


def test_the_status_document_must_be_json(served: Served) -> None:
    served.status = lambda: {"id": object, "n": 1}
    assert json.loads(served.http.get("/status.json").text)["n"] == 1
