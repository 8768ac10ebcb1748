"""The HTTP port of `run` (contract §6): probes, metrics and the status document, read-only, in threads of its own.

No endpoint changes anything, and none may keep `/livez` waiting: a slow status document
has threads of its own to hang in.
"""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any, Final, NamedTuple

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from waitress.channel import HTTPChannel  # type: ignore[import-untyped]
from waitress.server import create_server  # type: ignore[import-untyped]

from sync_worker.errors import FatalError, SyncWorkerError
from sync_worker.service.health import Checks, Health
from sync_worker.service.redaction import Redactor

STATUS_MAX_AGE_S: Final = 1.0
_THREADS: Final = 8
_STATUS_READERS: Final = 4  # so many threads may wait for a status document; the others stay free for probes
_STATUS_WAIT_S: Final = 5.0
_HEADERS: Final = [
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
    ("Referrer-Policy", "no-referrer"),
]
_METRICS: Final = "text/plain; version=0.0.4; charset=utf-8"
_TEXT: Final = "text/plain; charset=utf-8"
_log = structlog.get_logger(__name__)


class Response(NamedTuple):
    """What a route answers."""

    status: HTTPStatus
    content_type: str
    body: bytes


Route = Callable[[], Response]


def routes(
    health: Health,
    registry: CollectorRegistry,
    status: Callable[[], Mapping[str, Any]],
    redactor: Redactor | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Route]:
    """The endpoints of contract §6. `status` makes the document; its errors are answered, without secrets, as 503."""
    document = _StatusDocument(status, redactor or Redactor(), clock)
    return {
        "/livez": lambda: _probe(health.live()),
        "/readyz": lambda: _probe(health.ready()),
        "/metrics": lambda: Response(HTTPStatus.OK, _METRICS, generate_latest(registry)),
        "/status.json": document.respond,
    }


class HttpServer:
    """Serves routes from the moment it is made until `close`. `port` is the real one, None when off (-1)."""

    def __init__(self, host: str, port: int, routes: Mapping[str, Route]) -> None:
        """`port` 0 takes any free one. Raises FatalError when the address can't be had."""
        self.port: int | None = None
        self._closing = threading.Event()
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
            connection_limit=200,
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
            self._thread.join()
        self._thread = None

    def _serve(self) -> None:
        # Opened, polled and closed in this one thread: waitress' sockets must not be closed under a poll.
        server = self._server
        while not self._closing.is_set():
            server.asyncore.loop(timeout=1, map=server._map, use_poll=True, count=1)
        server.task_dispatcher.shutdown(timeout=3)
        for channel in list(server.active_channels.values()):
            channel.handle_close()
        server.close()


class _Channel(HTTPChannel):  # type: ignore[misc]
    """A connection whose silence is counted from its last whole request: a byte now and then doesn't keep it open."""

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
        response, more = self._respond(environ.get("PATH_INFO", ""), method)
        length = ("Content-Length", str(len(response.body)))
        headers = [("Content-Type", response.content_type), length, *_HEADERS, *more]
        start_response(f"{response.status.value} {response.status.phrase}", headers)
        return [] if method == "HEAD" else [response.body]

    def _respond(self, path: str, method: str) -> tuple[Response, list[tuple[str, str]]]:
        route = self._routes.get(path)
        if route is None:
            return _text(HTTPStatus.NOT_FOUND, "not found; the worker's state is at /status.json\n"), []
        if method not in {"GET", "HEAD"}:
            return _text(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD\n"), [("Allow", "GET, HEAD")]
        try:
            return route(), []
        except Exception:  # noqa: BLE001 - whatever a route does, a client gets an answer and the log the reason
            _log.error("http_route_failed", path=path, exc_info=True)
            return _text(HTTPStatus.INTERNAL_SERVER_ERROR, "an error that the worker's log explains\n"), []


class _StatusDocument:
    """The status document, made at most once in a second however many ask; a failure is kept as long."""

    def __init__(self, status: Callable[[], Mapping[str, Any]], redactor: Redactor, clock: Callable[[], float]) -> None:
        self._status = status
        self._redactor = redactor
        self._clock = clock
        self._making = threading.Lock()
        self._readers = threading.BoundedSemaphore(_STATUS_READERS)
        self._made: tuple[float, Response] | None = None

    def respond(self) -> Response:
        fresh = self._fresh()
        if fresh is not None:
            return fresh
        if not self._readers.acquire(blocking=False):
            return _error("too many requests wait for the status; try again")
        try:
            if not self._making.acquire(timeout=_STATUS_WAIT_S):
                return _error("the status takes long to read; try again")
            try:
                return self._fresh() or self._make()
            finally:
                self._making.release()
        finally:
            self._readers.release()

    def _fresh(self) -> Response | None:
        made = self._made
        return made[1] if made and self._clock() - made[0] < STATUS_MAX_AGE_S else None

    def _make(self) -> Response:
        try:
            response = _json(HTTPStatus.OK, self._redactor.mapping(self._status(), self._redactor.text))
        except SyncWorkerError as error:
            response = _error(self._redactor.line(str(error)))
        except Exception as error:  # noqa: BLE001 - the page must say so; the reason goes to the log, redacted
            _log.warning("status_failed", exc_info=True)
            response = _error(f"{type(error).__name__}; the worker's log says more")
        self._made = (self._clock(), response)
        return response


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


def _error(message: str) -> Response:
    return _json(HTTPStatus.SERVICE_UNAVAILABLE, {"error": message})
