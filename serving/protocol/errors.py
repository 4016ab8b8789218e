"""One shape for everything that is refused: `{"error": {"code": …, "message": …}}`."""

from __future__ import annotations

import re
from http import HTTPStatus

from starlette.responses import JSONResponse

from canvas_fm.errors import CanvasError

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


def code_of(status: int) -> str:
    """The word for a status: `too_large` for 413; others are named as the standard does."""
    return _CODES.get(status) or HTTPStatus(status).name.lower()


class Refusal(Exception):
    """A request that is answered with `status` and one sentence; `retry_after_s` says when to come back."""

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
    """A caller's mistake that the library found, as HTTP says it: without the server's folders."""
    return Refusal(status, without_folders(str(problem)))


def without_folders(sentence: str) -> str:
    """The sentence with every absolute path and every address cut down to its last name."""
    sentence = _ADDRESS.sub(r"\1", sentence)
    return _PATH.sub(lambda found: found[0].rstrip("/").rpartition("/")[2], sentence)
