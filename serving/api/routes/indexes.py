"""Routes for visualisation: map of an index, its cells as a table, crops as arrays or images."""

from __future__ import annotations

import asyncio
import csv
import io
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from canvas_fm.errors import CanvasError
from serving.api.bodies import first_accepted, read_model
from serving.api.description.endpoint import JSON, NPY, Endpoint
from serving.api.description.query import read_query
from serving.core.core import Core
from serving.core.embed.points import unreadable
from serving.core.search import find_index, plain, read_index
from serving.core.volumes.thumbnails import MOST_THUMBNAILS, PNG, add_origins, read_crop, strip
from serving.protocol import npy
from serving.protocol.errors import Refusal
from serving.protocol.request_options import CellsRequest, ColumnQuery, CropQuery, MapQuery
from serving.protocol.schemas import CellsReply, MapInfo

if TYPE_CHECKING:
    from canvas_fm.inference.search.index.index import Index

CSV = "text/csv"
_MOST_CELLS = 1000  # as JSON
_MOST_VOXELS = 2**22  # of one crop


async def map_about(core: Core, request: Request) -> Response:
    """A map of an index: its cells and their columns."""
    query = read_query(request, MapQuery)
    name, index = find_index(core, query.index)
    about = await core.projections.about(name, index, query.method)
    return JSONResponse(about.model_dump(mode="json"))


async def map_points(core: Core, request: Request) -> Response:
    """2D positions of the cells of a map: (n, 2) float32 `.npy`."""
    query = read_query(request, MapQuery)
    name, index = find_index(core, query.index)
    laid = await core.projections.get(name, index, query.method)
    return _npy(laid.map.xy)


async def map_column(core: Core, request: Request) -> Response:
    """A column of a map's cells: (n,) `.npy` of numbers, or of codes of the words that `/v1/map` lists."""
    query = read_query(request, ColumnQuery)
    name, index = find_index(core, query.index)
    return _npy(await core.projections.column(name, index, query.method, query.name))


async def cells(core: Core, request: Request) -> Response:
    """Cells of an index by row: JSON, with thumbnails on request, or CSV."""
    body = await read_model(core, request, CellsRequest)
    name, index = find_index(core, body.index)
    as_csv = first_accepted(request, (CSV, "application/json")) == CSV
    most = core.projections.most if as_csv else MOST_THUMBNAILS if body.thumbnails else _MOST_CELLS
    rows = await _rows(core, name, index, body, most)
    if as_csv:
        text = await read_index(core, name, lambda: _table(index, rows))
        headers = {"Content-Disposition": f'attachment; filename="{name}.csv"'}
        return Response(text, media_type=CSV, headers=headers)
    described = await read_index(core, name, lambda: _described(core, index, rows, body.thumbnails))
    return JSONResponse(CellsReply(index=name, cells=described).model_dump(mode="json"))


async def crop(core: Core, request: Request) -> Response:
    """The crop around a point of a registered volume as the model sees it: (z, y, x) float32 `.npy`.

    As a PNG of all planes side by side where that is accepted first; `size` is a box of other size, in
    voxels of the volume.
    """
    query = read_query(request, CropQuery)
    size = query.size
    if size is not None and not 1 <= math.prod(size) <= _MOST_VOXELS:
        raise Refusal(413, f"size is {','.join(map(str, size))}; a crop has 1 to {_MOST_VOXELS} voxels")
    hosted = await asyncio.to_thread(core.view, query.volume, query.model)
    if size is None and not core.engines:
        raise Refusal(422, "no encoder is served whose crop it could be; give size=Z,Y,X in voxels")
    as_png = first_accepted(request, (PNG, npy.MEDIA_TYPE)) == PNG
    inside = hosted.check([[query.z, query.y, query.x]])

    def read() -> bytes:
        voxels = read_crop(hosted, inside, size)
        return strip(voxels) if as_png else npy.dump(voxels)

    try:
        content = await core.search_pool.run(read)
    except CanvasError as problem:
        raise unreadable(hosted.name, problem) from problem
    return Response(content, media_type=PNG if as_png else npy.MEDIA_TYPE)


async def _rows(core: Core, name: str, index: Index, body: CellsRequest, most: int) -> np.ndarray:
    rows, ids = body.rows, body.ids
    if (rows is None) == (ids is None):
        raise Refusal(422, "give one of rows and ids")
    count = len(rows or ids or ())
    if not 1 <= count <= most:
        raise Refusal(413 if count else 422, f"{count} cells in one request; give 1 to {most}")
    if rows is None:
        return await read_index(core, name, lambda: index.rows_of(ids or []))
    if not 0 <= min(rows) <= max(rows) < len(index):
        raise Refusal(422, f"rows go from 0 to {len(index) - 1} in this index")
    return np.array(rows, np.int64)


def _npy(array: np.ndarray) -> Response:
    return Response(npy.dump(array), media_type=npy.MEDIA_TYPE)


def _described(core: Core, index: Index, rows: np.ndarray, pictures: bool) -> list[dict[str, object]]:
    described = [{key: plain(value) for key, value in cell.items()} for cell in index.describe(rows)]
    add_origins(core, index, rows, described, thumbnails=pictures)
    return described


def _table(index: Index, rows: np.ndarray) -> str:
    """As points are written: z, y, x, then the columns; absent values are empty."""
    buffer = io.StringIO()
    names: dict[str, Any] = dict.fromkeys(("z", "y", "x", "id", "brain", "marker", "row"))
    for part in index.parts:
        names |= dict.fromkeys(part.columns)
    writer = csv.DictWriter(buffer, list(names), lineterminator="\n")
    writer.writeheader()
    for first in range(0, len(rows), 8192):
        writer.writerows(index.describe(rows[first : first + 8192]))
    return buffer.getvalue()


ROUTES = [
    Endpoint("GET", "/map", map_about, {JSON: MapInfo}, query=MapQuery),
    Endpoint("GET", "/map/points", map_points, {NPY: None}, query=MapQuery),
    Endpoint("GET", "/map/column", map_column, {NPY: None}, query=ColumnQuery),
    Endpoint("POST", "/cells", cells, {JSON: CellsReply, CSV: None}, bodies={JSON: CellsRequest}),
    Endpoint("GET", "/crop", crop, {NPY: None, PNG: None}, query=CropQuery),
]
