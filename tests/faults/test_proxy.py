"""The proxies do to connections what they are told, and count it: against a server that answers what it was sent, in capitals."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from devstack.ports import HOST, free_port
from tests.faults.proxy import COMMIT, Proxies, Proxy, Weather
from tests.support.site import wait_for


class Capitals(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while data := self.request.recv(4096):
            self.server.heard.append(data)  # type: ignore[attr-defined]  # of the server below
            self.request.sendall(data.upper())


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    heard: list[bytes]

    def handle_error(self, request: object, client_address: object) -> None:
        """A connection that was reset, as is the purpose here."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server((HOST, 0), Capitals) as running:
        running.heard = []
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with Proxies() as proxies:
        yield proxies.to("server", server.server_address[1], free_port())


@contextmanager
def client(proxy: Proxy) -> Iterator[socket.socket]:
    with socket.create_connection((HOST, proxy.port), timeout=60) as connected:
        yield connected


def ask(connected: socket.socket, text: bytes) -> bytes:
    connected.sendall(text)
    return connected.recv(4096)


def is_cut(connected: socket.socket, text: bytes = b"") -> bool:
    """Reset or ended, perhaps while it was written to."""
    try:
        return ask(connected, text) == b""
    except ConnectionError:
        return True


def test_without_weather_everything_passes_both_ways(proxy: Proxy) -> None:
    with client(proxy) as connected:
        assert ask(connected, b"hello") == b"HELLO"
        assert proxy.connections == 1


def test_a_cut_after_some_bytes_passes_those_and_resets(proxy: Proxy, server: Server) -> None:
    with client(proxy) as connected:
        assert ask(connected, b"hello") == b"HELLO"
        with proxy.under(Weather(cut_after=3)) as effect:
            assert is_cut(connected, b"farewell")
            assert effect.touched == 1
    assert b"".join(server.heard) in {b"hello", b"hellofar"}


@pytest.mark.parametrize(("when", "heard"), [("before", b""), ("after", COMMIT)])
def test_a_commit_is_cut_before_the_server_has_it_or_after(
    proxy: Proxy, server: Server, when: str, heard: bytes
) -> None:
    with client(proxy) as connected:
        assert ask(connected, b"hello") == b"HELLO"
        with proxy.under(Weather(cut_commit=when)) as effect:  # type: ignore[arg-type]  # one of the two
            assert ask(connected, b"more") == b"MORE"
            assert is_cut(connected, COMMIT)
            assert effect.touched == 1
    wait_for(lambda: b"".join(server.heard) == b"hellomore" + heard, what="the server hearing what it was sent")


def test_what_is_stalled_is_delivered_when_the_weather_clears(proxy: Proxy) -> None:
    with client(proxy) as connected:
        connected.settimeout(0.3)
        with proxy.under(Weather(stalled=True)) as effect:
            with pytest.raises(TimeoutError):
                ask(connected, b"hello")
            wait_for(lambda: effect.touched >= 1, what="the proxy withholding it")
        connected.settimeout(60)
        assert connected.recv(4096) == b"HELLO"


def test_a_half_open_connection_is_silent_until_it_is_reset_and_others_are_not(proxy: Proxy, server: Server) -> None:
    with client(proxy) as connected:
        assert ask(connected, b"hello") == b"HELLO"
        connected.settimeout(0.3)
        with proxy.under(Weather(swallowing=True)) as effect:
            with pytest.raises(TimeoutError):
                ask(connected, b"anybody")
            with client(proxy) as other:
                assert ask(other, b"hello") == b"HELLO"
            wait_for(lambda: effect.touched == 1, what="the proxy swallowing it")
        connected.settimeout(60)
        assert is_cut(connected)
    assert b"anybody" not in b"".join(server.heard)


def test_refused_connections_are_counted(proxy: Proxy) -> None:
    def is_refused() -> bool:
        try:
            with client(proxy) as connected:
                return is_cut(connected, b"hello")
        except ConnectionError:
            return True

    with proxy.under(Weather(refusing=True)) as effect:
        assert is_refused()
        assert effect.touched == 1


def test_all_connections_can_be_cut_at_once(proxy: Proxy) -> None:
    with client(proxy) as one, client(proxy) as two:
        assert ask(one, b"1") == ask(two, b"2").replace(b"2", b"1")
        assert proxy.cut_all() == 2


def test_an_answer_can_be_given_instead_of_the_services(proxy: Proxy, server: Server) -> None:
    with proxy.under(Weather(answer=b"500")), client(proxy) as connected:
        assert ask(connected, b"hello") == b"500"
    assert server.heard == []


def test_what_is_slow_comes_all_the_same(proxy: Proxy) -> None:
    with client(proxy) as connected, proxy.under(Weather(delay_s=0.05, bytes_per_s=1000)) as effect:
        assert ask(connected, b"hello") == b"HELLO"
        assert effect.touched == 2
