"""Access log: one line a request, as text or JSON, with the request id."""

from __future__ import annotations

import json
import logging
import sys
import time
from contextvars import ContextVar
from typing import Any

from starlette.requests import ClientDisconnect

from serving.protocol.errors import Refusal

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Of the request that is being answered; every line of the log carries it."""

trace_id: ContextVar[str] = ContextVar("trace_id", default="")
"""Of its span, where traces are sent."""

access = logging.getLogger("serving.access")


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if identity := request_id.get():
            line["request_id"] = identity
        if trace := trace_id.get():
            line["trace_id"] = trace
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def drop_client_error_tracebacks() -> None:
    """Drop BentoML's tracebacks of 4xx responses, which could fill the disk."""
    from bentoml._internal.server import http_app
    from pydantic import ValidationError

    def ours(record: logging.LogRecord) -> bool:
        kind = record.exc_info[0] if record.exc_info else None
        return kind is None or not issubclass(kind, ValidationError | Refusal | ClientDisconnect)

    http_app.logger.filters[:] = [ours]


def set_up(kind: str) -> None:
    """Log to stderr: `json` one line for every request; `text` only problems."""
    handler = logging.StreamHandler(sys.stderr)
    if kind == "json":
        handler.setFormatter(_Json())
        for name in ("serving", "canvas_fm", "bentoml", "uvicorn.error", "py.warnings"):
            logger = logging.getLogger(name)
            logger.handlers, logger.propagate = [handler], False
        for name in ("serving", "canvas_fm"):
            logging.getLogger(name).setLevel(logging.INFO)
    access.setLevel(logging.INFO if kind == "json" else logging.WARNING)
