"""`POST /v1/refine`: P(cell) of points of a registered volume, or of crops."""

from __future__ import annotations

from collections.abc import Awaitable

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from serving.api.bodies import accepted, decoded, media_type, read_crops, read_model, while_connected
from serving.api.description.endpoint import JSON, NPY, SAFE, Endpoint
from serving.api.description.query import read_query
from serving.api.json_reply import json_reply
from serving.core.core import Core
from serving.core.models.hosted_refiner import HostedRefiner
from serving.core.refine import check_whole, encoder_of, find_refiner, refine_crops, refine_points
from serving.protocol import npy
from serving.protocol.errors import Refusal
from serving.protocol.request_options import RefineQuery, RefineRequest
from serving.protocol.schemas import RefineReply


async def refine(core: Core, request: Request) -> Response:
    """P(cell) of points of a registered volume, or of crops."""
    body: RefineRequest | None = None
    if media_type(request) == "application/json":
        body = await read_model(core, request, RefineRequest)
        hosted = find_refiner(core, body.refiner)
        work = await _refinement(core, hosted, body)
    else:
        query = read_query(request, RefineQuery)
        hosted = find_refiner(core, query.refiner)
        check_whole(hosted, query.all_candidates)
        crops = await read_crops(core, request, query.window, encoder_of(hosted))
        work = refine_crops(core, hosted, crops, query.window)
    p_cell = await while_connected(request, work)
    return await _reply(core, request, hosted, p_cell, body)


async def _refinement(core: Core, hosted: HostedRefiner, body: RefineRequest) -> Awaitable[np.ndarray]:
    """The refinement that a JSON body requests."""
    check_whole(hosted, body.all_candidates)
    if body.recall is not None and not 0 <= body.recall[0] <= body.recall[1] > 0:
        raise Refusal(422, f"recall is {list(body.recall)}; give [found, cells], found at most cells")
    points = body.points_zyx
    if (points is None) == (body.crops is None) or (points is None) != (body.volume is None):
        raise Refusal(422, "give volume and points_zyx, or crops")
    if points is not None:
        if body.window is not None:
            raise Refusal(422, "window goes with crops; a registered volume has its own")
        return refine_points(core, hosted, body, points)
    if body.background is not None:
        raise Refusal(422, "background goes with volume and points_zyx")
    assert body.crops is not None
    crops = await decoded(core, body.crops, body.window, encoder_of(hosted))
    return refine_crops(core, hosted, crops, body.window)


async def _reply(
    core: Core, request: Request, hosted: HostedRefiner, p_cell: np.ndarray, body: RefineRequest | None
) -> Response:
    threshold, models = hosted.threshold, hosted.models()
    headers = {"X-Refiner": hosted.refiner.sha256_, "X-Threshold": repr(threshold)}
    volume = None if body is None or body.volume is None else core.registered(body.volume)
    count = hosted.count(p_cell, body, volume)
    headers |= count.headers()
    headers |= {f"X-{kind.title()}": sha256 for kind, sha256 in models.items() if sha256 is not None}
    if accepted(request) != "application/json":
        return Response(npy.dump(p_cell), media_type=npy.MEDIA_TYPE, headers=headers)
    content = {
        "p_cell": p_cell,
        "is_cell": hosted.is_cell(p_cell),
        "count": count.model_dump(),
        "threshold": threshold,
        "refiner": hosted.refiner.sha256_,
        **models,
    }
    return await json_reply(content, headers=headers)


ROUTES = [
    Endpoint(
        "POST",
        "/refine",
        refine,
        {NPY: None, JSON: RefineReply},
        query=RefineQuery,
        bodies={JSON: RefineRequest, NPY: None, SAFE: None},
    )
]
