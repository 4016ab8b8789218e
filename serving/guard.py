"""Around every route: who may ask, how much a body may hold, one line and one count a request, and errors in
one shape whoever raised them.

BentoML has no limit on a body, words its errors in three ways, and an exception that leaves a middleware
makes the client wait for the whole time limit: so this stands between BentoML's middleware and all routes.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.access import Buckets, holder_of, is_open
from serving.errors import Refusal
from serving.journal import access, id_for, request_id
from serving.meters import Meters
from serving.schemas import Limits
from serving.traces import Traces
from serving.translate import HINTS, translated
from serving.unpack import Gunzip, check_json

logger = logging.getLogger(__name__)

_MB = 2**20
HOLDER = "canvas_fm.holder"  # in a request's scope: the name of the key that it came with, empty without keys
_LINGER_S, _LINGER_BYTES = 2.0, 512 * _MB


@dataclass(frozen=True)
class Gate:
    """Who may ask: sha256 of keys by name (none: everybody), and origins of web pages that may read."""

    keys: Mapping[str, str] = field(default_factory=dict)
    origins: tuple[str, ...] = ()


class Guard:
    """ASGI middleware; `limits` and `gate` are asked for at each request.

    `raw` are the paths whose body may be as large as `max_body_mb`; everywhere else, and for JSON,
    `max_json_mb` holds;
    `only_json` are those that read JSON and nothing else (BentoML alone would also read multipart forms);
    `routes` are the names under which requests are counted, all others are counted as `other`; `{…}` in one
    stands for any piece of a path.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Callable[[], Limits],
        raw: Collection[str] = (),
        only_json: Collection[str] = (),
        routes: Collection[str] = (),
        gate: Callable[[], Gate] = Gate,
        moved: Mapping[str, str] | None = None,
    ) -> None:
        self.app, self.limits, self.raw, self.only_json = app, limits, raw, only_json
        self.gate, self.moved = gate, moved or {}
        self.routes = {name: re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(name))) for name in routes}
        self.inflight = 0
        self.buckets = Buckets()
        self._shared: tuple[tuple[str, ...], ASGIApp] = ((), self._answer)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                return await send({"type": "websocket.close", "code": 1008})
            return await self.app(scope, receive, send)
        scope["path"] = self.moved.get(scope["path"], scope["path"])
        origins = self.gate().origins
        if origins != self._shared[0]:
            shared = CORSMiddleware(
                self._answer,
                origins,
                allow_methods=("GET", "POST", "DELETE"),
                allow_headers=("*",),
                max_age=600,
            )
            self._shared = (origins, shared if origins else self._answer)
        await self._shared[1](scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        identity = id_for(Headers(scope=scope).get("x-request-id", ""))
        token = request_id.set(identity)
        exchange = _Exchange(self, scope, receive, send, identity)
        meters, began = Meters.of_this_process(), time.monotonic()
        meters.begun()
        end_span = Traces.of_this_process().begin(scope, identity)
        try:
            await self._through(exchange)
        finally:
            self.inflight -= exchange.taken
            seconds = time.monotonic() - began
            route = self._name(scope["path"])
            meters.answered(route, exchange.status, seconds)
            fields = {
                "method": scope["method"],
                "route": route,
                "status": exchange.status,
                "ms": round(1000 * seconds, 1),
                "bytes_in": exchange.taken,
                "key": exchange.holder,
            }
            access.info("%s %s %d", scope["method"], route, exchange.status, extra={"fields": fields})
            end_span(route, exchange.status)
            request_id.reset(token)

    def _name(self, path: str) -> str:
        if path in self.routes:
            return path
        return next((name for name, form in self.routes.items() if form.fullmatch(path)), "other")

    async def _through(self, exchange: _Exchange) -> None:
        scope = exchange.scope
        try:
            exchange.check_caller()
            exchange.check_headers()
            await self.app(scope, exchange.receive, exchange.send)
            await exchange.finish()
        except Refusal as refusal:
            await exchange.refuse(refusal)
        except ClientDisconnect:
            # Nobody reads this; but BentoML's timer waits for an answer, whoever it is for.
            await exchange.refuse(Refusal(400, "the client went away"))
        except Exception:
            logger.exception("%s %s failed", scope["method"], scope["path"][:200])
            if exchange.half_said:
                raise
            await exchange.refuse(Refusal(500, HINTS[500]))


class _Exchange:
    """One request and its answer."""

    def __init__(self, guard: Guard, scope: Scope, receive: Receive, send: Send, identity: str) -> None:
        self.guard, self.scope, self._given, self._send = guard, scope, receive, send
        self.identity, self.holder, self.status = identity, "", 0
        self.limits = guard.limits()
        self.headers = Headers(scope=scope)
        self.media_type = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        raw = scope["path"] in guard.raw and self.media_type != "application/json"
        self.most_mb = self.limits.max_body_mb if raw else self.limits.max_json_mb
        self.taken = 0  # bytes of the body that came
        # Whether the body is all there.
        self.whole = (
            self.headers.get("content-length", "0") == "0" and "transfer-encoding" not in self.headers
        )
        self._packed = Gunzip() if self.headers.get("content-encoding", "").lower() == "gzip" else None
        self._unpacked, self._packed_bytes = False, 0
        self._deadline = time.monotonic() + self.limits.body_s
        self.refusal: Refusal | None = None
        self.held: list[Message] = []  # an error on its way out, to be put into shape
        self.started = self.ended = False

    def check_caller(self) -> None:
        """Who asks, and whether so soon."""
        path, keys = self.scope["path"], self.guard.gate().keys
        if is_open(path):
            return
        try:
            if keys:
                self.holder = holder_of(keys, self.headers.get("authorization", ""))
            self.scope[HOLDER] = self.holder
        finally:  # wrong keys count too, for the address that they come from
            if self.limits.rate_per_s is not None:
                client = self.scope.get("client") or ("unknown",)
                who = f"key {self.holder}" if self.holder else f"address {client[0]}"
                self.guard.buckets.take(who, self.limits.rate_per_s, self.limits.burst)

    def check_headers(self) -> None:
        """What can be refused before a byte of the body is read."""
        encoding = self.headers.get("content-encoding", "identity").lower()
        if encoding not in ("identity", "gzip"):
            raise Refusal(
                415, f"the Content-Encoding {encoding[:50]!r} is not read; send gzip, or send it plain"
            )
        given, path = self.media_type, self.scope["path"]
        if self.scope["method"] == "POST" and path in self.guard.only_json and given != "application/json":
            raise Refusal(415, f"the body is {given or 'of no stated type'}; {path} reads application/json")
        length = self.headers.get("content-length", "")
        if length.isdigit() and int(length) > self.most_mb * _MB:
            raise self._too_large()

    def _too_large(self) -> Refusal:
        return Refusal(413, f"the body is larger than {self.most_mb:g} MB; send it in smaller pieces")

    async def receive(self) -> Message:
        """The body, unpacked and counted; JSON in one piece, after its size and depth were looked at."""
        if self.media_type != "application/json" or self.whole:
            return await self._piece()
        body = bytearray()
        while True:
            message = await self._piece()
            body += message.get("body", b"")
            if message["type"] != "http.request":
                return message
            if not message.get("more_body", False):
                break
        try:
            check_json(bytes(body), self.limits.max_json_values)
        except Refusal as refusal:
            self._give_up(refusal)
        return {"type": "http.request", "body": bytes(body), "more_body": False}

    async def _piece(self) -> Message:
        if self._packed is None or self._unpacked:
            return await self._receive()
        try:
            while not (out := self._packed.next()):
                if self.whole:
                    self._packed.check_end()
                    self._unpacked = True
                    return {"type": "http.request", "body": b"", "more_body": False}
                message = await self._receive()
                if message["type"] != "http.request":
                    return message
                self._packed.feed(message.get("body", b""))
        except Refusal as refusal:
            self._give_up(refusal)
        self._count(len(out))
        return {"type": "http.request", "body": out, "more_body": True}

    async def _receive(self) -> Message:
        if self.refusal is not None:
            raise self.refusal
        if self.whole:
            return await self._given()
        try:
            async with asyncio.timeout(min(self.limits.stall_s, self._deadline - time.monotonic())):
                message = await self._given()
        except TimeoutError:
            late = time.monotonic() >= self._deadline
            said = f"was not all there after {self.limits.body_s:g} s" if late else ""
            self._give_up(
                Refusal(408, f"the body {said or f'brought nothing for {self.limits.stall_s:g} s'}")
            )
        if message["type"] == "http.request":
            self.whole = not message.get("more_body", False)
            size = len(message.get("body", b""))
            if self._packed is None:
                self._count(size)
            else:  # what it unpacks to is counted; a stream of nothing is held to the same size
                self._packed_bytes += size
                if self._packed_bytes > self.most_mb * _MB:
                    self._give_up(self._too_large())
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

    def _give_up(self, refusal: Refusal) -> NoReturn:
        # Remembered, because the framework inside may turn the exception into an answer of its own.
        self.refusal = refusal
        raise refusal

    async def send(self, message: Message) -> None:
        if self.ended:
            return
        if message["type"] == "http.response.start":
            self.started, self.status = True, message["status"]
            MutableHeaders(scope=message)["X-Request-ID"] = self.identity
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
            await self._answer(self.refusal or translated(self.held, self.scope), self.held[0]["headers"])

    async def refuse(self, refusal: Refusal) -> None:
        if self.held:
            await self.finish()
        elif not self.started:
            await self._answer(self.refusal or refusal, [])

    async def _answer(self, refusal: Refusal, raw_headers: list[tuple[bytes, bytes]]) -> None:
        self.started = self.ended = True
        self.status = refusal.status
        response = refusal.response()
        headers = MutableHeaders(raw=list(response.raw_headers))
        for key, value in Headers(raw=raw_headers).items():
            if key not in ("content-length", "content-type"):
                headers.setdefault(key, value)
        headers["X-Request-ID"] = self.identity
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
                    message = await self._given()
                    left -= len(message.get("body", b""))
                    if message["type"] != "http.request" or not message.get("more_body", False):
                        return
        except TimeoutError:
            return
