"""Maxima of all tiles merged into cells: one a plateau, at or above the threshold, no two too near."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64

from canvas_fm.inference.detect.maxima.local_maxima import Shape, one_per_plateau, suppress
from canvas_fm.inference.detect.maxima.relative_score import LEAST_HEAT, relative_scores
from canvas_fm.inference.detect.tiles.tiles import Readable, Resampled
from canvas_fm.models.folder.network_config import AmplitudeConfig, RelativeConfig


@dataclass(frozen=True)
class TileMaxima:
    """Maxima of one tile, all voxels of a plateau: voxels, heat-map values, sub-voxel positions.

    `amplitude` is that of their blobs where it enters the scores only once all tiles are there.
    """

    maxima: Int64[np.ndarray, "n 3"]
    score: Float32[np.ndarray, " n"]
    position: Float64[np.ndarray, "n 3"]
    bad_chunks: tuple[str, ...] = ()
    amplitude: Float32[np.ndarray, " n"] | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """Arrays by name for the resumable store; `TileMaxima(**arrays)` restores them."""
        arrays = {"maxima": self.maxima, "score": self.score, "position": self.position}
        return arrays if self.amplitude is None else arrays | {"amplitude": self.amplitude}


def merge_tiles(
    tiles: Sequence[TileMaxima],
    source: Readable,
    *,
    radius_zyx: tuple[float, float, float],
    shape: Shape,
    threshold: float,
    suppress_um: float | None,
    amplitude: AmplitudeConfig | None,
    relative: RelativeConfig | None,
) -> tuple[Float64[np.ndarray, "n 3"], Float32[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Positions in voxels of the volume, scores, and which of the maxima each is, through the tiles in order.

    Sorted by position; the parameters are those of `TiledDetection`.
    """
    maxima = np.concatenate([np.empty((0, 3), np.int64), *(part.maxima for part in tiles)])
    score = np.concatenate([np.empty(0, np.float32), *(part.score for part in tiles)])
    position = np.concatenate([np.empty((0, 3)), *(part.position for part in tiles)])
    order = np.lexsort(maxima.T[::-1])
    maxima, score, position = maxima[order], score[order], position[order]
    bright = None
    if amplitude is not None and amplitude.relative:
        empty = np.empty(0, np.float32)
        parts = (empty if part.amplitude is None else part.amplitude for part in tiles)
        bright = np.concatenate([empty, *parts])[order]
    keep = one_per_plateau(maxima, radius_zyx, shape=shape)
    if relative is not None:
        strong = keep[score[keep] >= np.float32(LEAST_HEAT)]
        score[strong] = relative_scores(
            position[strong], score[strong], source.voxel_um, relative,
            None if bright is None else bright[strong],
            1.0 if amplitude is None else amplitude.weight,
            typical=amplitude is not None and amplitude.relative == "typical",
            classes_apart=None if amplitude is None else amplitude.classes_apart,
        )  # fmt: skip
        keep = strong
    if amplitude is not None or relative is not None:
        keep = keep[score[keep] >= np.float32(threshold)]
    if suppress_um is not None:
        keep = keep[suppress(position[keep] * source.voxel_um, score[keep], suppress_um)]
    zyx = position[keep]
    if isinstance(source, Resampled):
        zyx = source.to_volume(zyx)
    return zyx, score[keep], order[keep]
