"""The first answers of a broker that has just started, in a moment of a few milliseconds that a real one can't be held in:
metadata that names no broker and no topic. It speaks as much of Kafka's protocol as that takes, and nothing more.
"""

from __future__ import annotations

import socketserver
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

from devstack.ports import HOST

CLUSTER_ID = "starting"
_API_VERSIONS, _METADATA, _UNSUPPORTED_VERSION = 18, 3, 35
_VERSIONS = ((_API_VERSIONS, 0, 0), (_METADATA, 0, 4))


@contextmanager
def starting_broker(answers_as_one: int) -> Iterator[str]:
    """Its address. For so many questions about metadata it names itself as the one broker and controller, then nobody."""
    asked = count()

    class Answer(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while size := self.rfile.read(4):
                request = self.rfile.read(struct.unpack(">i", size)[0])
                key, version, correlation = struct.unpack(">hhi", request[:8])
                body = _versions(version) if key == _API_VERSIONS else _metadata(port, next(asked) < answers_as_one)
                self.wfile.write(struct.pack(">ii", 4 + len(body), correlation) + body)

    with socketserver.ThreadingTCPServer((HOST, 0), Answer) as server:
        server.daemon_threads = True
        port = server.server_address[1]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"{HOST}:{port}"
        server.shutdown()


def _versions(asked_in: int) -> bytes:
    """A question in a version that isn't known is answered in the first one, which then is asked again."""
    error = _UNSUPPORTED_VERSION if asked_in else 0
    return struct.pack(">hi", error, len(_VERSIONS)) + b"".join(struct.pack(">hhh", *each) for each in _VERSIONS)


def _metadata(port: int, names_itself: bool) -> bytes:
    """Version 4: throttled for, brokers, cluster, controller, topics."""
    brokers = (
        struct.pack(">ii", 1, 1) + _string(HOST) + struct.pack(">ih", port, -1)
        if names_itself
        else struct.pack(">i", 0)
    )
    return struct.pack(">i", 0) + brokers + _string(CLUSTER_ID) + struct.pack(">ii", 1, 0)


def _string(text: str) -> bytes:
    return struct.pack(">h", len(text)) + text.encode()
