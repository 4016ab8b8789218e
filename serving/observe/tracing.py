"""OpenTelemetry spans of requests and batches; imported only if an address is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

from canvas_fm.errors import CanvasError, MissingExtra
from canvas_fm.version import __version__
from serving.observe.access_log import trace_id

_span: ContextVar[Any] = ContextVar("span", default=None)
_EXPORT_S = 5.0  # a collector that does not answer is not waited for when the service ends


def check_traces(url: str) -> None:
    """Refuse an invalid collector address; MissingExtra if the exporter is not installed."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise CanvasError(f"{url!r} is no address of a collector; it looks like http://127.0.0.1:4318")
    _exporter(url)


def _exporter(url: str) -> Any:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as problem:
        raise MissingExtra("opentelemetry-exporter-otlp-proto-http", "otel", "sending traces") from problem
    return OTLPSpanExporter(endpoint=f"{url.rstrip('/')}/v1/traces", timeout=_EXPORT_S)


class Traces:
    """Spans of this process: one a request, one a batch with links to its requests."""

    def __init__(self) -> None:
        self._tracer: Any = None
        self._provider: Any = None

    @staticmethod
    @cache
    def of_this_process() -> Traces:
        return Traces()

    def send_to(self, url: str | None) -> None:
        """Export spans by OTLP over HTTP; None disables it."""
        if self._provider is not None:
            self._provider.shutdown()
        if url is None:
            self._tracer = self._provider = None
            return
        exporter = _exporter(url)
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self.give_to(BatchSpanProcessor(exporter))

    def give_to(self, processor: Any) -> None:
        """Add an OpenTelemetry span processor."""
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider

        about = {"service.name": "canvas-fm", "service.version": __version__}
        self._provider = TracerProvider(resource=Resource.create(about))
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("canvas_fm")

    def flush(self) -> None:
        """Export buffered spans."""
        if self._provider is not None:
            self._provider.force_flush()

    def begin(self, scope: Scope, identity: str) -> Callable[[str, int], None]:
        """Start a request's span, a child of the client's `traceparent` if present.

        What comes back closes it, given the route and the status of the answer.
        """
        if self._tracer is None:
            return lambda route, status: None
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        # A context of its own: around us BentoML keeps a span that is never sent.
        above = TraceContextTextMapPropagator().extract(dict(Headers(scope=scope)), Context())
        about = {"http.request.method": scope["method"], "canvas_fm.request_id": identity}
        span = self._tracer.start_span(scope["method"], above, SpanKind.SERVER, about)
        tokens = _span.set(span), trace_id.set(f"{span.get_span_context().trace_id:032x}")

        def end(route: str, status: int) -> None:
            span.update_name(f"{scope['method']} {route}")
            span.set_attributes({"http.route": route, "http.response.status_code": status})
            if status >= 500:
                span.set_status(Status(StatusCode.ERROR))
            span.end()
            _span.reset(tokens[0])
            trace_id.reset(tokens[1])

        return end

    @staticmethod
    def current() -> object:
        """Span of the current request, for `batch`; None without one."""
        return _span.get()

    @contextmanager
    def batch(self, requests: Sequence[Any], rows: int) -> Iterator[None]:
        """Span of one batch, linked to the spans of its requests."""
        if self._tracer is None:
            yield
            return
        from opentelemetry.context import Context
        from opentelemetry.trace import Link, set_span_in_context

        spans = [span for span in requests if span is not None]
        links = [Link(span.get_span_context()) for span in spans]
        above = set_span_in_context(spans[0], Context()) if spans else Context()
        about = {"canvas_fm.crops": rows, "canvas_fm.requests": len(requests)}
        with self._tracer.start_as_current_span("batch", above, attributes=about, links=links):
            yield
