"""Around every route: how much a body may hold, and errors in one shape whoever raised them.

BentoML has no limit on a body, words its errors in three ways, and an exception that leaves a middleware
makes the client wait for the whole time limit: so this stands between BentoML's middleware and all routes.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Collection
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import Refusal
from serving.schemas import Limits

logger = logging.getLogger(__name__)

_MB = 2**20
_LINGER_S, _LINGER_BYTES = 2.0, 512 * _MB
_HINTS = {
    404: "there is nothing at {path}; GET /v1/info says what is served",
    405: "{method} is not allowed at {path}",
    500: "an unexpected error, which the server's log describes; the request was not answered",
    503: "not ready: the model is still being loaded, or loading failed; ask /readyz again in a moment",
}


class Guard:
    """ASGI middleware; `limits` is asked for at each request.

    `raw` are the paths whose body may be as large as `max_body_mb`, everywhere else `max_json_mb` holds;
    `only_json` are those that read JSON and nothing else (BentoML alone would also read multipart forms).
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Callable[[], Limits],
        raw: Collection[str] = (),
        only_json: Collection[str] = (),
    ) -> None:
        self.app, self.limits, self.raw, self.only_json = app, limits, raw, only_json
        self.inflight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        exchange = _Exchange(self, scope, receive, send)
        try:
            exchange.check_headers()
            await self.app(scope, exchange.receive, exchange.send)
            await exchange.finish()
        except Refusal as refusal:
            await exchange.refuse(refusal)
        except ClientDisconnect:
            # Nobody reads this; but BentoML's timer waits for an answer, whoever it is for.
            await exchange.refuse(Refusal(400, "the client went away"))
        except Exception:
            logger.exception("%s %s failed", scope["method"], scope["path"])
            if exchange.half_said:
                raise
            await exchange.refuse(Refusal(500, _HINTS[500]))
        finally:
            self.inflight -= exchange.taken


class _Exchange:
    """One request and its answer."""

    def __init__(self, guard: Guard, scope: Scope, receive: Receive, send: Send) -> None:
        self.guard, self.scope, self._receive, self._send = guard, scope, receive, send
        self.limits = guard.limits()
        self.headers = Headers(scope=scope)
        raw = scope["path"] in guard.raw
        self.most_mb = self.limits.max_body_mb if raw else self.limits.max_json_mb
        self.taken = 0  # bytes of the body that came
        # Whether the body is all there.
        self.whole = (
            self.headers.get("content-length", "0") == "0" and "transfer-encoding" not in self.headers
        )
        self.refusal: Refusal | None = None
        self.held: list[Message] = []  # an error on its way out, to be put into shape
        self.started = self.ended = False

    def check_headers(self) -> None:
        """What can be refused before a byte of the body is read."""
        if self.headers.get("content-encoding", "identity").lower() != "identity":
            raise Refusal(415, "compressed bodies are not read; send it without Content-Encoding")
        given = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        path = self.scope["path"]
        if self.scope["method"] == "POST" and path in self.guard.only_json and given != "application/json":
            raise Refusal(415, f"the body is {given or 'of no stated type'}; {path} reads application/json")
        length = self.headers.get("content-length", "")
        if length.isdigit() and int(length) > self.most_mb * _MB:
            raise self._too_large()

    def _too_large(self) -> Refusal:
        return Refusal(413, f"the body is larger than {self.most_mb:g} MB; send it in smaller pieces")

    async def receive(self) -> Message:
        if self.refusal is not None:
            raise self.refusal
        if self.whole:
            return await self._receive()
        try:
            async with asyncio.timeout(self.limits.stall_s):
                message = await self._receive()
        except TimeoutError:
            self._give_up(Refusal(408, f"the body brought nothing for {self.limits.stall_s:g} s"))
        if message["type"] == "http.request":
            self.whole = not message.get("more_body", False)
            self._count(len(message.get("body", b"")))
        else:
            self.whole = True  # the client left: nothing more will come
        return message

    def _count(self, size: int) -> None:
        self.taken += size
        self.guard.inflight += size
        if self.taken > self.most_mb * _MB:
            self._give_up(self._too_large())
        if self.guard.inflight > self.limits.max_inflight_mb * _MB:
            self._give_up(
                Refusal(429, "too much is being worked on at the moment; come back in 1 s", retry_after_s=1)
            )

    def _give_up(self, refusal: Refusal) -> None:
        # Remembered, because the framework inside may turn the exception into an answer of its own.
        self.refusal = refusal
        raise refusal

    async def send(self, message: Message) -> None:
        if self.ended:
            return
        if message["type"] == "http.response.start":
            self.started = True
        if self.held or (message["type"] == "http.response.start" and message["status"] >= 400):
            self.held.append(message)
        else:
            self.ended = message["type"] == "http.response.body" and not message.get("more_body", False)
            await self._send(message)

    @property
    def half_said(self) -> bool:
        """A good answer was begun and not ended: nothing can be taken back, the connection has to break."""
        return self.started and not self.held and not self.ended

    async def finish(self) -> None:
        """Send an error that was held back, in our shape."""
        if self.held and not self.ended:
            await self._answer(self.refusal or _translated(self.held, self.scope), self.held[0]["headers"])

    async def refuse(self, refusal: Refusal) -> None:
        if self.held:
            await self.finish()
        elif not self.started:
            await self._answer(self.refusal or refusal, [])

    async def _answer(self, refusal: Refusal, raw_headers: list[tuple[bytes, bytes]]) -> None:
        self.started = self.ended = True
        response = refusal.response()
        headers = MutableHeaders(raw=list(response.raw_headers))
        for key, value in Headers(raw=raw_headers).items():
            if key not in ("content-length", "content-type"):
                headers.setdefault(key, value)
        if not self.whole:
            headers["Connection"] = "close"
        await self._send({"type": "http.response.start", "status": refusal.status, "headers": headers.raw})
        await self._send({"type": "http.response.body", "body": response.body, "more_body": True})
        if not self.whole and "expect" not in self.headers:
            await self._linger()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _linger(self) -> None:
        """Read on for a moment: closing while a client still sends takes the answer from it (a TCP reset)."""
        left = _LINGER_BYTES
        try:
            async with asyncio.timeout(_LINGER_S):
                while left > 0:
                    message = await self._receive()
                    left -= len(message.get("body", b""))
                    if message["type"] != "http.request" or not message.get("more_body", False):
                        return
        except TimeoutError:
            return


def _translated(held: list[Message], scope: Scope) -> Refusal:
    """An error of BentoML, Starlette or ours as a Refusal."""
    status = held[0]["status"]
    body = b"".join(message.get("body", b"") for message in held[1:])
    retry = Headers(raw=held[0]["headers"]).get("retry-after")
    status, message = _sentence(status, body)
    if not message:
        message = _HINTS.get(status, "the request failed").format(
            path=scope["path"][:200], method=scope["method"]
        )
    return Refusal(status, message, retry_after_s=int(retry) if retry else None)


def _sentence(status: int, body: bytes) -> tuple[int, str]:
    try:
        said: Any = json.loads(body)
    except ValueError:
        return status, "" if status in _HINTS else body.decode("utf-8", "replace")[:500].strip()
    said = said[0] if isinstance(said, list) and said else said  # BentoML wraps its own in a list
    error = said.get("error") if isinstance(said, dict) else None
    if isinstance(error, dict):
        return status, str(error.get("message", ""))
    detail = said.get("detail") if isinstance(said, dict) else None
    if isinstance(detail, list) and detail:
        return (400 if detail[0].get("type") == "json_invalid" else 422), describe(detail)
    return status, "" if status in _HINTS else str(error or "")


def describe(problems: list[Any]) -> str:
    """The first of pydantic's complaints as a sentence, and how many more there are."""
    first = problems[0]
    where = ".".join(map(str, first.get("loc", ()))) or "the body"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{where}: {first.get('msg', 'is not valid')}{more}"
