"""Training targets of a detector: crop positions in labelled volumes, and their label voxels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64, UInt8
from scipy.spatial import cKDTree

from canvas_fm.data.crops.crop_positions import check_crop_fits
from canvas_fm.data.points.boxes import box_of, draw_inside, inside_boxes
from canvas_fm.data.volume.levels.resample import Resampler
from canvas_fm.data.volume.volume import Volume, Zyx, ZyxUm
from canvas_fm.data.volume.window import WindowRule
from canvas_fm.errors import CanvasError
from canvas_fm.inference.detect.detect import log_job
from canvas_fm.inference.detect.tiles.tiled_detection import run
from canvas_fm.training.mae.training_crops import VolumeSource

UNLABELLED, BACKGROUND, CELL = 0, 1, 2
_BLOCK_ZYX: Zyx = (64, 128, 128)  # where bright spots that are no cells are looked for
_BLOCKS = 8
_APART = 1.3  # so many tolerances off every cell
_IGNORED = 1.5  # so many target radii around what may be a cell or not


@dataclass(frozen=True)
class Labelled:
    """A volume whose cells inside `boxes` are all in `points_zyx`; optional `mask` and `background`.

    Around `ignored_zyx`, which may be cells or not, voxels count as unlabelled.
    """

    source: VolumeSource
    points_zyx: Float64[np.ndarray, "n 3"]
    boxes: Int64[np.ndarray, "k 6"]
    mask: Volume | None = None
    background: Volume | None = None
    ignored_zyx: Float64[np.ndarray, "i 3"] | None = None

    @property
    def inner_zyx(self) -> Float64[np.ndarray, "m 3"]:
        """Cells inside the boxes."""
        return self.points_zyx[inside_boxes(self.points_zyx, self.boxes)]

    @property
    def um(self) -> ZyxUm:
        """Voxel size at which it is read."""
        return self.source.resample_to or self.source.volume.voxel_um

    def identity(self, rule: WindowRule) -> dict[str, Any]:
        """Identity of volume and labels."""
        digest = hashlib.sha256(np.ascontiguousarray(self.points_zyx).tobytes())
        digest.update(self.boxes.tobytes())
        labels = {"cells": len(self.inner_zyx), "labels_sha256": digest.hexdigest()}
        return self.source.identity(rule) | labels | {"masks": self.mask is not None}


def shares(
    volumes: Sequence[Labelled], crops: int, of_marker: Mapping[str, float] | None = None
) -> list[int]:
    """Number of crops of each volume: equal for the volumes of a marker.

    So does every marker, or by the shares `of_marker`, 1 for those that it does not name.
    """
    counts = [0] * len(volumes)
    by_marker: dict[str | None, list[int]] = {}
    for index, volume in enumerate(volumes):
        by_marker.setdefault(volume.source.volume.marker, []).append(index)
    weights = [(of_marker or {}).get(str(marker), 1.0) for marker in by_marker]
    parts = _parts(crops, len(by_marker))
    if of_marker:
        parts = [
            max(len(by_marker[m]), round(crops * w / sum(weights)))
            for m, w in zip(by_marker, weights, strict=True)
        ]
    for part, indices in zip(parts, by_marker.values(), strict=True):
        for index, share in zip(indices, _parts(part, len(indices)), strict=True):
            counts[index] = share
    return counts


def _parts(whole: int, n: int) -> list[int]:
    return [whole // n + (index < whole % n) for index in range(n)]


def draw_labelled(
    labelled: Labelled,
    crop_zyx: Zyx,
    n: int,
    *,
    cells: float,
    hard: float,
    tolerance_um: float,
    rule: WindowRule,
    seed: int,
) -> Int64[np.ndarray, "n 3"]:
    """First voxels of `n` random crops inside the volume, in random order; reproducible by seed.

    A share `cells` lies around cells and a share `hard` around bright spots that are none, both anywhere in
    the crop's middle four fifths; the rest around any labelled place. Raises CanvasError where the volume is
    smaller than a crop or a share asks for cells and there are none.
    """
    volume = labelled.source.volume
    box = np.asarray(labelled.source.box_zyx(crop_zyx))
    check_crop_fits(volume.shape_zyx, (int(box[0]), int(box[1]), int(box[2])), volume.name)
    random = np.random.default_rng(seed)
    inner = labelled.inner_zyx
    if not len(inner) and cells > 0:
        raise CanvasError(f"{volume.path} has no cells inside its labelled boxes; a detector needs some")
    around = [inner[random.integers(len(inner), size=round(n * cells))]] if cells else []
    spots = hard_places(labelled, tolerance_um=tolerance_um, rule=rule, random=random) if hard else inner[:0]
    if len(spots):
        around.append(spots[random.integers(len(spots), size=round(n * hard))])
    around_cells = np.concatenate([np.empty((0, 3)), *around])
    around_cells += random.uniform(-0.4, 0.4, around_cells.shape) * box
    places = np.concatenate([around_cells, draw_inside(labelled.boxes, n - len(around_cells), random)])
    starts = np.floor(places + 0.5).astype(np.int64) - box // 2
    return random.permutation(np.clip(starts, 0, np.asarray(volume.shape_zyx) - box)).astype(np.int64)


def hard_places(
    labelled: Labelled, *, tolerance_um: float, rule: WindowRule, random: np.random.Generator
) -> Float64[np.ndarray, "m 3"]:
    """Hard negatives: the brightest blobs of the labelled boxes that are no cells, up to four a cell.

    Found by the baseline detector in a few blocks of the boxes, so a whole brain costs no more than a cube.
    """
    volume = labelled.source.volume
    positions, scores = [], []
    for block in _blocks(labelled.boxes, random):
        job = log_job(
            volume,
            sigma_um=max(4.0, tolerance_um / 2),
            threshold=0.01,
            min_distance_um=tolerance_um,
            window_rule=rule,
            box=block.tolist(),
        )
        points = run(job, show=False)
        positions.append(points.zyx)
        scores.append(points.columns["score"])
    zyx, score = np.concatenate(positions), np.concatenate(scores)
    free = inside_boxes(zyx, labelled.boxes)
    known = labelled.points_zyx
    if labelled.ignored_zyx is not None:
        known = np.concatenate([known, labelled.ignored_zyx])
    if len(known) and len(zyx):
        distance_um, _ = cKDTree(known * volume.voxel_um).query(zyx * volume.voxel_um)
        free &= distance_um > _APART * tolerance_um
    zyx, score = zyx[free], score[free]
    return zyx[np.argsort(-score, kind="stable")[: max(200, 4 * len(labelled.inner_zyx))]]


class TargetPainter:
    """Rasterises labels of crops of one volume: 0 unlabelled, 1 background, 2 cell."""

    def __init__(self, labelled: Labelled, crop_zyx: Zyx, radius_um: float) -> None:
        self.labelled, self.crop_zyx = labelled, crop_zyx
        source = labelled.source
        self.ratio = np.asarray(labelled.um) / np.asarray(source.volume.voxel_um)
        # Where a crop's first sample lies, from where its box starts.
        self.first = np.zeros(3)
        if source.resample_to is not None:
            offset = np.asarray(Resampler(crop_zyx, source.volume.voxel_um, source.resample_to).offset_zyx)
            self.first = -offset - np.asarray(crop_zyx) // 2 * self.ratio
        self.reach = np.maximum(radius_um / np.asarray(labelled.um), 0.5)

    def paint(self, start_zyx: Int64[np.ndarray, 3]) -> UInt8[np.ndarray, "z y x"]:
        """Labels of the crop at a start: ellipsoids, at least the centre voxel of each cell."""
        labels = self.area(start_zyx)
        self._paint(labels, self.labelled.points_zyx - start_zyx, self.reach, CELL)
        if self.labelled.ignored_zyx is not None:
            self._paint(labels, self.labelled.ignored_zyx - start_zyx, _IGNORED * self.reach, UNLABELLED)
        return labels

    def _paint(
        self,
        labels: UInt8[np.ndarray, "z y x"],
        offsets_zyx: Float64[np.ndarray, "n 3"],
        reach: Float64[np.ndarray, 3],
        value: int,
    ) -> None:
        """Set what is background within `reach` of places, given by their offsets from the crop's start."""
        crop = np.asarray(self.crop_zyx)
        places = (offsets_zyx - self.first) / self.ratio
        intersecting = np.all((places > -reach - 1) & (places < crop + reach), axis=1)
        for place in places[intersecting]:
            centre = np.floor(place + 0.5).astype(int)
            low = np.maximum(np.floor(np.minimum(place - reach, centre)).astype(int), 0)
            high = np.minimum(np.ceil(np.maximum(place + reach, centre)).astype(int) + 1, crop)
            if (low >= high).any():
                continue
            axes = np.ogrid[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
            inside = sum(((axis - p) / r) ** 2 for axis, p, r in zip(axes, place, reach, strict=True)) <= 1
            if ((centre >= low) & (centre < high)).all():
                inside[tuple(centre - low)] = True
            part = labels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
            part[inside & (part == BACKGROUND)] = value

    def area(self, start_zyx: Int64[np.ndarray, 3]) -> UInt8[np.ndarray, "z y x"]:
        """Label mask of a crop: 1 where labelled, 0 elsewhere."""
        labels = np.full(self.crop_zyx, UNLABELLED, np.uint8)
        for box in self.labelled.boxes:
            # A sample is inside a box if it lies within its voxels, which reach half a voxel around centres.
            edges = [(box[a:6:3] - 0.5 - start_zyx[a] - self.first[a]) / self.ratio[a] for a in range(3)]
            labels[tuple(slice(max(0, int(np.ceil(a))), max(0, int(np.ceil(b)))) for a, b in edges)] = (
                BACKGROUND
            )
        return labels


def _blocks(boxes: Int64[np.ndarray, "k 6"], random: np.random.Generator) -> Int64[np.ndarray, "b 6"]:
    """Random blocks of the boxes, all of them if they are few."""
    cells = np.asarray(_BLOCK_ZYX)
    blocks = []
    for box in boxes:
        counts = -(-(box[3:] - box[:3]) // cells)
        for index in np.ndindex(*counts) if counts.prod() <= 4096 else random.integers(0, counts, (64, 3)):
            start = box[:3] + np.asarray(index) * cells
            blocks.append(np.concatenate([start, np.minimum(start + cells, box[3:])]))
    chosen = np.array(blocks)
    assert (box_of(chosen[:, :3].astype(float), boxes) >= 0).all()
    return chosen[random.permutation(len(chosen))[:_BLOCKS]]
