"""The HTTP port of `run` (contract §6): probes, metrics, the status document and a page of it, read-only, in threads of its own.

No endpoint changes anything, and none may keep `/livez` waiting: only a few threads may hang in a slow status document.
"""

import json
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any, Final, NamedTuple

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from waitress.channel import HTTPChannel  # type: ignore[import-untyped]
from waitress.parser import HTTPRequestParser  # type: ignore[import-untyped]
from waitress.server import create_server  # type: ignore[import-untyped]

from sync_worker.errors import FatalError
from sync_worker.service.document import StatusDocument
from sync_worker.service.health import Checks, Health
from sync_worker.service.page.rendering import POLICY, Page
from sync_worker.service.redaction import Redactor

_THREADS: Final = 8
_CONNECTIONS: Final = 200
_CONNECTIONS_BEFORE_ROOM_IS_MADE: Final = _CONNECTIONS * 8 // 10
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_METRICS: Final = "text/plain; version=0.0.4; charset=utf-8"
_TEXT: Final = "text/plain; charset=utf-8"
_log = structlog.get_logger(__name__)


class Response(NamedTuple):
    """What a route answers; `headers` stand beside those of every answer, or in their place."""

    status: HTTPStatus
    content_type: str
    body: bytes
    headers: Mapping[str, str] = {}


Route = Callable[[], Response]


def routes(health: Health, registry: CollectorRegistry, document: StatusDocument, page: Page) -> dict[str, Route]:
    """The endpoints of contract §6."""
    return {
        "/": lambda: _page(page),
        "/livez": lambda: _probe(health.live()),
        "/readyz": lambda: _probe(health.ready()),
        "/metrics": lambda: Response(HTTPStatus.OK, _METRICS, generate_latest(registry)),
        "/status.json": lambda: _status(document),
    }


class HttpServer:
    """Serves routes from the moment it is made until `close`. `port` is the real one, None when off (-1)."""

    def __init__(self, host: str, port: int, routes: Mapping[str, Route]) -> None:
        """`port` 0 takes any free one. Raises FatalError when the address can't be had."""
        self.port: int | None = None
        self._closing = threading.Event()
        self._woken = threading.Event()
        self._thread: threading.Thread | None = None
        if port < 0:
            return
        listening = _listen(host, port)
        self._server = create_server(
            _Application(routes),
            sockets=[listening],
            threads=_THREADS,
            ident=None,
            channel_timeout=5,
            cleanup_interval=1,
            connection_limit=_CONNECTIONS,
            max_request_header_size=16 * 1024,
            max_request_body_size=1024,
            asyncore_use_poll=True,
            clear_untrusted_proxy_headers=True,
            log_socket_errors=False,
        )
        self._server.channel_class = _Channel
        self.port = listening.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, name="http", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening, let running requests end for a few seconds. May be called again."""
        if self._thread is None:
            return
        self._closing.set()
        if self._thread.is_alive():
            self._server.pull_trigger()
            self._woken.set()
            self._thread.join()
        self._thread = None

    def _serve(self) -> None:
        # Opened, polled and closed in this one thread: waitress' sockets must not be closed under a poll.
        server = self._server
        while not self._closing.is_set():
            self._make_room()
            server.asyncore.loop(timeout=1, map=server._map, use_poll=True, count=1)
        # Whoever closes may be about to pull the trigger, a descriptor that mustn't be another file's by then.
        self._woken.wait()
        server.task_dispatcher.shutdown(timeout=3)
        for channel in list(server.active_channels.values()):
            channel.handle_close()
        server.close()

    def _make_room(self) -> None:
        """Whoever keeps a connection open without asking anything goes, the longest silent first, before others have to wait."""
        channels = self._server.active_channels.values()
        if len(channels) < _CONNECTIONS_BEFORE_ROOM_IS_MADE:
            return
        silent = [channel for channel in channels if not channel.requests]
        for channel in sorted(silent, key=lambda channel: channel.last_activity)[: _CONNECTIONS // 10]:
            channel.handle_close()


class _Parser(HTTPRequestParser):  # type: ignore[misc]
    """One request for each connection: a client that sends many and reads nothing can't make answers pile up."""

    def parse_header(self, header_plus: bytes) -> None:
        super().parse_header(header_plus)
        self.headers["CONNECTION"] = "close"


class _Channel(HTTPChannel):  # type: ignore[misc]
    """A connection whose silence is counted from its last whole request: a byte now and then doesn't keep it open."""

    parser_class = _Parser

    def handle_read(self) -> None:
        before: float = self.last_activity  # type: ignore[has-type]
        super().handle_read()
        if self.request is not None:
            self.last_activity = before


class _Application:
    """The WSGI application: looks a path up, and nothing else."""

    def __init__(self, routes: Mapping[str, Route]) -> None:
        self._routes = routes

    def __call__(self, environ: Mapping[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        response = self._respond(environ.get("PATH_INFO", ""), method)
        headers = {
            "Content-Type": response.content_type,
            "Content-Length": str(len(response.body)),
            **_HEADERS,
            **response.headers,
        }
        start_response(f"{response.status.value} {response.status.phrase}", [*headers.items()])
        return [] if method == "HEAD" else [response.body]

    def _respond(self, path: str, method: str) -> Response:
        route = self._routes.get(path)
        if route is None:
            return _text(HTTPStatus.NOT_FOUND, "not found; the worker's state is at / and /status.json\n")
        if method not in {"GET", "HEAD"}:
            refused = _text(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD\n")
            return refused._replace(headers={"Allow": "GET, HEAD"})
        try:
            return route()
        except Exception:  # noqa: BLE001 - whatever a route does, a client gets an answer and the log the reason
            _log.error("http_route_failed", path=path, exc_info=True)
            return _text(HTTPStatus.INTERNAL_SERVER_ERROR, "an error that the worker's log explains\n")


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
        except OSError:
            listening.close()
            raise
    except OSError as error:
        raise FatalError(
            f"HTTP can't listen on {host} port {port}: {error.strerror}; "
            "choose another SYNC_WORKER_HTTP_PORT (0 = any free, -1 = off) or SYNC_WORKER_HTTP_HOST"
        ) from error
    return listening


def _page(page: Page) -> Response:
    """Always 200: the page is there to say what is wrong, and proxies put their own in the place of a 503."""
    html = page.html().encode()
    return Response(HTTPStatus.OK, "text/html; charset=utf-8", html, {"Content-Security-Policy": POLICY})


def _status(document: StatusDocument) -> Response:
    reading = document.get()
    if reading.document is None:
        return _json(HTTPStatus.SERVICE_UNAVAILABLE, {"error": reading.error})
    return _json(HTTPStatus.OK, reading.document)


def _probe(checks: Checks) -> Response:
    lines = [
        f"{'ok' if check.ok else 'failed'} {check.name}" + f": {check.detail}" * bool(check.detail)
        for check in checks.checks
    ]
    verdict = "ok" if checks else "failed"
    body = "".join(f"{Redactor().line(line)}\n" for line in [*lines, verdict])
    return _text(HTTPStatus.OK if checks else HTTPStatus.SERVICE_UNAVAILABLE, body)


def _text(status: HTTPStatus, body: str) -> Response:
    return Response(status, _TEXT, body.encode())


def _json(status: HTTPStatus, document: object) -> Response:
    return Response(status, "application/json", json.dumps(document, allow_nan=False).encode() + b"\n")
