"""Tracing with OpenTelemetry, where its packages (extra `otel`) are there and it is told where to send spans.

A record's `traceparent` goes in, a span is made, and the span's `traceparent` goes out with what the record changed.

Only records that their publisher sampled are traced. It must cost nothing where it is off, and never hold up or fail a
batch: spans are sent by a thread of the SDK's own, and dropped where nobody takes them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import structlog

from sync_worker import __version__
from sync_worker.events import Record, Rejection

if TYPE_CHECKING:  # the packages are optional
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, SpanContext

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_SAMPLED: Final = 0x01

log = structlog.get_logger(__name__)


class Tracing:
    """A span for each sampled record that is applied, as a child of the publisher's."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("sync_worker", __version__)

    @contextmanager
    def applying(self, records: Sequence[Record]) -> Iterator[None]:
        """From before the records are applied until they are committed, or given up by an error."""
        from opentelemetry.trace import Status, StatusCode  # noqa: PLC0415 - optional

        spans = [span for record in records if (span := self._span(record)) is not None]
        try:
            yield
        except BaseException as error:
            for span in spans:
                span.set_status(Status(StatusCode.ERROR, type(error).__name__))
            raise
        finally:
            for span in spans:
                span.end()

    def _span(self, record: Record) -> Span | None:
        """A span for a sampled record, whose event goes on with the span's `traceparent`."""
        from opentelemetry.context import Context  # noqa: PLC0415 - optional
        from opentelemetry.trace import NonRecordingSpan, SpanKind, set_span_in_context  # noqa: PLC0415 - optional

        event = record.content
        if event is None or isinstance(event, Rejection) or event.traceparent is None:
            return None
        parent = _parsed(event.traceparent)
        if not parent.trace_flags & _SAMPLED:
            return None
        span = self._tracer.start_span(
            f"apply {type(event).__name__}",
            context=set_span_in_context(NonRecordingSpan(parent), Context()),
            kind=SpanKind.CONSUMER,
            attributes={
                "messaging.system": "kafka",
                "messaging.operation.type": "process",
                "messaging.destination.name": record.partition.topic,
                "messaging.destination.partition.id": str(record.partition.number),
                "messaging.kafka.offset": record.next_offset - 1,
            },
        )
        record.content = event._replace(traceparent=_written(span.get_span_context()))
        return span

    def close(self, limit_s: float = 1.0) -> None:
        """Send what is left, within the limit: a collector that is away must not use up the drain limit."""
        ending = threading.Thread(target=self._provider.shutdown, name="tracing", daemon=True)
        ending.start()
        ending.join(limit_s)


def tracing_from(environment: Mapping[str, str] = os.environ) -> Tracing | None:
    """What the standard variables of OpenTelemetry ask for; None where they name no endpoint, or its packages aren't there."""
    disabled = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if disabled or not any(environment.get(name) for name in ENDPOINTS):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - optional
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 - as above
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - as above
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415 - as above
    except ImportError as error:
        log.warning("not_traced", reason=f"{error}: install user-segment-sync-worker[otel]")
        return None
    name = environment.get("OTEL_SERVICE_NAME") or "sync-worker"
    resource = Resource.create({"service.name": name, "service.version": __version__})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)


def _parsed(traceparent: str) -> SpanContext:
    """Of version 00, whose form intake has checked."""
    from opentelemetry.trace import SpanContext, TraceFlags  # noqa: PLC0415 - optional

    _, trace, span, flags = traceparent.split("-")
    return SpanContext(int(trace, 16), int(span, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))


def _written(context: SpanContext) -> str:
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
