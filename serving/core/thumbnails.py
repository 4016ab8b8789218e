"""Crops of registered volumes as pictures: PNG strips of all planes, and thumbnails of an index's cells."""

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
    from canvas_fm.inference.search.index import Index
    from canvas_fm.inference.search.index_store import Part
    from serving.core.model_host import Engine, HostedVolume

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
    """All planes side by side, the first on the left, a white line of one pixel between them."""
    framed = np.pad(crop, ((0, 0), (0, 0), (0, 1)), constant_values=1)
    return png(np.concatenate(list(framed), axis=1)[:, :-1])


def thumbnail(crop: Float32[np.ndarray, "z y x"]) -> str:
    """The brightest of the middle quarter of the planes, voxel by voxel, as base64 of a PNG."""
    # More planes show neighbours above and below, one alone cuts through what is not quite central.
    first = 3 * len(crop) // 8
    return base64.b64encode(png(crop[first : len(crop) - first].max(axis=0))).decode()


def read_crop(
    hosted: HostedVolume, point_zyx: Float64[np.ndarray, "1 3"], size_zyx: tuple[int, int, int] | None
) -> Float32[np.ndarray, "z y x"]:
    """The crop around a point after the volume's window, as the model sees it, or a box of other size."""
    if size_zyx is not None:
        return hosted.box(point_zyx[0], size_zyx)
    ((_, crops),) = hosted.batches(point_zyx, 1)
    return crops[0, 0]


class Origins:
    """Where the cells of an index come from, among the volumes that are registered."""

    def __init__(self, core: Core, index: Index) -> None:
        self.index = index
        self.engine: Engine = _engine_of(core, index)
        self._of_part: dict[int, HostedVolume | None] = {}

    def describe(
        self, rows: Int64[np.ndarray, " r"], cells: list[dict[str, object]], *, pictures: bool
    ) -> None:
        """Give each cell its `volume`, the name of a registered one or None, and its `thumbnail`."""
        from canvas_fm.inference.search.index_store import by_part

        for part, mine in by_part(self.index.parts, rows):
            hosted = self._hosted(part)
            points = np.asarray(part.zyx[rows[mine] - part.first], np.float64)
            drawn = self._drawn(hosted, points) if pictures else {}
            for place, row in enumerate(mine.tolist()):
                cells[row]["volume"] = None if hosted is None else hosted.name
                if pictures:
                    cells[row]["thumbnail"] = drawn.get(place)

    def _hosted(self, part: Part) -> HostedVolume | None:
        if part.first not in self._of_part:
            self._of_part[part.first] = next(
                (each for each in self.engine.volumes.values() if _same(each, part)), None
            )
        return self._of_part[part.first]

    def _drawn(self, hosted: HostedVolume | None, points: np.ndarray) -> dict[int, str]:
        """Thumbnails by place; a volume that cannot be read gives none, and a line in the log."""
        out: dict[int, str] = {}
        if hosted is None:
            return out
        try:
            for places, crops in hosted.batches(hosted.check(points.tolist()), self.engine.max_batch):
                out.update(zip(places.tolist(), map(thumbnail, crops[:, 0]), strict=True))
        except CanvasError:
            logger.exception("the volume %r gives no thumbnails", hosted.name)
        return out


def _engine_of(core: Core, index: Index) -> Engine:
    """The model that made the index where it is served: it knows crop and window; else the default."""
    try:
        return core.engine_for(index.encoder_sha256)
    except Refusal:
        return core.engine


def _same(hosted: HostedVolume, part: Part) -> bool:
    """Whether a registered volume is the one that a part was embedded from.

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
