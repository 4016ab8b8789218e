"""ASGI middleware of every route: authentication, body limits, access log, metrics, uniform errors.

BentoML has no limit on a body, words its errors in three ways, and an exception that leaves a middleware
makes the client wait for the whole time limit: so this stands between BentoML's middleware and all routes.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Collection, Mapping
from typing import Protocol

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.api.middleware.auth import Buckets, holder_of, is_open
from serving.api.middleware.body_limits import MB, Body, media_type_of
from serving.observe.access_log import access, request_id
from serving.observe.metrics import Metrics
from serving.observe.tracing import Traces
from serving.protocol.errors import HINTS, Refusal, translated
from serving.protocol.settings import ServiceSettings

logger = logging.getLogger(__name__)

HOLDER = "canvas_fm.holder"  # in a request's scope: the name of the key that it came with
_ONCE = ("content-type", "content-encoding", "idempotency-key", "authorization", "x-request-id")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ABSOLUTE = re.compile(r"^https?://[^/?#]*", re.IGNORECASE)  # in a request's target (RFC 9112, 3.2.2)
_LINGER_S, _LINGER_BYTES = 2.0, 512 * MB


class HasSettings(Protocol):
    """Protocol of `Core`: the settings of the service, which are read when it starts."""

    settings: ServiceSettings


class RequestMiddleware:
    """ASGI middleware; limits, keys and origins are those of `core.settings` at each request.

    `raw` are the paths whose body may be as large as `max_body_mb`; everywhere else, and for JSON,
    `max_json_mb` holds;
    `only_json` are those that read JSON and nothing else (BentoML alone would also read multipart forms);
    `routes` are the names under which requests are counted, all others are counted as `other`; `{…}` in one
    stands for any piece of a path.
    """

    def __init__(
        self,
        app: ASGIApp,
        core: HasSettings,
        raw: Collection[str] = (),
        only_json: Collection[str] = (),
        routes: Collection[str] = (),
        moved: Mapping[str, str] | None = None,
    ) -> None:
        self.app, self.core, self.raw, self.only_json = app, core, raw, only_json
        self.moved = moved or {}
        self.routes = {name: re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(name))) for name in routes}
        self.inflight = 0
        self.buckets = Buckets()
        self._shared: tuple[tuple[str, ...], ASGIApp] = ((), self._answer)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                return await send({"type": "websocket.close", "code": 1008})
            return await self.app(scope, receive, send)
        path = _ABSOLUTE.sub("", scope["path"]) or "/"
        scope["path"] = self.moved.get(path, path)
        origins = self.core.settings.origins
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
        sent = Headers(scope=scope).get("x-request-id", "")
        identity = sent if _REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex
        token = request_id.set(identity)
        context = RequestContext(self, scope, receive, send, identity)
        metrics, began = Metrics.of_this_process(), time.monotonic()
        metrics.in_progress.inc()
        end_span = Traces.of_this_process().begin(scope, identity)
        try:
            await self._through(context)
        finally:
            self.inflight -= context.body.taken
            seconds = time.monotonic() - began
            route = self._name(scope["path"])
            metrics.in_progress.dec()
            metrics.requests.labels(route, str(context.status)).inc()
            metrics.seconds.labels(route).observe(seconds)
            fields = {
                "method": scope["method"],
                "route": route,
                "status": context.status,
                "ms": round(1000 * seconds, 1),
                "bytes_in": context.body.taken,
                "key": context.holder,
            }
            access.info("%s %s %d", scope["method"], route, context.status, extra={"fields": fields})
            end_span(route, context.status)
            request_id.reset(token)

    def add_inflight_bytes(self, size: int) -> int:
        """Count received bytes of a body, and the sum over all requests in flight."""
        self.inflight += size
        return self.inflight

    def _name(self, path: str) -> str:
        if path in self.routes:
            return path
        return next((name for name, form in self.routes.items() if form.fullmatch(path)), "other")

    async def _through(self, context: RequestContext) -> None:
        scope = context.scope
        try:
            context.check_caller()
            context.check_headers()
            await self.app(scope, context.body.receive, context.send)
            await context.finish()
        except Refusal as refusal:
            await context.refuse(refusal)
        except ClientDisconnect:
            # Nobody reads this; but BentoML's timer waits for an answer, whoever it is for.
            await context.refuse(Refusal(400, "the client went away"))
        except Exception:
            logger.exception("%s %s failed", scope["method"], scope["path"][:200])
            if context.response_incomplete:
                raise
            await context.refuse(Refusal(500, HINTS[500]))


class RequestContext:
    """One request and its response."""

    def __init__(
        self, middleware: RequestMiddleware, scope: Scope, receive: Receive, send: Send, identity: str
    ) -> None:
        self.middleware, self.scope, self._receive_raw, self._send = middleware, scope, receive, send
        self.identity, self.holder, self.status = identity, "", 0
        self.keys, self.limits = middleware.core.settings.keys, middleware.core.settings.limits
        self.headers = Headers(scope=scope)
        self.media_type = media_type_of(self.headers)
        raw = scope["path"] in middleware.raw and self.media_type != "application/json"
        most_mb = self.limits.max_body_mb if raw else self.limits.max_json_mb
        self.body = Body(receive, self.headers, self.limits, most_mb, middleware.add_inflight_bytes)
        self.held: list[Message] = []  # an error on its way out, to be put into shape
        self.started = self.ended = False

    def check_caller(self) -> None:
        """Authenticate and rate-limit."""
        if (not self.keys and self.limits.rate_per_s is None) or is_open(self.scope["path"]):
            return
        try:
            if self.keys:
                self.holder = holder_of(self.keys, self.headers.get("authorization", ""))
            self.scope[HOLDER] = self.holder
        finally:  # wrong keys count too, for the address that they come from
            if self.limits.rate_per_s is not None:
                client = self.scope.get("client") or ("unknown",)
                client_name = f"key {self.holder}" if self.holder else f"address {client[0]}"
                self.middleware.buckets.take(client_name, self.limits.rate_per_s, self.limits.burst)

    def check_headers(self) -> None:
        """Refuse what headers rule out, before the body is read."""
        if "content-length" in self.headers and "transfer-encoding" in self.headers:
            # Of which a proxy may go by the other (RFC 9112, 6.1); the connection is closed after the answer.
            raise Refusal(400, "Content-Length and Transfer-Encoding were both sent; send one of them")
        if (version := self.scope.get("http_version", "1.1")) not in ("1.0", "1.1"):
            raise Refusal(400, f"HTTP/{version[:10]} is not spoken here; send HTTP/1.1")
        if twice := next((name for name in _ONCE if len(self.headers.getlist(name)) > 1), None):
            # Of which a proxy may go by another (RFC 9110, 5.3).
            raise Refusal(400, f"the header {twice} was sent more than once; send it once")
        encoding = self.headers.get("content-encoding", "identity").lower()
        if encoding not in ("identity", "gzip"):
            raise Refusal(
                415, f"the Content-Encoding {encoding[:50]!r} is not read; send gzip, or send it plain"
            )
        media_type, path = self.media_type, self.scope["path"]
        if (
            self.scope["method"] == "POST"
            and path in self.middleware.only_json
            and media_type != "application/json"
        ):
            raise Refusal(
                415, f"the body is {media_type or 'of no stated type'}; {path} reads application/json"
            )
        self.body.check_stated_size()

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
    def response_incomplete(self) -> bool:
        """Whether a good response was started and not finished: the connection has to be closed."""
        return self.started and not self.held and not self.ended

    async def finish(self) -> None:
        """Send a held-back error in our format."""
        if self.held and not self.ended:
            await self._answer(
                self.body.refusal or translated(self.held, self.scope), self.held[0]["headers"]
            )

    async def refuse(self, refusal: Refusal) -> None:
        if self.held:
            await self.finish()
        elif not self.started:
            await self._answer(self.body.refusal or refusal, [])

    async def _answer(self, refusal: Refusal, raw_headers: list[tuple[bytes, bytes]]) -> None:
        self.started = self.ended = True
        self.status = refusal.status
        response = refusal.response()
        headers = MutableHeaders(raw=list(response.raw_headers))
        for key, value in Headers(raw=raw_headers).items():
            if key not in ("content-length", "content-type"):
                headers.setdefault(key, value)
        headers["X-Request-ID"] = self.identity
        if not self.body.whole:
            headers["Connection"] = "close"
        await self._send({"type": "http.response.start", "status": refusal.status, "headers": headers.raw})
        await self._send({"type": "http.response.body", "body": response.body, "more_body": True})
        if not self.body.whole and "expect" not in self.headers:
            await self._linger()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _linger(self) -> None:
        """Read on for a moment: closing while the client sends would reset the connection."""
        left = _LINGER_BYTES
        try:
            async with asyncio.timeout(_LINGER_S):
                while left > 0:
                    message = await self._receive_raw()
                    left -= len(message.get("body", b""))
                    if message["type"] != "http.request" or not message.get("more_body", False):
                        return
        except TimeoutError:
            return
