"""The BentoML service: our routes mounted at `/v1`, the page at `/ui`, BentoML's health.

Started by `serving.launch.serve.serve`, which tells each worker process its settings by a file.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import bentoml

from serving.api.app import ROUTES, create_app
from serving.api.middleware import connection_limits
from serving.api.middleware.request_middleware import RequestMiddleware
from serving.api.middleware.static_page import FOLDER, MOVED, create_page
from serving.api.routes import embed_json, review
from serving.core.core import Core
from serving.launch.bento.supervisor import SERVICE
from serving.launch.spare_processes import Turn
from serving.observe import access_log
from serving.observe.tracing import Traces
from serving.protocol.settings import ServiceSettings

logger = logging.getLogger(__name__)

SETTINGS_VARIABLE = "CANVAS_FM_SERVICE"
FAILURE_FILE = "failure.txt"
_EMBED_JSON = f"/v1{embed_json.ROUTE.path}"


def make_service(core: Core, turn: Turn | None = None) -> bentoml.Service[Any]:
    """A BentoML service around `core`, behind the request middleware, that answers once it is its turn."""

    @bentoml.asgi_app(create_page(), path="/ui")
    @bentoml.asgi_app(create_app(core, (turn or Turn()).wait), path="/v1")
    class CanvasService:
        """Embeddings of crops of whole-brain light-sheet volumes; crops as .npy go to /v1/embed."""

        def __init__(self) -> None:
            _logs_to_stderr()
            access_log.drop_client_error_tracebacks()

        async def __is_ready__(self) -> bool:
            return core.ready

        async def __is_alive__(self) -> bool:
            return core.alive

    # The time limit of BentoML only ends what our own deadlines missed; it covers the upload too.
    # Its own metrics are labelled by the path as it was sent: anybody could make them grow without end.
    # Its own spans went nowhere, and cost a fifth of what answering a small request takes.
    service = bentoml.service(
        name=SERVICE,
        workers=1,
        traffic={"timeout": 600},
        metrics={"enabled": False, "namespace": "canvas_fm"},
        logging={"access": {"enabled": False}},
        tracing={"excluded_urls": ".*"},
    )(CanvasService)
    service.add_asgi_middleware(
        RequestMiddleware,
        core=core,
        raw=("/v1/embed", "/v1/reconstruct", "/v1/refine", "/v1/search"),
        only_json=(
            _EMBED_JSON,
            "/v1/embeddings",
            "/v1/embed/points",
            "/v1/detect",
            "/v1/jobs",
            "/v1/models",
            "/v1/volumes",
            *(f"/v1{each.path}" for each in review.ROUTES if each.method == "POST"),
        ),
        routes=[*(f"/v1{each.path}" for each in ROUTES), _EMBED_JSON, FOLDER, "/livez", "/readyz"],
        # BentoML's own document leaves out what is mounted, and without its metrics it has no such route.
        moved={
            embed_json.ROUTE.path: _EMBED_JSON,
            "/health": "/readyz",
            "/docs.json": "/v1/openapi.json",
            "/metrics": "/v1/metrics",
            **MOVED,
        },
    )
    return service


def _logs_to_stderr() -> None:
    """Redirect BentoML's logs from stdout to stderr."""
    for name in ("", "bentoml", "uvicorn.error", "circus"):
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
                handler.setStream(sys.stderr)


def read_settings() -> ServiceSettings:
    """Settings that `serve` wrote for this process."""
    path = os.environ.get(SETTINGS_VARIABLE)
    if path is None:
        raise RuntimeError("start the service with `canvas-fm serve MODEL`")
    settings = ServiceSettings.model_validate_json(Path(path).read_bytes())
    if not turn.has_come:
        turn.set_up(settings.turns, settings.workers)
        set_up_worker(settings)
    return settings


def set_up_worker(settings: ServiceSettings) -> None:
    """Process-wide setup: log, connections, end with the supervisor."""
    access_log.set_up(settings.log)
    Traces.of_this_process().send_to(settings.traces)
    connection_limits.TimeoutHTTPProtocol.header_s = settings.limits.header_s
    connection_limits.TimeoutHTTPProtocol.write_s = settings.limits.stall_s
    connection_limits.TimeoutHTTPProtocol.most = settings.limits.max_connections
    if settings.supervisor is not None:
        _leave_with(settings.supervisor)


def _leave_with(supervisor: int) -> None:
    """End this process when its parent is gone, killed for example."""

    def watch() -> None:
        while os.getppid() == supervisor:
            threading.Event().wait(1.0)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="watch the supervisor", daemon=True).start()


def report_failure(sentence: str) -> None:
    """Write the message for `serve` and ask it to end."""
    if turn.is_awaited:
        return logger.warning("a spare process could not be loaded; it tries again in its turn: %s", sentence)
    settings_path = Path(os.environ[SETTINGS_VARIABLE])
    (settings_path.parent / FAILURE_FILE).write_text(sentence, encoding="utf-8")
    supervisor = json.loads(settings_path.read_bytes()).get("supervisor")
    if supervisor is not None and os.getppid() == supervisor:
        os.kill(supervisor, signal.SIGTERM)


def keep_loaded() -> None:
    """Look for garbage once, and never again among what is loaded: half a million objects hold all up."""
    gc.collect()
    gc.freeze()
    turn.loaded()


turn = Turn()
connection_limits.install()
service = make_service(Core(read_settings, on_failure=report_failure, after_load=keep_loaded), turn)
