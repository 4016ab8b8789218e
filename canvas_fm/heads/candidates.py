"""Labelled candidates of several volumes as one task: rows, labels, groups, crops, and the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from canvas_fm.data.boxes import box_of, inside_boxes, whole
from canvas_fm.data.crops import CropReader
from canvas_fm.data.points import Points
from canvas_fm.data.resample import check_voxel_um
from canvas_fm.data.volume import Volume, Zyx, ZyxUm
from canvas_fm.errors import CanvasError
from canvas_fm.evaluation.checks import SCORE_COLUMNS
from canvas_fm.evaluation.curve import Curve, score_curve
from canvas_fm.evaluation.matching import find_pairs, match
from canvas_fm.heads.labels import CELL, SKIP, label_candidates


@dataclass(frozen=True)
class Candidates:
    """Candidates of one volume, order z, y, x in voxels: `label` 1 cell, 0 none, −1 skipped everywhere.

    `truth_zyx` are all true cells, those without a candidate too; `boxes` (rows z0 y0 x0 z1 y1 x1) say where
    they are labelled. `own` is the score that the candidates came with, None where they had none.
    """

    name: str
    volume: Volume
    zyx: Float64[np.ndarray, "n 3"]
    label: Int64[np.ndarray, " n"]
    truth_zyx: Float64[np.ndarray, "m 3"]
    tolerance_um: float
    boxes: Int64[np.ndarray, "k 6"]
    own: Float64[np.ndarray, " n"] | None = None

    @classmethod
    def of(
        cls,
        volume: Volume,
        points: Points,
        truth: Points,
        *,
        tolerance_um: float,
        labels: str | None = "label",
        score: str | None = None,
        within: Int64[np.ndarray, "k 6"] | None = None,
        name: str | None = None,
    ) -> Candidates:
        """Candidates with the labels of a column, or with `labels=None` by matching them to the truth.

        What lies outside `within` is skipped; see `label_candidates`. Raises CanvasError for a column that is
        not there or holds anything but 1, 0 and −1, for no candidates or true cells, and for points outside
        the volume. Duplicates are warned about and kept.
        """
        name = name or volume.name
        for role, given in (("candidates", points), ("true cells", truth)):
            if not len(given):
                raise CanvasError(f"{name}: there are no {role}; a comparison needs some")
            given.check_inside(volume.shape_zyx)
        boxes = whole(volume.shape_zyx) if within is None else within
        found = label_candidates(
            points,
            name=name,
            column=labels,
            truth=truth,
            tolerance_um=tolerance_um,
            voxel_um=volume.voxel_um,
            boxes=boxes,
        )
        own = _own_score(points, score, name)
        return cls(name, volume, points.zyx, found.label, truth.zyx, tolerance_um, boxes, own)

    def __len__(self) -> int:
        return len(self.zyx)

    @property
    def missed(self) -> int:
        """True cells in the labelled boxes that no candidate stands for: no judgement can bring them back."""
        inside = int(inside_boxes(self.truth_zyx, self.boxes).sum())
        return max(inside - int((self.label == CELL).sum()), 0)

    def curve(self, p_cell: Float64[np.ndarray, " n"]) -> Curve:
        """Counts against the true centres at every threshold of P(cell), candidates labelled −1 left out."""
        keep = self.label != SKIP
        pairs = find_pairs(
            self.zyx[keep], self.truth_zyx, tolerance=self.tolerance_um, scale_zyx=self.volume.voxel_um
        )
        every = np.ones(int(keep.sum()), bool)
        return score_curve(pairs, p_cell[keep], every, inside_boxes(self.truth_zyx, self.boxes))

    def counts_by_box(self, keep: Bool[np.ndarray, " n"]) -> Int64[np.ndarray, "k 3"]:
        """TP, FP and FN in each labelled box if these candidates are kept, by one-to-one matching.

        True cells count where they lie, found or missed, and false candidates where they lie.
        """
        kept = keep & (self.label != SKIP)
        pred = self.zyx[kept]
        chosen = match(pred, self.truth_zyx, tolerance=self.tolerance_um, scale_zyx=self.volume.voxel_um)
        truth_box, false_box = box_of(self.truth_zyx, self.boxes), box_of(pred, self.boxes)
        hit = np.zeros(len(self.truth_zyx), bool)
        hit[chosen.truth_index] = True
        false = np.ones(len(pred), bool)
        false[chosen.pred_index] = False
        places = truth_box[hit], false_box[false], truth_box[~hit]
        count = len(self.boxes)
        return np.stack([np.bincount(p[p >= 0], minlength=count) for p in places], axis=1)

    def by_region(self) -> list[Candidates]:
        """The same as one part a box, for the case that there is no second volume."""
        of = box_of(self.zyx, self.boxes)
        parts = []
        for number, box in enumerate(self.boxes):
            rows = of == number
            inside = inside_boxes(self.truth_zyx, box[None])
            if not (self.label[rows] != SKIP).any() or not inside.any():
                continue
            place = f"{self.name} z{box[0]} y{box[1]} x{box[2]}"
            own = None if self.own is None else self.own[rows]
            part = {"name": place, "zyx": self.zyx[rows], "label": self.label[rows], "own": own}
            parts.append(replace(self, **part, boxes=box[None]))
        return parts


class Place(NamedTuple):
    """Where a part's rows stand among all."""

    name: str
    start: int
    stop: int


class Task:
    """Candidates of several volumes below each other: what every method is fitted on and judged by.

    `label`, `group` (the part's name), `region` (a number for each labelled box) and `zyx` have a value for
    each row; `by` is `region` where the parts are regions of one volume. Crops come windowed in [0, 1] and at
    the first volume's voxel size; volumes that differ by more than 5 % are refused unless `any_voxel`, or
    read at the first one's size with `resample`.
    """

    def __init__(
        self, parts: Sequence[Candidates], *, resample: bool = False, any_voxel: bool = False
    ) -> None:
        if not parts:
            raise CanvasError("no candidates were given; give those of two volumes at least")
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
        self._to_um = [
            check_voxel_um(part.volume, self.voxel_um, resample=resample, any_voxel=any_voxel)
            for part in parts
        ]
        self._readers: dict[tuple[int, Zyx], CropReader] = {}

    def __len__(self) -> int:
        return len(self.label)

    @property
    def own(self) -> Float64[np.ndarray, " n"] | None:
        """The candidates' own scores; None unless every part has them."""
        known = [part.own for part in self.parts if part.own is not None]
        return np.concatenate(known) if len(known) == len(self.parts) else None

    @property
    def is_cell(self) -> Bool[np.ndarray, " n"]:
        return self.label == CELL

    def labelled(self, names: Sequence[str]) -> Int64[np.ndarray, " m"]:
        """Rows of these parts that carry a label, those of −1 left out."""
        return np.flatnonzero(np.isin(self.group, list(names)) & (self.label != SKIP))

    def crops(self, rows: Int64[np.ndarray, " m"], crop_zyx: Zyx) -> Float32[np.ndarray, "m z y x"]:
        """The crops around some rows in [0, 1] after their volume's window, rows in that order."""
        out = np.empty((len(rows), *crop_zyx), np.float32)
        for number, place in enumerate(self.places):
            mine = np.flatnonzero((rows >= place.start) & (rows < place.stop))
            if len(mine):
                raw = self._reader(number, crop_zyx).read_points(self.zyx[rows[mine]])
                out[mine] = self.parts[number].volume.window.apply(raw)
        return out

    def missed_by_part(self, rows: Int64[np.ndarray, " m"]) -> dict[str, int]:
        """True cells without a candidate, by part: its share that goes with the cells among these rows."""
        found = {}
        for part in self.parts:
            mine = self.is_cell[rows] & (self.group[rows] == part.name)
            cells = int((part.label == CELL).sum())
            if mine.any():
                found[part.name] = round(part.missed * int(mine.sum()) / cells)
        return found

    def _reader(self, number: int, crop_zyx: Zyx) -> CropReader:
        key = (number, crop_zyx)
        if key not in self._readers:
            volume = self.parts[number].volume
            self._readers[key] = CropReader(
                volume, crop_zyx, resample_to_um=self._to_um[number], cache_bytes=64 * 2**20
            )
        return self._readers[key]

    def _regions(self) -> Int64[np.ndarray, " n"]:
        found, first = [], 0
        for part in self.parts:
            found.append(first + np.maximum(box_of(part.zyx, part.boxes), 0))
            first += len(part.boxes)
        return np.concatenate(found)


def _own_score(points: Points, column: str | None, name: str) -> Float64[np.ndarray, " n"] | None:
    found = column or next((one for one in SCORE_COLUMNS if one in points.columns), None)
    if found is None:
        return None
    if found not in points.columns or points.columns[found].dtype.kind not in "iufb":
        raise CanvasError(f"{name}: the candidates have no column of numbers {found!r}")
    values = points.columns[found].astype(np.float64)
    if not np.isfinite(values).all():
        row = int(np.argmin(np.isfinite(values)))
        raise CanvasError(f"{name}: the column {found!r} is {values[row]} in row {row + 1}; give a number")
    return values
