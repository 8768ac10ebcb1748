"""The far database is only far: what passes is late by as much as was asked for, and the same to the byte."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from bench.delay import delayed

LARGE = bytes(range(256)) * 20_000


@pytest.fixture
def echo_url() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                while data := connection.recv(1 << 16):
                    connection.sendall(data)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"postgresql://somebody@127.0.0.1:{listener.getsockname()[1]}/x"
        thread.join(60)


def test_bytes_come_back_unchanged_and_not_earlier_than_twice_the_one_way_time(echo_url: str) -> None:
    with delayed(echo_url, 0.05) as through:
        url = through(echo_url)
        assert url.startswith("postgresql://somebody@127.0.0.1:")
        with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1].split("/")[0]))) as connection:
            started = time.monotonic()
            sender = threading.Thread(target=connection.sendall, args=(LARGE,))
            sender.start()
            first = connection.recv(1)
            took = time.monotonic() - started
            received = bytearray(first)
            while len(received) < len(LARGE):
                received += connection.recv(1 << 16)
            sender.join()
    assert took >= 0.1
    assert bytes(received) == LARGE
