"""Routes of the volume view: the levels of a registered volume, and tiles of their planes."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from canvas_fm.errors import CanvasError
from serving.api.bodies import first_accepted
from serving.api.description.endpoint import JSON, NPY, Endpoint
from serving.api.description.query import read_query
from serving.core.core import Core
from serving.core.embed.points import unreadable
from serving.core.volumes.thumbnails import PNG, png
from serving.core.volumes.tiles import shown
from serving.protocol import npy
from serving.protocol.request_options import PyramidQuery, TileQuery
from serving.protocol.schemas import PyramidInfo


async def pyramid(core: Core, request: Request) -> Response:
    """The levels of a registered volume, finest first, and a bright place to begin at."""
    query = read_query(request, PyramidQuery)
    volume = core.registered(query.volume)
    try:
        about = await core.tile_pool.run(lambda: core.tiles.about(query.volume, volume))
    except CanvasError as problem:
        raise unreadable(query.volume, problem) from problem
    return JSONResponse(about.model_dump(mode="json"))


async def tile(core: Core, request: Request) -> Response:
    """A tile of 256 × 256 voxels of one plane of a level, as a grey PNG, or as the stored values in `.npy`.

    `z` counts the planes of that level, `row` and `column` the tiles. The PNG is through `window`, else
    through that of the volume.
    """
    query = read_query(request, TileQuery)
    volume = core.registered(query.volume)
    as_npy = first_accepted(request, (PNG, npy.MEDIA_TYPE)) == npy.MEDIA_TYPE
    view = None if as_npy or query.window else await asyncio.to_thread(core.view, query.volume, None)

    def read() -> bytes:
        voxels = core.tiles.get(query.volume, volume, query)
        if as_npy:
            return npy.dump(voxels)
        low, high = query.window or (view.window if view else (0.0, 1.0))
        return png(shown(voxels, low, high))

    try:
        content = await core.tile_pool.run(read)
    except CanvasError as problem:
        raise unreadable(query.volume, problem) from problem
    return Response(content, media_type=npy.MEDIA_TYPE if as_npy else PNG)


ROUTES = [
    Endpoint("GET", "/pyramid", pyramid, {JSON: PyramidInfo}, query=PyramidQuery),
    Endpoint("GET", "/tile", tile, {PNG: None, NPY: None}, query=TileQuery),
]
