"""Error format of the service: `{"error": {"code": …, "message": …}}`."""

from __future__ import annotations

import json
import logging
import re
from http import HTTPStatus
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import Message, Scope

from canvas_fm.errors import CanvasError, DamagedStore, StorageFull, Unreachable

logger = logging.getLogger(__name__)

_PATH = re.compile(r"(?<![\w/.:])/(?:[^\s/:;,'\"()]+/)*[^\s/:;,'\"()]+")
_ADDRESS = re.compile(r"\b(?:https|s3):/{1,2}[^\s;,'\"()]*?([^\s/:;,'\"()]+)/?(?=:?[\s;,'\"()]|$)")
_CODES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    409: "conflict",
    413: "too_large",
    415: "unsupported_media_type",
    422: "unprocessable",
    429: "busy",
    500: "internal",
    503: "unavailable",
    504: "deadline",
    507: "disk_full",
}

HINTS = {
    404: "there is nothing at {path}; GET /v1/info says what is served",
    405: "{method} is not allowed at {path}",
    500: "an unexpected error, which the server's log describes; the request was not answered",
    503: "not ready: the model is still being loaded, or loading failed; ask /readyz again in a moment",
}


def code_of(status: int) -> str:
    """Error code of a status: `too_large` for 413; others as the standard's phrase."""
    return _CODES.get(status) or HTTPStatus(status).name.lower()


class NameTaken(CanvasError):
    """Another model is served under a name."""


class Refusal(Exception):
    """An error response with `status` and message; `retry_after_s` becomes Retry-After."""

    def __init__(self, status: int, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.retry_after_s = status, message, retry_after_s

    def response(self) -> JSONResponse:
        headers = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        content = {"error": {"code": code_of(self.status), "message": self.message}}
        return JSONResponse(content, self.status, headers)


def refused(problem: CanvasError, status: int = 422) -> Refusal:
    """A CanvasError of the library as Refusal, without the server's folders."""
    return Refusal(status, without_folders(str(problem)))


def of_library(problem: CanvasError) -> Refusal:
    """Response to a CanvasError that no route handles: 507 for a full disk, 500 for unreadable files, 422."""
    if isinstance(problem, DamagedStore | Unreachable):
        logger.error("files that are served cannot be read", exc_info=problem)
        return Refusal(500, HINTS[500])
    return refused(problem, 507 if isinstance(problem, StorageFull) else 422)


def without_folders(sentence: str) -> str:
    """Message with every absolute path and address reduced to its last name."""
    sentence = _ADDRESS.sub(r"\1", sentence)
    return _PATH.sub(lambda match: match[0].rstrip("/").rpartition("/")[2], sentence)


def translated(messages: list[Message], scope: Scope) -> Refusal:
    """An error of BentoML, Starlette or ours as Refusal."""
    status = messages[0]["status"]
    body = b"".join(message.get("body", b"") for message in messages[1:])
    retry = Headers(raw=messages[0]["headers"]).get("retry-after")
    status, message = _sentence(status, body)
    if not message:
        message = HINTS.get(status, "the request failed").format(
            path=scope["path"][:200], method=scope["method"]
        )
    return Refusal(status, message, retry_after_s=int(retry) if retry else None)


def _sentence(status: int, body: bytes) -> tuple[int, str]:
    try:
        payload: Any = json.loads(body)
    except ValueError:
        return status, "" if status in HINTS else body.decode("utf-8", "replace")[:500].strip()
    payload = (
        payload[0] if isinstance(payload, list) and payload else payload
    )  # BentoML wraps its own in a list
    error = payload.get("error") if isinstance(payload, dict) else None
    if isinstance(error, dict):
        return status, str(error.get("message", ""))
    detail = payload.get("detail") if isinstance(payload, dict) else None
    if isinstance(detail, list) and detail:
        return (400 if detail[0].get("type") == "json_invalid" else 422), describe(detail)
    return status, "" if status in HINTS else str(error or "")


def describe(problems: list[Any]) -> str:
    """The first pydantic error as a message, and the number of others."""
    first = problems[0]
    where = ".".join(map(str, first.get("loc", ()))) or "the body"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{where}: {first.get('msg', 'is not valid')}{more}"
