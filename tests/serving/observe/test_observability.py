"""What whoever runs the service sees of it: figures and their dashboard, spans, lines of the log."""

from __future__ import annotations

import http.server
import json
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from canvas_fm.errors import CanvasError, MissingExtra
from serving.launch.serve import serve
from serving.observe.access_log import _Json
from serving.observe.tracing import Traces
from serving.protocol import npy

ROOT = Path(__file__).parents[3]
NPY = {"Content-Type": "application/x-npy"}


# --- figures


def test_the_dashboard_asks_for_figures_that_there_are(client, crops) -> None:
    """Names and labels of its queries stand in /metrics, and of what stands there nothing is left out."""
    client.post("/v1/embed", content=npy.dump(crops), headers=NPY)
    text = client.get("/metrics").text
    held = set(re.findall(r"^# TYPE (canvas_fm_\w+)(?<!_created) ", text, re.M))
    dashboard = json.loads((ROOT / "serving" / "observe" / "dashboard.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked = re.findall(r"canvas_fm_\w+", " ".join(queries))
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked} == held
    labels = {
        label for group in re.findall(r"by \(([^)]*)\)", " ".join(queries)) for label in group.split(", ")
    }
    assert labels <= set(re.findall(r'(\w+)="', text))


def test_what_a_killed_worker_was_doing_is_not_shown_for_ever(tmp_path: Path) -> None:
    script = """
import os
from serving.observe.metrics import Metrics
metrics = Metrics.of_this_process()
if os.environ["END"] == "killed":
    metrics.in_progress.inc(); metrics.queued_crops.set(7); metrics.crops.inc(5)
    os.kill(os.getpid(), 9)
print(metrics.text().decode())
"""
    said = ""
    for end in ("killed", "well"):
        environment = os.environ | {
            "PROMETHEUS_MULTIPROC_DIR": str(tmp_path),
            "END": end,
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-c", script]
        said = subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout
    assert "canvas_fm_queue_crops 0.0" in said
    assert "canvas_fm_requests_in_progress 0.0" in said
    assert "canvas_fm_crops_total 5.0" in said


# --- the log


def test_a_stranger_cannot_fill_the_log_with_tracebacks(client, caplog) -> None:
    with caplog.at_level(logging.INFO):
        for body in (b"{", b"[]", b'{"crops": [1]}', b'{"crops": ' + b"[" * 40, b"\xff"):
            for path in ("/embed_json", "/v1/embed/points", "/v1/search"):
                reply = client.post(path, content=body, headers={"Content-Type": "application/json"})
                assert reply.status_code in (400, 422)
    assert [record for record in caplog.records if record.exc_info] == []


# --- spans


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    Traces.of_this_process().give_to(SimpleSpanProcessor(exporter))
    yield exporter
    Traces.of_this_process().send_to(None)


def test_a_request_its_batch_and_its_line_in_the_log_are_one_trace(client, spans, crops) -> None:
    lines: list[dict] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(json.loads(_Json().format(record)))
    access = logging.getLogger("serving.access")
    access.addHandler(handler)
    level = access.level
    access.setLevel(logging.INFO)
    above = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    try:
        reply = client.post("/v1/embed", content=npy.dump(crops), headers=NPY | above)
    finally:
        access.setLevel(level)
        access.removeHandler(handler)
    batch, request = spans.get_finished_spans()
    assert (batch.name, request.name) == ("batch", "POST /v1/embed")
    assert dict(batch.attributes) == {"canvas_fm.crops": 5, "canvas_fm.requests": 1}
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["canvas_fm.request_id"] == reply.headers["x-request-id"]
    assert f"{request.context.trace_id:032x}" == above["traceparent"].split("-")[1]
    assert f"{request.parent.span_id:016x}" == above["traceparent"].split("-")[2]
    assert batch.parent.span_id == request.context.span_id
    (line,) = lines
    assert line["trace_id"] == above["traceparent"].split("-")[1]
    assert line["request_id"] == reply.headers["x-request-id"]


def test_a_batch_is_linked_to_all_its_requests(start, spans, crops) -> None:
    client = start(wait_ms=300)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda _: client.post("/v1/embed", content=npy.dump(crops), headers=NPY), range(2)))
    batches = [span for span in spans.get_finished_spans() if span.name == "batch"]
    requests = {span.context.span_id for span in spans.get_finished_spans() if span.name != "batch"}
    assert [dict(batch.attributes) for batch in batches] == [{"canvas_fm.crops": 10, "canvas_fm.requests": 2}]
    assert {link.context.span_id for link in batches[0].links} <= requests
    assert len(batches[0].links) == 2


def test_spans_say_nothing_that_a_stranger_sent(client, spans) -> None:
    client.get("/secret-path?token=1", headers={"traceparent": "no trace"})
    (span,) = spans.get_finished_spans()
    assert span.name == "GET other"
    assert span.attributes["http.response.status_code"] == 404
    assert "secret" not in span.to_json()


def test_spans_reach_a_collector(client, crops) -> None:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    got: list[tuple[str, bytes]] = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *words: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    traces = Traces.of_this_process()
    try:
        traces.send_to(f"http://127.0.0.1:{server.server_port}/")
        client.post("/v1/embed", content=npy.dump(crops), headers=NPY)
        traces.flush()
    finally:
        traces.send_to(None)
        server.shutdown()
    assert {path for path, _ in got} == {"/v1/traces"}
    sent = ExportTraceServiceRequest.FromString(got[0][1]).resource_spans[0]
    assert {span.name for scope in sent.scope_spans for span in scope.spans} == {"batch", "POST /v1/embed"}
    assert ("service.name", "canvas-fm") in {(a.key, a.value.string_value) for a in sent.resource.attributes}


def test_without_the_extra_it_is_a_sentence(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.launch.serve._run", lambda *given: pytest.fail("it was started"))
    with pytest.raises(CanvasError, match="'collector' is no address of a collector; it looks like http"):
        serve(model, port=0, traces="collector")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(MissingExtra, match=r"sending traces needs .*pip install 'canvas-fm\[otel\]'"):
        serve(model, port=0, traces="http://127.0.0.1:4318")


def test_nothing_is_traced_unless_it_was_asked_for(client, spans, crops) -> None:
    Traces.of_this_process().send_to(None)
    client.post("/v1/embed", content=npy.dump(crops), headers=NPY)
    assert spans.get_finished_spans() == ()
