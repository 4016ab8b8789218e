"""`POST /v1/detect`: the cells of a box of a registered volume."""

from __future__ import annotations

import asyncio

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from canvas_fm.data.points.points import Points
from serving.api.bodies import first_accepted, read_model, while_connected
from serving.api.description.endpoint import JSON, NPY, Endpoint
from serving.api.json_reply import json_reply
from serving.core.core import Core
from serving.core.detect import detect
from serving.protocol import npy
from serving.protocol.request_options import DetectRequest
from serving.protocol.schemas import DetectReply

_CSV = "text/csv"


async def detect_route(core: Core, request: Request) -> Response:
    """Cells of a box of a registered volume, by a served detector: (n, 4) `.npy` of z, y, x and score."""
    body = await read_model(core, request, DetectRequest)
    result = await while_connected(request, detect(core, body))
    points, score = result.points, result.points.columns["score"]
    headers = {"X-Detector": result.detector.sha256, "X-Threshold": repr(result.threshold)}
    headers |= {} if result.cell_count is None else result.cell_count.headers()
    kind = first_accepted(request, ("application/json", _CSV, npy.MEDIA_TYPE))
    if kind == "application/json":
        content = {
            "points_zyx": points.zyx,
            "score": score,
            "detector": result.detector.sha256,
            "threshold": result.threshold,
            "warnings": result.warnings,
            "count": None if result.cell_count is None else result.cell_count.model_dump(),
        }
        return await json_reply(content, headers=headers)
    if kind == _CSV:
        headers |= {"Content-Disposition": 'attachment; filename="cells.csv"'}
        return Response(
            await asyncio.to_thread(Points(points.zyx, points.columns).to_csv),
            media_type=kind,
            headers=headers,
        )
    table = np.column_stack([points.zyx, score.astype(np.float64)])
    return Response(npy.dump(table), media_type=npy.MEDIA_TYPE, headers=headers)


ROUTES = [
    Endpoint(
        "POST",
        "/detect",
        detect_route,
        {NPY: None, JSON: DetectReply, _CSV: None},
        bodies={JSON: DetectRequest},
    )
]
