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
from serving.api.query import given
from serving.core.core import Core
from serving.core.embed_points import unreadable
from serving.core.search import find_index, plain, read_index
from serving.core.thumbnails import MOST_THUMBNAILS, PNG, add_origins, read_crop, strip
from serving.protocol import npy
from serving.protocol.errors import Refusal, refused
from serving.protocol.schemas import CellsReply, CellsRequest

if TYPE_CHECKING:
    from canvas_fm.inference.search.index import Index

CSV = "text/csv"
_MOST_CELLS = 1000  # as JSON
_MOST_VOXELS = 2**22  # of one crop
_MAP = ("index", "method")


async def map_about(core: Core, request: Request) -> Response:
    """A map of an index: its cells and their columns."""
    values = given(request, _MAP)
    core.require_ready()
    name, index = find_index(core, values.get("index"))
    info = await core.projections.about(name, index, values.get("method", "pca"))
    return JSONResponse(info.model_dump(mode="json"))


async def map_points(core: Core, request: Request) -> Response:
    """2D positions of the cells of a map: (n, 2) float32 `.npy`."""
    values = given(request, _MAP)
    core.require_ready()
    name, index = find_index(core, values.get("index"))
    laid = await core.projections.get(name, index, values.get("method", "pca"))
    return _npy(laid.map.xy)


async def map_column(core: Core, request: Request) -> Response:
    """A column of a map's cells: (n,) `.npy` of numbers, or of codes of the words that `/v1/map` lists."""
    values = given(request, (*_MAP, "name"))
    if "name" not in values:
        raise Refusal(422, "give the column's name; GET /v1/map lists them")
    core.require_ready()
    name, index = find_index(core, values.get("index"))
    return _npy(await core.projections.column(name, index, values.get("method", "pca"), values["name"]))


async def cells(core: Core, request: Request) -> Response:
    """Cells of an index by row: JSON, with thumbnails on request, or CSV."""
    given(request, ())
    core.require_ready()
    body = await read_model(request, CellsRequest)
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
    values = given(request, ("model", "size", "volume", "x", "y", "z"))
    core.require_ready()
    if "volume" not in values:
        raise Refusal(422, "give volume=NAME; GET /v1/info lists those that are registered")
    hosted = await asyncio.to_thread(core.view, values["volume"], values.get("model"))
    point, size = [_number(values, axis) for axis in "zyx"], _size(values.get("size"))
    if size is None and not core.engines:
        raise Refusal(422, "no encoder is served whose crop it could be; give size=Z,Y,X in voxels")
    as_png = first_accepted(request, (PNG, npy.MEDIA_TYPE)) == PNG
    try:
        inside = hosted.check([point])
    except CanvasError as problem:
        raise refused(problem) from problem

    def read() -> bytes:
        voxels = read_crop(hosted, inside, size)
        return strip(voxels) if as_png else npy.dump(voxels)

    try:
        content = await core.search_pool.run(read, deadline_s=core.limits.deadline_s)
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


def _number(values: dict[str, str], axis: str) -> float:
    try:
        value = float(values[axis])
    except (KeyError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        given_as = repr(values[axis][:50]) if axis in values else "missing"
        raise Refusal(422, f"{axis} is {given_as}; give z, y and x in voxels of level 0")
    return value


def _size(text: str | None) -> tuple[int, int, int] | None:
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() and len(part) < 8 for part in parts):
        raise Refusal(422, f"size is {text[:50]!r}; it has to be Z,Y,X: three whole numbers of voxels")
    z, y, x = map(int, parts)
    if not 1 <= z * y * x <= _MOST_VOXELS:
        raise Refusal(413, f"size is {text[:50]}; a crop has 1 to {_MOST_VOXELS} voxels")
    return z, y, x


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
    ("GET", "/map", map_about),
    ("GET", "/map/points", map_points),
    ("GET", "/map/column", map_column),
    ("POST", "/cells", cells),
    ("GET", "/crop", crop),
]
