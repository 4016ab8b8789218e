"""Errors of BentoML, Starlette and pydantic in our one shape."""

from __future__ import annotations

import json
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Message, Scope

from serving.protocol.errors import Refusal

HINTS = {
    404: "there is nothing at {path}; GET /v1/info says what is served",
    405: "{method} is not allowed at {path}",
    500: "an unexpected error, which the server's log describes; the request was not answered",
    503: "not ready: the model is still being loaded, or loading failed; ask /readyz again in a moment",
}


def translated(held: list[Message], scope: Scope) -> Refusal:
    """An error of BentoML, Starlette or ours as a Refusal."""
    status = held[0]["status"]
    body = b"".join(message.get("body", b"") for message in held[1:])
    retry = Headers(raw=held[0]["headers"]).get("retry-after")
    status, message = _sentence(status, body)
    if not message:
        message = HINTS.get(status, "the request failed").format(
            path=scope["path"][:200], method=scope["method"]
        )
    return Refusal(status, message, retry_after_s=int(retry) if retry else None)


def _sentence(status: int, body: bytes) -> tuple[int, str]:
    try:
        said: Any = json.loads(body)
    except ValueError:
        return status, "" if status in HINTS else body.decode("utf-8", "replace")[:500].strip()
    said = said[0] if isinstance(said, list) and said else said  # BentoML wraps its own in a list
    error = said.get("error") if isinstance(said, dict) else None
    if isinstance(error, dict):
        return status, str(error.get("message", ""))
    detail = said.get("detail") if isinstance(said, dict) else None
    if isinstance(detail, list) and detail:
        return (400 if detail[0].get("type") == "json_invalid" else 422), describe(detail)
    return status, "" if status in HINTS else str(error or "")


def describe(problems: list[Any]) -> str:
    """The first of pydantic's complaints as a sentence, and how many more there are."""
    first = problems[0]
    where = ".".join(map(str, first.get("loc", ()))) or "the body"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{where}: {first.get('msg', 'is not valid')}{more}"
