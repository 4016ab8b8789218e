"""Embedded cells of several brains by region, corrected for differences between brains."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64
from scipy.spatial import cKDTree

from canvas_fm.analysis.groups.study import check_design, read_rows
from canvas_fm.data.points.points import Points
from canvas_fm.errors import CanvasError
from canvas_fm.inference.embed.store.embedding_store import Embeddings

COMPONENTS = 32
MAX_CELLS = 50_000  # a brain; where it has more they are drawn at random
_FEW = 10  # cells of a region in every brain, for the region to tell what is typical of a brain
_SAME_VOXELS = 0.01  # cells of two tables this near are one cell
_NEEDED = ("brain", "group", "embeddings")


@dataclass(frozen=True)
class BrainCells:
    """Cells of one brain: vectors (n, d), the region of each as an index, their rows in the store."""

    brain: str
    group: str
    vectors: Float32[np.ndarray, "n d"]
    region: Int64[np.ndarray, " n"]
    rows: Int64[np.ndarray, " n"]
    store: Path


@dataclass(frozen=True)
class ProfileStudy:
    """Brains with their cells; `regions` names what `BrainCells.region` counts."""

    brains: tuple[BrainCells, ...]
    regions: tuple[str, ...]

    def __post_init__(self) -> None:
        check_design([brain.brain for brain in self.brains], [brain.group for brain in self.brains])

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(brain.group for brain in self.brains))

    def of(self, group: str) -> np.ndarray:
        """Mask of a group's brains."""
        return np.array([brain.group == group for brain in self.brains])


def read_profile_study(
    path: str | Path, *, column: str = "region", max_cells: int = MAX_CELLS, seed: int = 0
) -> ProfileStudy:
    """A CSV with the columns brain, group and embeddings, the store that `canvas-fm embed` wrote of it.

    Paths are relative to the file. Each cell's region stands in `column` of the store (`canvas-fm regions
    --cells-out` writes it), or of the table that a column `cells` names, found by position. Cells without
    a region are left out. All stores are of one encoder and pooling.
    """
    path = Path(path)
    rows = read_rows(path, _NEEDED, "brain, group, embeddings")
    stores = [Embeddings.open(path.parent / row["embeddings"]) for row in rows]
    for store in stores[1:]:
        if (store.encoder_sha256, store.pool) != (stores[0].encoder_sha256, stores[0].pool):
            raise CanvasError(
                f"{store.path} is of another encoder or pooling than {stores[0].path}; such vectors do not "
                "compare: embed all brains with one model"
            )
    names = [
        _regions_by_position(store, path.parent / row["cells"], column) if row.get("cells")
        else _regions_of(store, column)
        for store, row in zip(stores, rows, strict=True)
    ]  # fmt: skip
    regions = tuple(sorted({str(name) for each in names for name in np.unique(each)} - {""}))
    index = {name: at for at, name in enumerate(regions)}
    random = np.random.default_rng(seed)
    brains = []
    for row, store, of_cell in zip(rows, stores, names, strict=True):
        known = np.flatnonzero(of_cell != "")
        if len(known) > max_cells:
            known = np.sort(random.choice(known, max_cells, replace=False))
        if not len(known):
            raise CanvasError(f"{store.path}: no cell has a {column}; are all outside of the atlas?")
        store.shape  # noqa: B018 - refuses several vectors a cell
        region = np.array([index[str(name)] for name in of_cell[known]], np.int64)
        brains.append(
            BrainCells(
                row["brain"], row["group"], store.read(known), region, known.astype(np.int64), store.path
            )
        )
    return ProfileStudy(tuple(brains), regions)


def _regions_of(store: Embeddings, column: str) -> np.ndarray:
    if column not in store.columns:
        raise CanvasError(
            f"{store.path} has no column {column!r}; found {', '.join(store.columns) or 'none'}. Write the "
            "cells with their regions first (canvas-fm regions --cells-out CELLS.csv), then embed CELLS.csv"
        )
    return _as_text(np.asarray(store.columns[column]))


def _regions_by_position(store: Embeddings, path: Path, column: str) -> np.ndarray:
    """Region of each embedded cell from a table of the same cells, of which some may lack there."""
    cells = Points.read(path)
    if column not in cells.columns:
        raise CanvasError(f"{path} has no column {column!r}; give what `canvas-fm regions --cells-out` wrote")
    far, at = cKDTree(cells.zyx).query(store.zyx, distance_upper_bound=_SAME_VOXELS)
    if not np.isfinite(far).any():
        raise CanvasError(f"no cell of {path} lies where one of {store.path} does; are both of one brain?")
    return np.append(_as_text(np.asarray(cells.columns[column])), "")[at]  # the last where none is near


def _as_text(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind == "f":
        return np.where(np.isnan(values), "", values.astype(np.str_))
    return values.astype(np.str_)


def normalised(study: ProfileStudy, control: str, components: int = COMPONENTS) -> list[np.ndarray]:
    """Typical variation normalisation: vectors of each brain (n, k) on axes along which controls are white.

    Each number is centred and scaled by what is typical of the brain's regions: the median over regions of
    their medians, and of their median absolute deviations. A new population in one region moves neither,
    where there are three regions or more. The principal components of the control group's cells follow,
    every control brain with the same weight, each divided by its deviation. So gain, offset and staining of a
    brain as a whole are removed, and what differs between regions stays.
    Source: Ando, McLean and Berndl 2017, doi:10.1101/161422, with medians in place of means and without the
    alignment of covariances, which a new population in one region would bend in all others.
    """
    counts = np.stack([np.bincount(brain.region, minlength=len(study.regions)) for brain in study.brains])
    usual = np.flatnonzero((counts >= _FEW).all(axis=0))
    standard = [_standardised(brain.vectors, brain.region, usual) for brain in study.brains]
    controls = [each for each, is_control in zip(standard, study.of(control), strict=True) if is_control]
    second_moments = np.mean([each.T @ each / len(each) for each in controls], axis=0, dtype=np.float64)
    values, axes = np.linalg.eigh(second_moments)
    kept = slice(None, -min(components, len(values)) - 1, -1)
    basis = axes[:, kept] / np.sqrt(np.maximum(values[kept], 1e-6))
    return [(each @ basis).astype(np.float32) for each in standard]


def _standardised(vectors: np.ndarray, region: np.ndarray, usual: np.ndarray) -> np.ndarray:
    """Rows in deviations of the typical region among those of index `usual`; without any, of all cells."""
    masks = [region == row for row in usual] or [np.ones(len(region), bool)]
    medians = np.stack([np.median(vectors[mask], axis=0) for mask in masks])
    pairs = zip(masks, medians, strict=True)
    spreads = np.stack([np.median(np.abs(vectors[mask] - median), axis=0) for mask, median in pairs])
    spread = 1.4826 * np.median(spreads, axis=0)
    spread = np.where(spread > 1e-12, spread, np.maximum(vectors.std(axis=0), 1e-12))
    return ((vectors - np.median(medians, axis=0)) / spread).astype(np.float32)
