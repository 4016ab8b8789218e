"""One shape for everything that is refused: `{"error": {"code": …, "message": …}}`."""

from __future__ import annotations

from http import HTTPStatus

from starlette.responses import JSONResponse

from canvas_fm.errors import CanvasError

_CODES = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    413: "too_large",
    415: "unsupported_media_type",
    422: "unprocessable",
    429: "busy",
    500: "internal",
    503: "unavailable",
    504: "deadline",
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
        content = {"error": {"code": code_of(self.status), "message": self.message}}
        return JSONResponse(content, self.status, headers)


def refused(problem: CanvasError) -> Refusal:
    """A caller's mistake that the library found, as HTTP says it."""
    return Refusal(422, str(problem))
