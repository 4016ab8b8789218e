"""The routes for bytes, mounted at `/v1`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import get_args

import numpy as np
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from canvas_fm.errors import CanvasError
from serving import npy
from serving.core import Core, Window, unless_gone
from serving.errors import Refusal, refused
from serving.guard import describe
from serving.schemas import PointsRequest, Pool

_MEDIA_TYPES = ("application/x-npy", "application/octet-stream")
_POOLS = get_args(Pool)
_GONE = "the client went away"  # nobody reads it, but what stands around us waits for an answer


def create_app(core: Core) -> Starlette:
    """The Starlette app; it starts and stops `core` with itself. Meant to stand behind a Guard."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await core.start()
        try:
            yield
        finally:
            await core.stop()

    async def refusal(request: Request, problem: Exception) -> Response:
        assert isinstance(problem, Refusal)
        return problem.response()

    async def gone(request: Request, problem: Exception) -> Response:
        return Refusal(400, _GONE).response()

    def route(path: str, answer: Callable[[Core, Request], Awaitable[Response]], method: str) -> Route:
        async def endpoint(request: Request) -> Response:
            return await answer(core, request)

        return Route(path, endpoint, methods=[method], name=path)

    return Starlette(
        routes=[
            route("/embed", embed, "POST"),
            route("/embed/points", embed_points, "POST"),
            route("/info", info, "GET"),
        ],
        exception_handlers={Refusal: refusal, ClientDisconnect: gone},
        lifespan=lifespan,
    )


async def info(core: Core, request: Request) -> Response:
    """What is served: model, volumes, limits."""
    return JSONResponse(core.engine.info().model_dump(mode="json"))


async def embed(core: Core, request: Request) -> Response:
    """`.npy` crops in, embeddings out: `.npy`, or JSON where the client accepts only that."""
    pool, window = _query(request, window=True)
    crops = await _read_crops(core, request, window)
    vectors = await unless_gone(_gone(request), core.embed(crops, window, pool))
    return await _reply(core, request, vectors)


async def embed_points(core: Core, request: Request) -> Response:
    """Points of a registered volume in, embeddings out."""
    _query(request)
    core.engine  # noqa: B018  not ready is said before the body is read
    try:
        asked = PointsRequest.model_validate_json(await request.body())
    except ValidationError as problem:
        status = 400 if problem.errors()[0]["type"] == "json_invalid" else 422
        raise Refusal(status, describe(list(problem.errors()))) from problem
    work = core.embed_points(asked.volume, asked.points_zyx, asked.pool)
    return await _reply(core, request, await unless_gone(_gone(request), work))


def _query(request: Request, window: bool = False) -> tuple[str | None, Window | None]:
    """(pool, window) as given in the address; a key that is unknown or given twice is refused."""
    known = {"window", "pool"} if window else set()
    given = request.query_params
    for key in given:
        if key not in known or len(given.getlist(key)) > 1:
            reason = (
                "is given twice"
                if key in known
                else f"is unknown here; known: {', '.join(sorted(known)) or 'none'}"
            )
            raise Refusal(422, f"the parameter {key[:50]!r} {reason}")
    pool = given.get("pool")
    if pool is not None and pool not in _POOLS:
        raise Refusal(422, f"pool is {pool[:50]!r}; it has to be one of {', '.join(_POOLS)}")
    return pool, _window(given.get("window"))


def _window(text: str | None) -> Window | None:
    if text is None:
        return None
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low, high = math.nan, math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise Refusal(422, f"window is {text[:50]!r}; it has to be LO,HI: two numbers, the lower one first")
    return low, high


async def _read_crops(core: Core, request: Request, window: Window | None) -> np.ndarray:
    """The array of the body. What the header alone makes impossible is refused before the rest is read."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in _MEDIA_TYPES:
        raise Refusal(
            415, f"the body is {media_type or 'of no stated type'}; send .npy as {' or '.join(_MEDIA_TYPES)}"
        )
    body, header = bytearray(), None
    async for chunk in request.stream():
        body += chunk
        if header is None and (header := npy.read_header(body)) is not None:
            _check_header(core, header, window)
        if header is not None and len(body) > header.total:
            break
    if header is None:
        raise Refusal(400, f"the body ends inside the .npy header, after {len(body)} bytes")
    return npy.read_values(body, header)


def _check_header(core: Core, header: npy.Header, window: Window | None) -> None:
    if header.total > core.limits.max_body_mb * 2**20:
        raise Refusal(
            413, f"the .npy promises {header.total} bytes; {core.limits.max_body_mb:g} MB are the most"
        )
    try:
        core.engine.check_kind(header.dtype, header.shape, window)
    except CanvasError as problem:
        raise refused(problem) from problem


async def _gone(request: Request) -> None:
    """Ends when the client closes the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _reply(core: Core, request: Request, vectors: np.ndarray | None) -> Response:
    if vectors is None:
        raise Refusal(400, _GONE)
    if not _wants_json(request.headers.get("accept", "")):
        return Response(npy.dump(vectors), media_type=npy.MEDIA_TYPE)
    sha256 = core.engine.encoder.sha256
    text = await asyncio.to_thread(lambda: json.dumps({"embeddings": vectors.tolist(), "model": sha256}))
    return Response(text, media_type="application/json")


def _wants_json(accept: str) -> bool:
    """Whether JSON is named, and `.npy` is not named before it."""
    named = [entry.partition(";")[0].strip().lower() for entry in accept.split(",")]
    return next(
        (name == "application/json" for name in named if name in ("application/json", *_MEDIA_TYPES)), False
    )
