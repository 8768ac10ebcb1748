"""Tracing with OpenTelemetry: the worker's span stands between the publisher's and whatever a consumer makes of the change."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from sync_worker.events import Membership, Partition, Record
from sync_worker.service.tracing import tracing_from
from tests.model.events import key_of, to_record
from tests.support.facts import member, method, new_id
from tests.support.site import Site, wait_for
from tests.support.wire import encode

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector:
    """Takes spans by OTLP over HTTP, as a real collector would."""

    def __init__(self) -> None:
        collector = self
        self.spans: list[Any] = []
        self.services: set[str] = set()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
                for of_resource in request.resource_spans:
                    collector.services |= {
                        each.value.string_value
                        for each in of_resource.resource.attributes
                        if each.key == "service.name"
                    }
                    collector.spans += [span for scope in of_resource.scope_spans for span in scope.spans]
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def collector() -> Iterator[Collector]:
    running = Collector()
    yield running
    running.server.shutdown()
    running.server.server_close()


def test_a_sampled_record_gets_a_span_and_its_changes_carry_it(site: Site, collector: Collector) -> None:
    site.environment |= {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "50"}
    enabled = method(new_id(), new_id())
    site.produce([enabled])
    worker = site.start_worker()
    site.wait_settled()
    sampled, unsampled = (member(enabled.segment_id, new_id(), 1) for _ in range(2))
    for event, flags in ((sampled, "01"), (unsampled, "00")):
        name, fields = to_record(event)
        header = ("traceparent", f"00-{TRACE}-{SPAN}-{flags}".encode())
        site.produce_raw("membership", encode(name, fields), key=key_of(event).encode(), headers=[header])
    site.wait_settled()

    traced = {change.event["user_id"]: change.record.header("traceparent") for change in site.changes()}
    assert traced[unsampled.user_id] == f"00-{TRACE}-{SPAN}-00".encode()
    (span,) = wait_for(lambda: collector.spans, what="a span")
    assert span.name == "apply Membership"
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, SPAN)
    assert traced[sampled.user_id] == f"00-{TRACE}-{span.span_id.hex()}-01".encode()
    assert {each.key for each in span.attributes} >= {"messaging.destination.name", "messaging.kafka.offset"}
    assert collector.services == {"sync-worker"}
    assert worker.terminate() == 0


def test_a_batch_that_is_given_up_ends_its_spans_as_errors(
    monkeypatch: pytest.MonkeyPatch, collector: Collector
) -> None:
    monkeypatch.setitem(os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    tracing = tracing_from()
    assert tracing is not None
    ids: Any = SimpleNamespace(**{name: bytes(16) for name in ("segment", "user", "event")})
    event = Membership(ids.segment, ids.user, True, 1, ids.event, 0, f"00-{TRACE}-{SPAN}-01")
    with pytest.raises(ZeroDivisionError), tracing.applying([Record(Partition("t", 0), 1, event)]):
        raise ZeroDivisionError
    tracing.close(limit_s=30)
    (span,) = collector.spans
    assert (span.status.code, span.status.message) == (2, "ZeroDivisionError")


@pytest.mark.parametrize(
    "environment", [{}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "true"}]
)
def test_nothing_is_traced_unless_it_is_asked_for(environment: dict[str, str]) -> None:
    assert tracing_from(environment) is None


def test_a_collector_that_is_away_holds_up_nobody(site: Site) -> None:
    site.environment |= {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    enabled = method(new_id(), new_id())
    worker = site.start_worker()
    site.produce([enabled])
    event = member(enabled.segment_id, new_id(), 1)
    name, fields = to_record(event)
    site.produce_raw("membership", encode(name, fields), headers=[("traceparent", f"00-{TRACE}-{SPAN}-01".encode())])
    site.wait_settled()
    assert len(site.changes()) == 1
    assert worker.terminate() == 0
    assert [line for line in worker.log().splitlines() if not line.startswith("{")] == []
