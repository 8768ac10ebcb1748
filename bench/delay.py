"""A network of so many milliseconds between the workers and the database: a proxy in a process of its own.

Data is late, never less: what was sent meanwhile is under way at the same time, as on a long cable. It must never change a byte.
"""

import multiprocessing
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any
from urllib.parse import urlsplit, urlunsplit

_SPAWN = multiprocessing.get_context("spawn")
_CHUNK = 1 << 18


@contextmanager
def delayed(url: str, one_way_s: float) -> Iterator[Callable[[str], str]]:
    """Gives what turns a URL of that server into one through the proxy."""
    parts = urlsplit(url)
    ours, theirs = _SPAWN.Pipe()
    process = _SPAWN.Process(
        target=_serve, args=(parts.hostname, parts.port, one_way_s, theirs), daemon=True, name="delay"
    )
    process.start()
    port = ours.recv()

    def through(direct: str) -> str:
        there = urlsplit(direct)
        credentials, at, _ = there.netloc.rpartition("@")
        return urlunsplit(there._replace(netloc=f"{credentials}{at}127.0.0.1:{port}"))

    try:
        yield through
    finally:
        process.terminate()
        process.join()


def _serve(host: str, port: int, one_way_s: float, pipe: "Connection[Any, Any]") -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        pipe.send(listener.getsockname()[1])
        while True:
            client, _ = listener.accept()
            server = socket.create_connection((host, port))
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for source, target in ((client, server), (server, client)):
                under_way: SimpleQueue[tuple[float, bytes]] = SimpleQueue()
                threading.Thread(target=_take, args=(source, under_way, one_way_s), daemon=True).start()
                threading.Thread(target=_give, args=(target, under_way), daemon=True).start()


def _take(source: socket.socket, under_way: "SimpleQueue[tuple[float, bytes]]", one_way_s: float) -> None:
    data = b"?"
    while data:
        try:
            data = source.recv(_CHUNK)
        except OSError:  # its other half is gone
            data = b""
        under_way.put((time.monotonic() + one_way_s, data))


def _give(target: socket.socket, under_way: "SimpleQueue[tuple[float, bytes]]") -> None:
    # A peer that is gone is told so by the other direction.
    with suppress(OSError):
        while True:
            due, data = under_way.get()
            if (early := due - time.monotonic()) > 0:
                time.sleep(early)
            if not data:
                break
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
