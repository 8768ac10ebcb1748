"""The HTTP port against clients that mean harm: whatever they do, `/livez` is answered, memory and threads stay bounded, nothing changes.

The server's own timeouts are set to an hour, so that it can't be they that help.
"""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from http import HTTPStatus

import httpx
import psutil
import pytest

from sync_worker.service.http import HttpServer, Response
from tests.support.site import wait_for

LARGE = b"x" * 1_000_000
CONNECTIONS = 600  # three times as many as the server holds


class Target:
    """A server and what its routes were asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.server = HttpServer("127.0.0.1", 0, {"/livez": self.livez, "/large": self.large})
        self.server._server.adj.channel_timeout = 3600

    def livez(self) -> Response:
        self.asked.append("/livez")
        return Response(HTTPStatus.OK, "text/plain", b"ok\n")

    def large(self) -> Response:
        self.asked.append("/large")
        return Response(HTTPStatus.OK, "text/plain", LARGE)

    def connect(self) -> socket.socket:
        assert self.server.port is not None
        return socket.create_connection(("127.0.0.1", self.server.port), timeout=60)

    def exchange(self, request: bytes) -> bytes:
        """What comes back until the server has had enough, or we have sent everything and it has closed."""
        with self.connect() as connection:
            with suppress(OSError):
                connection.sendall(request)
                connection.shutdown(socket.SHUT_WR)
            received = b""
            with suppress(ConnectionError):
                while chunk := connection.recv(65536):
                    received += chunk
            return received

    def assert_alive(self) -> None:
        answer = httpx.get(f"http://127.0.0.1:{self.server.port}/livez", timeout=60)
        assert (answer.status_code, answer.text) == (200, "ok\n")


@pytest.fixture
def target() -> Iterator[Target]:
    one = Target()
    yield one
    one.server.close()


def test_hundreds_of_connections_that_never_finish_their_request_keep_nobody_waiting(target: Target) -> None:
    process, threads = psutil.Process(), threading.active_count()
    before = process.memory_info().rss
    with ExitStack() as held:
        for number in range(CONNECTIONS):
            connection = held.enter_context(target.connect())
            with suppress(ConnectionError):
                connection.sendall(b"GET /livez HTTP/1.1\r\nX: " + b"a" * (number % 10_000))
            if number % 100 == 99:
                target.assert_alive()
        assert len(target.server._server.active_channels) <= 200
        assert threading.active_count() <= threads
        assert process.memory_info().rss - before < 50 << 20
    target.assert_alive()


def test_clients_that_ask_a_thousand_times_and_read_nothing_are_answered_once_each(target: Target) -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    with ExitStack() as held:
        for _ in range(50):
            connection = held.enter_context(target.connect())
            with suppress(ConnectionError):
                connection.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)
        target.assert_alive()
        assert process.memory_info().rss - before < 200 << 20
    target.assert_alive()
    assert target.asked.count("/large") <= 50


def test_requests_sent_together_get_one_answer_and_the_end_of_the_connection(target: Target) -> None:
    answer = target.exchange(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
    assert answer.count(b"HTTP/1.1 200 OK") == 1
    assert b"\r\nConnection: close\r\n" in answer


REQUESTS = {
    "a line without end": b"GET /" + b"a" * 5_000_000,
    "a flood of headers": b"GET /livez HTTP/1.1\r\n" + b"X: y\r\n" * 200_000 + b"\r\n",
    "one header of megabytes": b"GET /livez HTTP/1.1\r\nX: " + b"y" * 5_000_000 + b"\r\n\r\n",
    "a body of gigabytes announced": b"POST /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999999\r\n\r\n" + b"z" * 100_000,
    "a body without end": b"POST /livez HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"400\r\n" + b"z" * 1024 + b"\r\n",
    "two lengths": b"POST /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 30\r\n\r\nabc",
    "a length and chunks": b"POST /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a negative length": b"POST /livez HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    "an unknown transfer encoding": b"POST /livez HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n",
    "an unknown version": b"GET /livez HTTP/9.9\r\n\r\n",
    "a bare line feed": b"GET /livez HTTP/1.1\nHost: x\n\n",
    "a NUL in a header": b"GET /livez HTTP/1.1\r\nX: a\0b\r\n\r\n",
    "a terminal's escapes": b"GET /livez HTTP/1.1\r\nHost: \x1b[2J\xff\r\n\r\n",
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 500,  # the beginning of TLS
    "nothing": b"",
    "a method of its own": b"BREW /livez HTTP/1.1\r\nHost: x\r\n\r\n",
    "CONNECT": b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n\r\n",
    "an upgrade": b"GET /livez HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
    "expecting to go on": b"POST /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\nabc",
}  # fmt: skip


@pytest.mark.parametrize("what", REQUESTS)
def test_a_request_that_is_none_is_refused_or_answered_and_the_next_one_is_served(target: Target, what: str) -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    answer = target.exchange(REQUESTS[what])
    statuses = {int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3}) ", answer)}
    assert statuses <= {100, 200, 400, 404, 405, 413, 414, 431, 501, 505}
    target.assert_alive()
    assert process.memory_info().rss - before < 50 << 20


@pytest.mark.parametrize(
    "path",
    [
        "/../../../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/livez/../../etc/passwd",
        "/livez%00.html",
        "/livez;x",
        "/large/",
        "*",
        "/\u2028",
        "/%ff%fe",
        "/livez%0d%0aSet-Cookie:%20a=b",
    ],
)
def test_no_path_leads_anywhere_but_to_a_route(target: Target, path: str) -> None:
    answer = target.exchange(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert re.match(rb"HTTP/1\.[01] (404|400) ", answer), answer[:200]
    assert b"root:" not in answer
    assert b"Set-Cookie" not in answer.partition(b"\r\n\r\n")[0]
    assert target.asked == []


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /livez HTTP/1.0\r\n\r\n",
        b"GET /livez HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n\r\n",
        b"GET /livez?a=%s&b={} HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://elsewhere.example/livez HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=["HTTP/1.0", "HTTP/1.0 to be kept", "no host", "a query", "an absolute address"],
)
def test_old_and_odd_clients_are_answered(target: Target, request_: bytes) -> None:
    answer = target.exchange(request_)
    assert re.match(rb"HTTP/1\.[01] 200 OK\r\n", answer), answer[:200]
    assert answer.endswith(b"\r\n\r\nok\n")


def test_a_storm_leaves_no_connection_thread_or_file_behind(target: Target) -> None:
    process = psutil.Process(os.getpid())
    target.assert_alive()
    threads, files = threading.active_count(), process.num_fds()
    for _ in range(20):
        for request in REQUESTS.values():
            if len(request) < 1000:
                target.exchange(request)
    target.assert_alive()
    assert threading.active_count() <= threads
    wait_for(lambda: process.num_fds() <= files + 5, what="the ends of the last connections")
