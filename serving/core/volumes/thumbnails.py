"""PNG strips of a crop's planes, and thumbnails of indexed cells."""

from __future__ import annotations

import base64
import io
import logging
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32, Float64, Int64

from canvas_fm.errors import CanvasError
from serving.core.core import Core
from serving.protocol.errors import Refusal

if TYPE_CHECKING:
    from canvas_fm.inference.search.index.index import Index
    from canvas_fm.inference.search.index.index_store import Part
    from serving.core.models.model_host import Engine
    from serving.core.volumes.registered_volume import HostedVolume, RegisteredVolume

logger = logging.getLogger(__name__)

MOST_THUMBNAILS = 512  # in one reply
PNG = "image/png"


def png(plane: Float32[np.ndarray, "y x"]) -> bytes:
    """A plane of values in [0, 1] as a grey PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray((plane * 255 + 0.5).astype(np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def strip(crop: Float32[np.ndarray, "z y x"]) -> bytes:
    """All planes side by side, separated by a white line of one pixel."""
    framed = np.pad(crop, ((0, 0), (0, 0), (0, 1)), constant_values=1)
    return png(np.concatenate(list(framed), axis=1)[:, :-1])


def thumbnail(crop: Float32[np.ndarray, "z y x"]) -> str:
    """Maximum projection of the middle quarter of the planes, as base64 PNG."""
    # More planes show neighbours above and below, one alone cuts through what is not quite central.
    first = 3 * len(crop) // 8
    return base64.b64encode(png(crop[first : len(crop) - first].max(axis=0))).decode()


def read_crop(
    view: RegisteredVolume, point_zyx: Float64[np.ndarray, "1 3"], size_zyx: tuple[int, int, int] | None
) -> Float32[np.ndarray, "z y x"]:
    """Windowed crop around a point, at the model's crop size or a given box size."""
    if size_zyx is not None:
        return view.box(point_zyx[0], size_zyx)
    from serving.core.volumes.registered_volume import HostedVolume

    assert isinstance(view, HostedVolume)
    ((_, crops),) = view.batches(point_zyx, 1)
    return crops[0, 0]


def add_origins(
    core: Core,
    index: Index,
    rows: Int64[np.ndarray, " r"],
    cells: list[dict[str, object]],
    *,
    thumbnails: bool,
) -> None:
    """Add to each cell its `volume`, a registered name or None, and its `thumbnail` on request."""
    from canvas_fm.inference.search.index.index_store import by_part

    engine = _engine_of(core, index)
    volumes = {} if engine is None else engine.volumes
    for part, positions in by_part(index.parts, rows):
        hosted = next((each for each in volumes.values() if _same(each, part)), None)
        points = np.asarray(part.zyx[rows[positions] - part.first], np.float64)
        pictures = _thumbnails(hosted, points, core.max_batch) if thumbnails else {}
        for number, position in enumerate(positions.tolist()):
            cells[position]["volume"] = None if hosted is None else hosted.name
            if thumbnails:
                cells[position]["thumbnail"] = pictures.get(number)


def _thumbnails(hosted: HostedVolume | None, points: np.ndarray, batch: int) -> dict[int, str]:
    """Thumbnails by position; None and a log line for an unreadable volume."""
    pictures: dict[int, str] = {}
    if hosted is None:
        return pictures
    try:
        for rows, crops in hosted.batches(hosted.check(points.tolist()), batch):
            pictures.update(zip(rows.tolist(), map(thumbnail, crops[:, 0]), strict=True))
    except CanvasError:
        logger.exception("the volume %r gives no thumbnails", hosted.name)
    return pictures


def _engine_of(core: Core, index: Index) -> Engine | None:
    """The index's model if served, for its crop and window; else the default."""
    try:
        return core.engine_for(index.encoder_sha256)
    except Refusal:
        return next(iter(core.engines.values()), None)


def _same(hosted: HostedVolume, part: Part) -> bool:
    """Whether a registered volume is the source of an index part.

    Names alone do not tell: `TH` of two brains. Voxel size and window, percentiles of the whole volume, do;
    where a store was made by this package or not touched since, so does the hash over its files.
    """
    source = part.entry["source"]
    inputs = source["inputs"] if isinstance(source["inputs"], dict) else {}
    if source["volume"] not in (hosted.name, hosted.volume.name):
        return False
    info = hosted.info()
    if list(info.voxel_um) == part.entry["voxel_um"] and list(info.window) == inputs.get("window"):
        return True
    return hosted.identity == inputs.get("volume")
