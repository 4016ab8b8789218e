"""Labelled candidates of several volumes as one classification task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from canvas_fm.data.crops.reader import CropReader
from canvas_fm.data.volume.volume import Zyx, ZyxUm
from canvas_fm.data.zyx import match_voxel_um
from canvas_fm.errors import CanvasError
from canvas_fm.heads.features.extractor import Extractor
from canvas_fm.heads.features.feature_set import (
    FeatureSet,
    stack,
)
from canvas_fm.heads.labels.candidates import CELL, SKIP, Candidates


class Place(NamedTuple):
    """Row range of a part."""

    name: str
    start: int
    stop: int


class PooledCandidates:
    """Candidates of several volumes, concatenated, on which all methods are fitted and scored.

    `label`, `group` (the part's name), `region` (a number for each labelled box) and `zyx` have a value for
    each row; `by` is `region` where the parts are regions of one volume. Crops come windowed in [0, 1] and at
    the first volume's voxel size; volumes that differ by more than 5 % are refused unless
    `ignore_voxel_size`, or read at the first one's size with `resample`.
    """

    def __init__(
        self, parts: Sequence[Candidates], *, resample: bool = False, ignore_voxel_size: bool = False
    ) -> None:
        if not parts:
            raise CanvasError("no candidates were given; give those of two volumes at least")
        for part in parts:
            _check_complete(part)
        self.by = "brain"
        if len(parts) == 1:
            parts, self.by = parts[0].by_region(), "region"
            if len(parts) < 2:
                raise CanvasError(
                    "there is one volume with one labelled region: candidates would have to be split at "
                    "random inside it, which says nothing; give a second volume, or boxes that divide it"
                )
        names = [part.name for part in parts]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise CanvasError(f"two sets of candidates are called {twice[0]!r}; give each volume a name")
        self.parts = tuple(parts)
        self.voxel_um: ZyxUm = parts[0].volume.voxel_um
        ends = np.cumsum([len(part) for part in parts]).tolist()
        self.places = [Place(n, e - len(p), e) for n, e, p in zip(names, ends, parts, strict=True)]
        self.zyx = np.concatenate([part.zyx for part in parts])
        self.label = np.concatenate([part.label for part in parts])
        self.group = np.repeat(np.array(names), [len(part) for part in parts])
        self.region = self._regions()
        known = [part_scores for part in parts if (part_scores := part.own) is not None]
        self._own = np.concatenate(known) if len(known) == len(parts) else None
        self.to_um = [
            match_voxel_um(part.volume, self.voxel_um, resample=resample, ignore_voxel_size=ignore_voxel_size)
            for part in parts
        ]
        self._readers: dict[tuple[int, Zyx], CropReader] = {}

    def __len__(self) -> int:
        return len(self.label)

    @property
    def own(self) -> Float64[np.ndarray, " n"] | None:
        """Candidate scores; None unless all parts have them."""
        return self._own

    @property
    def is_cell(self) -> Bool[np.ndarray, " n"]:
        return self.label == CELL

    def labelled(self, names: Sequence[str]) -> Int64[np.ndarray, " m"]:
        """Labelled rows of these parts (label ≠ −1)."""
        return np.flatnonzero(np.isin(self.group, list(names)) & (self.label != SKIP))

    def crops(self, rows: Int64[np.ndarray, " m"], crop_zyx: Zyx) -> Float32[np.ndarray, "m z y x"]:
        """Windowed crops (n, z, y, x) around some rows, in [0, 1], in that order."""
        out = np.empty((len(rows), *crop_zyx), np.float32)
        for number, place in enumerate(self.places):
            part_rows = np.flatnonzero((rows >= place.start) & (rows < place.stop))
            if len(part_rows):
                raw = self._reader(number, crop_zyx).read_points(self.zyx[rows[part_rows]])
                out[part_rows] = self.parts[number].volume.window.apply(raw)
        return out

    def missed_by_part(self, rows: Int64[np.ndarray, " m"]) -> dict[str, int]:
        """True cells without a candidate by part, in proportion to its cells among these rows."""
        missed = {}
        for part in self.parts:
            part_cells = self.is_cell[rows] & (self.group[rows] == part.name)
            cells = int((part.label == CELL).sum())
            if part_cells.any():
                missed[part.name] = round((part.missed or 0) * int(part_cells.sum()) / cells)
        return missed

    def _reader(self, number: int, crop_zyx: Zyx) -> CropReader:
        key = (number, crop_zyx)
        if key not in self._readers:
            volume = self.parts[number].volume
            self._readers[key] = CropReader(
                volume, crop_zyx, resample_to_um=self.to_um[number], cache_bytes=64 * 2**20
            )
        return self._readers[key]

    def _regions(self) -> Int64[np.ndarray, " n"]:
        numbers, first = [], 0
        for part in self.parts:
            numbers.append(first + np.maximum(part.region, 0))
            first += len(part.where)
        return np.concatenate(numbers)


def _check_complete(part: Candidates) -> None:
    if part.truth_zyx is None or part.tolerance_um is None:
        raise CanvasError(f"{part.name}: a comparison needs all true cells, and a tolerance in µm")
    for role, count in (("candidates", len(part)), ("true cells", len(part.truth_zyx))):
        if not count:
            raise CanvasError(f"{part.name}: there are no {role}; a comparison needs some")


def features_of_rows(
    extractor: Extractor, pooled: PooledCandidates, rows: Int64[np.ndarray, " m"]
) -> FeatureSet:
    """Features of some rows of a task, computed from the voxels; rows rise."""
    parts = []
    for part, place in zip(pooled.parts, pooled.places, strict=True):
        inside = rows[(rows >= place.start) & (rows < place.stop)]
        if len(inside):
            same: dict[str, Any] = {"group": part.name, "background": part.background, "show": False}
            parts.append(extractor.features(part.volume, pooled.zyx[inside], **same))
    return stack(parts)
