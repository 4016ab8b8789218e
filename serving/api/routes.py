"""Routes under `/v1`: each parses a request, calls the core, and encodes the response."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import numpy as np
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from canvas_fm.data.volume.options import VolumeOptions
from canvas_fm.errors import CanvasError
from serving.api import detect_routes, index_routes, job_routes, refine_routes
from serving.api.bodies import GONE, decoded, disconnected, media_type, read_crops, read_model, reply
from serving.api.openapi import document
from serving.api.query import Options, embed_options, given, switch, whole_number, window_of
from serving.api.whitening import check_whitening
from serving.core import register
from serving.core.core import Core
from serving.core.describe import describe, detector_info
from serving.core.embed_points import embed_points
from serving.core.search import check_search, find_index, search
from serving.core.thread_pool import cancel_on_disconnect
from serving.jobs.runner import JobRunner
from serving.jobs.store import JobStore
from serving.observe.metrics import Metrics
from serving.protocol import npy
from serving.protocol.errors import Refusal, refused
from serving.protocol.schemas import (
    Addition,
    EmbedRequest,
    PointsRequest,
    SearchRequest,
    VolumeAddition,
)
from serving.protocol.settings import Settings


def create_app(core: Core) -> Starlette:
    """The Starlette app, whose lifespan runs `core` and the jobs; meant to run behind a Guard."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        runner: JobRunner | None = None

        def start_jobs(settings: Settings) -> None:
            nonlocal runner
            if settings.jobs is not None:
                app.state.jobs = runner = JobRunner(core, JobStore(settings.jobs), core.busy)
                runner.start()

        app.state.jobs = None
        await core.start(start_jobs)
        try:
            yield
        finally:
            if runner is not None:
                await asyncio.to_thread(runner.stop)
            await core.stop()

    async def refusal(request: Request, problem: Exception) -> Response:
        assert isinstance(problem, Refusal)
        return problem.response()

    async def left(request: Request, problem: Exception) -> Response:
        return Refusal(400, GONE).response()

    def route(method: str, path: str, answer: Callable[[Core, Request], Awaitable[Response]]) -> Route:
        async def endpoint(request: Request) -> Response:
            return await answer(core, request)

        return Route(path, endpoint, methods=[method], name=f"{method} {path}")

    return Starlette(
        routes=[route(*each) for each in ROUTES],
        exception_handlers={Refusal: refusal, ClientDisconnect: left},
        lifespan=lifespan,
    )


async def info(core: Core, request: Request) -> Response:
    """What is served: the default model, all models, volumes, indexes, limits."""
    core.require_ready()
    said = await asyncio.to_thread(describe, core)
    return JSONResponse(said.model_dump(mode="json"))


async def models(core: Core, request: Request) -> Response:
    """The served encoders, the default first, and detectors."""
    listing = [engine.model_info().model_dump(mode="json") for engine in core.engines.values()]
    detectors = [detector_info(name, each).model_dump(mode="json") for name, each in core.detectors.items()]
    return JSONResponse({"models": listing, "detectors": detectors})


async def add_model(core: Core, request: Request) -> Response:
    """Serve another model while the service runs."""
    _json_only(request)
    body = await read_model(request, Addition)
    added = await register.add_model(core, body.name, body.path)
    return JSONResponse(added.model_dump(mode="json"), 201)


async def add_volume(core: Core, request: Request) -> Response:
    """Register another volume while the service runs."""
    _json_only(request)
    body = await read_model(request, VolumeAddition)
    opening = {name: value for name, value in body.given.items() if name in VolumeOptions.model_fields}
    added = await register.add_volume(core, body.name, body.path, opening)
    return JSONResponse(added.model_dump(mode="json"), 201)


async def embed(core: Core, request: Request) -> Response:
    """Embeddings of crops."""
    core.require_ready()
    if media_type(request) == "application/json":
        given(request, ())
        body = await read_model(request, EmbedRequest)
        options = Options(
            body.pool, body.layer, body.model, body.normalize, body.dtype, body.window, body.whiten
        )
        check_whitening(core, options)
        crops = await decoded(core, body.crops, options.window, core.engine_for(options.model))
    else:
        options = embed_options(request)
        check_whitening(core, options)
        crops = await read_crops(core, request, options.window, core.engine_for(options.model))
    work = core.embed(crops, options.window, options.pool, options.layer, options.model)
    return await reply(core, request, await cancel_on_disconnect(disconnected(request), work), options)


async def embed_points_route(core: Core, request: Request) -> Response:
    """Embeddings of points of a registered volume."""
    given(request, ())
    core.require_ready()
    body = await read_model(request, PointsRequest)
    options = Options(body.pool, body.layer, body.model, body.normalize, body.dtype, whiten=body.whiten)
    check_whitening(core, options)
    work = embed_points(core, body.volume, body.points_zyx, body.pool, body.layer, body.model)
    return await reply(core, request, await cancel_on_disconnect(disconnected(request), work), options)


async def search_route(core: Core, request: Request) -> Response:
    """Nearest cells of vectors, ids or examples as JSON, or of crops as `.npy`."""
    core.require_ready()
    if media_type(request) == "application/json":
        given(request, ())
        body = await read_model(request, SearchRequest)
        vectors: np.ndarray | None = None
    else:
        values = given(request, ("index", "k", "thumbnails", "where", "window"), several=("where",))
        k = whole_number(values, "k")
        where = request.query_params.getlist("where")
        if k == 0:
            raise Refusal(422, "k is 0; ask for at least one hit")
        body = SearchRequest(
            index=values.get("index"),
            k=10 if k is None else k,
            where=where,
            thumbnails=switch(values, "thumbnails"),
        )
        _, index = find_index(core, body.index)
        window = window_of(values)
        crops = await read_crops(core, request, window, core.engine_for(index.encoder_sha256))
        check_search(core, body, len(crops))
        work = core.embed(crops, window, index.pool, index.layer, index.encoder_sha256)
        vectors = await cancel_on_disconnect(disconnected(request), work)
        if vectors is None:
            raise Refusal(400, GONE)
    found = await cancel_on_disconnect(disconnected(request), search(core, body, vectors))
    if found is None:
        raise Refusal(400, GONE)
    return JSONResponse(found.model_dump(mode="json"))


async def reconstruct(core: Core, request: Request) -> Response:
    """The paper's four rows of one to eight crops: (n, 4, z, y, x) float32 `.npy`.

    `X-Given` says what the model was given of the hidden patches, where it was given anything.
    """
    values = given(request, ("mask_ratio", "model", "seed", "window"))
    ratio = values.get("mask_ratio")
    try:
        mask_ratio = None if ratio is None else float(ratio)
    except ValueError as problem:
        raise Refusal(422, f"mask_ratio is {ratio!r:.50}; it has to be a number between 0 and 1") from problem
    window, model = window_of(values), values.get("model")
    engine = core.engine_for(model)
    crops = await read_crops(core, request, window, engine, queued=False)
    if len(crops) > 8:
        raise Refusal(413, f"{len(crops)} crops in one request; 8 are the most here")
    seed = whole_number(values, "seed") or 0
    work = core.model_pool.run(
        lambda: engine.reconstruct(engine.check(crops, window), mask_ratio, seed),
        deadline_s=core.limits.deadline_s,
    )
    try:
        result = await cancel_on_disconnect(disconnected(request), work)
    except CanvasError as problem:
        raise refused(problem) from problem
    if result is None:
        raise Refusal(400, GONE)
    rows, masked = result
    headers = {"X-Model": engine.encoder.sha256, "X-Masked-Patches": str(int(masked[0].sum()))}
    decoder = engine.encoder.config.decoder
    if decoder is not None and decoder.given is not None:
        headers["X-Given"] = decoder.given
    return Response(npy.dump(rows), media_type=npy.MEDIA_TYPE, headers=headers)


async def openapi(core: Core, request: Request) -> Response:
    """This document."""
    return JSONResponse(document([(method, path, answer.__doc__ or "") for method, path, answer in ROUTES]))


async def metrics(core: Core, request: Request) -> Response:
    """Prometheus metrics; also at /metrics."""
    text = await asyncio.to_thread(Metrics.of_this_process().text)
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def _json_only(request: Request) -> None:
    if media_type(request) != "application/json":
        raise Refusal(415, f"the body is {media_type(request) or 'of no stated type'}; send application/json")


ROUTES: list[tuple[str, str, Callable[[Core, Request], Awaitable[Response]]]] = [
    ("GET", "/info", info),
    ("GET", "/models", models),
    ("POST", "/models", add_model),
    ("POST", "/volumes", add_volume),
    ("POST", "/embed", embed),
    ("POST", "/embed/points", embed_points_route),
    *detect_routes.ROUTES,
    *refine_routes.ROUTES,
    ("POST", "/search", search_route),
    ("POST", "/reconstruct", reconstruct),
    *job_routes.ROUTES,
    *index_routes.ROUTES,
    ("GET", "/openapi.json", openapi),
    ("GET", "/metrics", metrics),
]
