"""Labelled candidates of a volume: labels from a column, or by matching with true cells."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from canvas_fm.data.dataset.unique_names import check_one_each, unique_names
from canvas_fm.data.points.boxes import as_boxes, box_of, inside_boxes, read_boxes, whole
from canvas_fm.data.points.label_values import as_labels
from canvas_fm.data.points.points import Points, repeated_rows
from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import BadInput, CanvasError
from canvas_fm.evaluation.detection.curve import Curve, score_curve
from canvas_fm.evaluation.detection.matching import match
from canvas_fm.evaluation.detection.pairs import find_pairs
from canvas_fm.evaluation.detection.plausibility_checks import cells_of, scores_of

_log = logging.getLogger(__name__)
CELL, OTHER, SKIP = 1, 0, -1


@dataclass(frozen=True)
class Candidates:
    """Candidates of one volume, positions in voxels; `label` 1 cell, 0 no cell, −1 skipped.

    `truth_zyx` are all true cells, those without a candidate too, None where they are not known; `boxes`
    (rows z0 y0 x0 z1 y1 x1) say where they are labelled (None: nobody said). `score` names the column of the
    candidates' own score (None: the usual names), `files` is where they came from. `tissue` is one name for
    volumes that were cut from the same one, which have to be held out together; see `brain`.
    """

    name: str
    volume: Volume
    points: Points
    label: Int64[np.ndarray, " n"]
    truth_zyx: Float64[np.ndarray, "m 3"] | None = None
    tolerance_um: float | None = None
    boxes: Int64[np.ndarray, "k 6"] | None = None
    score: str | None = None
    background: Volume | None = None
    files: tuple[Path, ...] = ()
    tissue: str = ""

    @classmethod
    def of(
        cls,
        volume: Volume,
        points: Points,
        truth: Points | None = None,
        *,
        labels: str | None = "label",
        tolerance_um: float | None = None,
        within: Int64[np.ndarray, "k 6"] | None = None,
        score: str | None = None,
        name: str | None = None,
        background: Volume | None = None,
        files: tuple[Path, ...] = (),
    ) -> Candidates:
        """Candidates with labels of a column, or with `labels=None` by matching them to the truth.

        Matched one to one within `tolerance_um`, the closest pair first, a candidate is a cell, else none: of
        two on one cell the farther is none. With a column, the truth only says which cells are missed. What
        lies outside `within` is skipped. Duplicates are warned about and kept. Raises CanvasError for a
        column that is not there or holds anything but 1, 0 and −1, and for points outside the volume or of
        another one.
        """
        name = name or volume.name
        _check_volume_name(points, volume, f"the candidates of {name}")
        if labels is None and (truth is None or tolerance_um is None):
            raise BadInput(f"{name}: give labels, or the true cells with a tolerance in µm")
        true = None
        if truth is not None:
            _check_volume_name(truth, volume, f"the true cells of {name}")
            true = cells_of(truth, "truth")[0].zyx
        if labels is not None:
            label = _column(points, labels, name)
        else:
            assert true is not None
            assert tolerance_um is not None
            label = np.full(len(points), OTHER, np.int64)
            label[match(points.zyx, true, tolerance=tolerance_um, scale_zyx=volume.voxel_um).pred_index] = (
                CELL
            )
        if within is not None:
            label = np.where(inside_boxes(points.zyx, within), label, SKIP)
        if repeated := repeated_rows(points.zyx):
            _log.warning("%s: %d of %d candidates repeat the position of another; they are kept", name,
                         repeated, len(points))  # fmt: skip
        return cls(name, volume, points, label, true, tolerance_um, within, score, background, files)

    def __len__(self) -> int:
        return len(self.points)

    @property
    def zyx(self) -> Float64[np.ndarray, "n 3"]:
        return self.points.zyx

    @property
    def brain(self) -> str:
        """Name of what has to be held out as a whole: the volume, with those that share its tissue."""
        return self.tissue or self.name

    @property
    def own(self) -> Float64[np.ndarray, " n"] | None:
        """Candidate scores, None if there are none; CanvasError for text or NaN."""
        try:
            return scores_of(self.points, self.score, needed=False)
        except CanvasError as problem:
            raise CanvasError(f"{self.name}: {problem}") from problem

    @property
    def where(self) -> Int64[np.ndarray, "k 6"]:
        """Labelled boxes; the whole volume by default."""
        return whole(self.volume.shape_zyx) if self.boxes is None else self.boxes

    @property
    def region(self) -> Int64[np.ndarray, " n"]:
        """Index of the labelled box of each candidate, −1 outside them."""
        return box_of(self.zyx, self.where)

    @property
    def missed(self) -> int | None:
        """Number of true cells in the labelled boxes without a candidate, which no refiner can recover."""
        if self.truth_zyx is None:
            return None
        inside = int(inside_boxes(self.truth_zyx, self.where).sum())
        return max(inside - int((self.label == CELL).sum()), 0)

    def counts(self) -> dict[str, Any]:
        """Number of candidates of each kind, and their recall, an upper bound for any refiner."""
        cells, missed = int((self.label == CELL).sum()), self.missed
        return {
            "candidates": len(self),
            "cells": cells,
            "others": int((self.label == OTHER).sum()),
            "skipped": int((self.label == SKIP).sum()),
            "missed": missed,
            "recall": cells / (cells + missed) if missed is not None and cells + missed else None,
            "duplicates": repeated_rows(self.points.zyx),
        }

    def rows(self, keep: Bool[np.ndarray, " n"]) -> Candidates:
        """Some of the candidates, of the same volume, true cells and boxes."""
        return replace(self, points=self.points[keep], label=self.label[keep])

    def curve(self, p_cell: Float64[np.ndarray, " n"]) -> Curve:
        """Counts against the true centres at every threshold of P(cell), without candidates labelled −1."""
        truth, tolerance_um = self._truth()
        keep = self.label != SKIP
        pairs = find_pairs(self.zyx[keep], truth, tolerance=tolerance_um, scale_zyx=self.volume.voxel_um)
        return score_curve(
            pairs, p_cell[keep], np.ones(int(keep.sum()), bool), inside_boxes(truth, self.where)
        )

    def counts_by_box(self, keep: Bool[np.ndarray, " n"]) -> Int64[np.ndarray, "k 3"]:
        """TP, FP and FN in each labelled box if these candidates are kept, by one-to-one matching.

        True cells count where they lie, found or missed, and false candidates where they lie.
        """
        truth, tolerance_um = self._truth()
        pred = self.zyx[keep & (self.label != SKIP)]
        chosen = match(pred, truth, tolerance=tolerance_um, scale_zyx=self.volume.voxel_um)
        truth_box, false_box = box_of(truth, self.where), box_of(pred, self.where)
        hit = np.zeros(len(truth), bool)
        hit[chosen.truth_index] = True
        false = np.ones(len(pred), bool)
        false[chosen.pred_index] = False
        places = truth_box[hit], false_box[false], truth_box[~hit]
        count = len(self.where)
        return np.stack([np.bincount(p[p >= 0], minlength=count) for p in places], axis=1)

    def by_region(self) -> list[Candidates]:
        """Split into one part for each box, for lack of a second volume."""
        parts = []
        for number, box in enumerate(self.where):
            rows = self.region == number
            known = (self.label[rows] != SKIP).any()
            true = self.truth_zyx is None or inside_boxes(self.truth_zyx, box[None]).any()
            if not known or not true:
                continue
            place = f"{self.name} z{box[0]} y{box[1]} x{box[2]}"
            parts.append(replace(self.rows(rows), name=place, boxes=box[None]))
        return parts

    def _truth(self) -> tuple[Float64[np.ndarray, "m 3"], float]:
        if self.truth_zyx is None or self.tolerance_um is None:
            raise CanvasError(f"{self.name}: to count against true cells, give them with a tolerance in µm")
        return self.truth_zyx, self.tolerance_um


def label_brains(
    volumes: Sequence[Volume],
    candidates: Sequence[Points | str | Path],
    *,
    labels: str | None = None,
    truth: Sequence[Points | str | Path] | None = None,
    tolerance_um: float | None = None,
    within: Sequence[Any] | None = None,
    score: str | None = None,
    background: Sequence[Volume] | None = None,
) -> list[Candidates]:
    """Volumes with labelled candidates; `truth`, `within` and `background` are given one a volume.

    Labels are a column, else come from matching with the truth; see `Candidates.of`. Of two volumes of one
    name the folder above tells them apart. Raises CanvasError where as many of each were not given.
    """
    several = {"candidates": candidates, "truth": truth, "within": within, "background": background}
    check_one_each(volumes, several)
    if labels is None and (truth is None or tolerance_um is None):
        raise CanvasError(
            "nothing says which candidates are cells: give --labels COLUMN, or --truth with --tolerance-um"
        )
    brains = []
    for index, (name, volume) in enumerate(zip(unique_names(volumes), volumes, strict=True)):
        values = [candidates[index], *([] if truth is None else [truth[index]])]
        brains.append(
            Candidates.of(
                volume,
                _read(candidates[index]),
                None if truth is None else _read(truth[index]),
                labels=labels,
                tolerance_um=tolerance_um,
                within=None if within is None else _boxes(within[index]),
                score=score,
                name=name,
                background=None if background is None else background[index],
                files=tuple(Path(source) for source in values if not isinstance(source, Points)),
            )
        )
    return _with_tissue(brains)


def _with_tissue(brains: list[Candidates]) -> list[Candidates]:
    """The same, with one `tissue` for a volume and the crops of it, and for crops of one volume."""
    names: dict[str, list[str]] = {}
    cubes = [brain.volume.crop_of or brain.name for brain in brains]
    for brain, cube in zip(brains, cubes, strict=True):
        names.setdefault(cube, []).append(brain.name)
    for cube, shared in names.items():
        if len(shared) > 1:
            _log.warning("%s hold voxels of one volume (%s) and are held out together", _and(shared), cube)
    return [
        replace(brain, tissue=" + ".join(names[cube])) if len(names[cube]) > 1 else brain
        for brain, cube in zip(brains, cubes, strict=True)
    ]


def _and(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def check_volume_name(points: Points, volume_name: str, source: str) -> None:
    """Raise CanvasError if the header of points names another volume than theirs."""
    stated = points.meta.get("volume")
    if stated is not None and stated != volume_name:
        raise CanvasError(
            f"{source} says that its points are of the volume {stated!r}; this one is {volume_name!r}: give "
            "that volume; if it is the same renamed, give a copy of the table without its .json beside it"
        )


def _check_volume_name(points: Points, volume: Volume, source: str) -> None:
    check_volume_name(points, volume.name, source)
    try:
        points.check_inside(volume.shape_zyx)
    except CanvasError as problem:
        raise CanvasError(f"{source}: {problem}") from problem


def _column(points: Points, column: str, name: str) -> Int64[np.ndarray, " n"]:
    values = points.columns.get(column)
    if values is None:
        available = ", ".join(points.columns) or "none"
        raise BadInput(f"{name}: the candidates have no column {column!r}; they have {available}")
    labels = as_labels(values)
    if labels is None:
        odd = next(value for value in values.tolist() if as_labels(np.array([value])) is None)
        raise BadInput(f"{name}: column {column!r} holds {odd!r}; expected 1 (a cell), 0 (none) or -1 (skip)")
    return labels


def _read(points: Points | str | Path) -> Points:
    return points if isinstance(points, Points) else Points.read(points)


def _boxes(boxes: Any) -> Int64[np.ndarray, "k 6"]:
    return read_boxes(boxes) if isinstance(boxes, str | Path) else as_boxes(boxes)
