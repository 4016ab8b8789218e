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

from canvas_fm.data.volume.volume_flags import VolumeOptions
from canvas_fm.errors import CanvasError
from serving.api.bodies import (
    check_whitening,
    decoded,
    media_type,
    read_crops,
    read_model,
    reply,
    while_connected,
)
from serving.api.description.endpoint import JSON, NPY, SAFE, Endpoint
from serving.api.description.openapi import document
from serving.api.description.query import read_query
from serving.api.json_reply import json_reply
from serving.api.routes import detect, embed_json, indexes, jobs, openai, refine, review, tiles
from serving.api.routes.review import HostedReview
from serving.core.core import Core
from serving.core.embed.points import embed_points
from serving.core.jobs.runner import JobRunner
from serving.core.jobs.store import JobStore
from serving.core.models.describe import describe, detector_info
from serving.core.search import check_search, find_index, search
from serving.core.volumes import register
from serving.observe.metrics import Metrics
from serving.protocol import npy
from serving.protocol.errors import Refusal, of_library
from serving.protocol.request_options import (
    Addition,
    EmbedQuery,
    EmbedRequest,
    PointsRequest,
    ReconstructQuery,
    SearchQuery,
    SearchRequest,
    VolumeAddition,
)
from serving.protocol.schemas import DetectorInfo, EmbeddingsReply, Info, ModelInfo, SearchReply, VolumeInfo
from serving.protocol.settings import ServiceSettings


async def _at_once() -> None: ...


def create_app(core: Core, turn: Callable[[], Awaitable[None]] = _at_once) -> Starlette:
    """The Starlette app, whose lifespan runs `core` and the jobs; runs behind a `RequestMiddleware`.

    Models are loaded at once; connections are accepted and jobs run once `turn` has returned.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        runner: JobRunner | None = None
        hosted: HostedReview | None = None
        has_turn = False

        def start_work(settings: ServiceSettings) -> None:
            nonlocal runner, hosted
            if settings.reviewed is not None and has_turn:
                app.state.review = hosted = HostedReview.begin(core, settings.reviewed)
            if settings.jobs is not None and has_turn:
                app.state.jobs = runner = JobRunner(core, JobStore(settings.jobs), core.busy)
                runner.start()

        app.state.jobs = app.state.review = None
        await core.start(start_work)
        await turn()
        has_turn = True
        if not core.alive:  # what failed while it was a spare is tried again
            await core.stop()
            await core.start(start_work)
        elif core.ready:
            try:
                start_work(core.require_ready())
            except CanvasError as problem:
                core.fail(str(problem))
        try:
            yield
        finally:
            if runner is not None:
                await asyncio.to_thread(runner.stop)
            if hosted is not None:
                await asyncio.to_thread(hosted.end)
            await core.stop()

    async def refusal(request: Request, problem: Exception) -> Response:
        assert isinstance(problem, Refusal)
        return problem.response()

    async def library_error(request: Request, problem: Exception) -> Response:
        assert isinstance(problem, CanvasError)
        return of_library(problem).response()

    async def left(request: Request, problem: Exception) -> Response:
        # Nobody reads it, but BentoML waits for an answer.
        return Refusal(400, "the client went away").response()

    def route(each: Endpoint) -> Route:
        async def endpoint(request: Request) -> Response:
            assert callable(each.answer)
            if each.needs_models:
                core.require_ready()
            return await each.answer(core, request)

        return Route(each.path, endpoint, methods=[each.method], name=f"{each.method} {each.path}")

    return Starlette(
        routes=[route(each) for each in (*ROUTES, embed_json.ROUTE)],
        exception_handlers={Refusal: refusal, CanvasError: library_error, ClientDisconnect: left},
        lifespan=lifespan,
    )


async def info(core: Core, request: Request) -> Response:
    """What is served: the default model, all models, volumes, indexes, limits."""
    info = await asyncio.to_thread(describe, core)
    return JSONResponse(info.model_dump(mode="json"))


async def models(core: Core, request: Request) -> Response:
    """The served encoders, the default first, and detectors."""
    listing = [engine.model_info().model_dump(mode="json") for engine in core.engines.values()]
    detectors = [detector_info(name, each).model_dump(mode="json") for name, each in core.detectors.items()]
    return JSONResponse({"models": listing, "detectors": detectors})


async def add_model(core: Core, request: Request) -> Response:
    """Serve another model while the service runs."""
    _json_only(request)
    body = await read_model(core, request, Addition)
    added = await register.add_model(core, body.name, body.path)
    return JSONResponse(added.model_dump(mode="json"), 201)


async def add_volume(core: Core, request: Request) -> Response:
    """Register another volume while the service runs."""
    _json_only(request)
    body = await read_model(core, request, VolumeAddition)
    volume_options = {
        name: value for name, value in body.explicit.items() if name in VolumeOptions.model_fields
    }
    added = await register.add_volume(core, body.name, body.path, volume_options)
    return JSONResponse(added.model_dump(mode="json"), 201)


async def embed(core: Core, request: Request) -> Response:
    """Embeddings of crops."""
    if media_type(request) == JSON:
        options: EmbedQuery = await read_model(core, request, EmbedRequest)
    else:
        options = read_query(request, EmbedQuery)
    check_whitening(core, options)
    engine = core.engine_for(options.model)
    if isinstance(options, EmbedRequest):
        crops = await decoded(core, options.crops, options.window, engine)
    else:
        crops = await read_crops(core, request, options.window, engine)
    work = core.embed(engine, crops, options.window, options.pool, options.layer)
    return await reply(core, request, await while_connected(request, work), options)


async def embed_points_route(core: Core, request: Request) -> Response:
    """Embeddings of points of a registered volume."""
    body = await read_model(core, request, PointsRequest)
    check_whitening(core, body)
    engine = core.engine_for(body.model)
    work = embed_points(core, engine, body.volume, body.points_zyx, body.pool, body.layer)
    return await reply(core, request, await while_connected(request, work), body)


async def search_route(core: Core, request: Request) -> Response:
    """Nearest cells of vectors, ids or examples as JSON, or of crops as `.npy`."""
    if media_type(request) == JSON:
        body = await read_model(core, request, SearchRequest)
        vectors: np.ndarray | None = None
    else:
        query = read_query(request, SearchQuery)
        body = SearchRequest(**query.model_dump(exclude={"window"}))
        _, index = find_index(core, body.index)
        engine = core.engine_for(index.encoder_sha256)
        crops = await read_crops(core, request, query.window, engine)
        check_search(core, body, len(crops))
        work = core.embed(engine, crops, query.window, index.pool, index.layer)
        vectors = await while_connected(request, work)
    reply = await while_connected(request, search(core, body, vectors))
    return await json_reply(dict(reply))


async def reconstruct(core: Core, request: Request) -> Response:
    """The paper's four rows of one to eight crops: (n, 4, z, y, x) float32 `.npy`.

    `X-Masked-Statistics` names what the model was given of the masked patches, where it was given anything.
    """
    query = read_query(request, ReconstructQuery)
    engine = core.engine_for(query.model)
    crops = await read_crops(core, request, query.window, engine, queued=False)
    if len(crops) > 8:
        raise Refusal(413, f"{len(crops)} crops in one request; 8 are the most here")
    work = core.model_pool.run(
        lambda: engine.reconstruct(engine.check(crops, query.window), query.mask_ratio, query.seed)
    )
    rows, masked = await while_connected(request, work)
    headers = {"X-Model": engine.sha256, "X-Masked-Patches": str(int(masked[0].sum()))}
    decoder = engine.encoder.config.decoder
    if decoder is not None and decoder.masked_statistics is not None:
        headers["X-Masked-Statistics"] = decoder.masked_statistics
        headers["X-Given"] = decoder.masked_statistics  # its name before 1.0
    return Response(npy.dump(rows), media_type=npy.MEDIA_TYPE, headers=headers)


async def openapi(core: Core, request: Request) -> Response:
    """This document."""
    return JSONResponse(document(ROUTES, OTHERS))


async def metrics(core: Core, request: Request) -> Response:
    """Prometheus metrics; also at /metrics."""
    text = await asyncio.to_thread(Metrics.of_this_process().text)
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def _json_only(request: Request) -> None:
    if media_type(request) != "application/json":
        raise Refusal(415, f"the body is {media_type(request) or 'of no stated type'}; send application/json")


ROUTES = [
    Endpoint("GET", "/info", info, {JSON: Info}),
    Endpoint("GET", "/models", models, {JSON: {"models": ModelInfo, "detectors": DetectorInfo}}),
    Endpoint("POST", "/models", add_model, {JSON: ModelInfo}, bodies={JSON: Addition}, status=201),
    Endpoint("POST", "/volumes", add_volume, {JSON: VolumeInfo}, bodies={JSON: VolumeAddition}, status=201),
    Endpoint(
        "POST",
        "/embed",
        embed,
        {NPY: None, JSON: EmbeddingsReply, SAFE: None},
        query=EmbedQuery,
        bodies={NPY: None, SAFE: None, JSON: EmbedRequest},
    ),
    Endpoint(
        "POST",
        "/embed/points",
        embed_points_route,
        {NPY: None, JSON: EmbeddingsReply, SAFE: None},
        bodies={JSON: PointsRequest},
    ),
    *openai.ROUTES,
    *detect.ROUTES,
    *refine.ROUTES,
    Endpoint(
        "POST",
        "/search",
        search_route,
        {JSON: SearchReply},
        query=SearchQuery,
        bodies={JSON: SearchRequest, NPY: None},
    ),
    Endpoint("POST", "/reconstruct", reconstruct, {NPY: None}, query=ReconstructQuery, bodies={NPY: None}),
    *jobs.ROUTES,
    *indexes.ROUTES,
    *tiles.ROUTES,
    *review.ROUTES,
    Endpoint("GET", "/openapi.json", openapi, {JSON: None}, needs_models=False),
    Endpoint("GET", "/metrics", metrics, {"text/plain": None}, needs_models=False),
]
OTHERS = [
    embed_json.ROUTE,
    Endpoint("GET", "/livez", "Whether the process is of use.", {"text/plain": None}),
    Endpoint("GET", "/readyz", "Whether all models are loaded.", {"text/plain": None}),
    Endpoint("GET", "/metrics", "Figures for Prometheus.", {"text/plain": None}),
]
"""Endpoints outside of /v1: crops as JSON, which the middleware passes on, and those of BentoML."""
