"""Positions and appearance of the cells of a phantom brain, determined by the seed alone.

Places are drawn tile by tile, shapes cell by cell, each from its own random stream: neither depends on the
blocks in which the volume is written. Positions and lengths are micrometres, order z, y, x.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64
from scipy.spatial import cKDTree

TILE_UM = 128.0
_DIAGONAL_UM = 4.75  # diagonal of a voxel of 4 × 1.8 × 1.8 µm: masks farther apart than this do not touch


@dataclass(frozen=True)
class Processes:
    """The processes of a cell: `count` stems, each with `branches` twigs a generation."""

    count: tuple[int, int]
    length_um: tuple[float, float]
    radius_um: float  # at the soma; tapers to half
    curl: float  # change of direction a micrometre
    gain: float  # brightness against the soma's, for equal filling
    branches: tuple[float, ...] = ()  # twigs on each process, on each twig …
    polar: float = 0.0  # 0: leaves the soma in all directions; 1: only along one common axis

    @property
    def reach_um(self) -> float:
        """Upper bound of the distance from the cell's centre to any process, in µm."""
        return 1.5 * self.length_um[1]


@dataclass(frozen=True)
class Kind:
    """Cell type of one marker: sizes, brightness, processes, spacing."""

    candidates_mm3: float  # drawn at random, then thinned to `spacing_um`
    spacing_um: float  # no two cells are closer
    radius_um: tuple[float, float]
    elongation: float  # longest to shortest axis of the soma, at most
    roughness: float  # how far the soma's outline leaves an ellipsoid
    counts: float  # median brightness above the background, in camera counts
    spread: float  # of the brightness, as the sigma of a log-normal
    patchiness: float  # 0: evenly dense; 1: with empty regions
    soma: float = 1.0  # brightness of the soma against `counts`
    dark_spots: int = 0  # nucleoli and the like
    processes: Processes | None = None
    mask_processes: bool = (
        False  # whether the mask holds the processes too, as far as the cell's own territory
    )
    fibres_mm3: float = 0.0  # beaded fibres between the cells, part of no cell
    baskets_mm3: float = 0.0  # rings of boutons around cells that are not stained

    @property
    def reach_um(self) -> float:
        """Upper bound of the soma's radius, in µm."""
        return self.radius_um[1] * self.elongation ** (2 / 3) * (1.3 if self.roughness else 1.0)

    @property
    def territory_um(self) -> float:
        """Half the least spacing less a voxel, in µm: masks inside it never touch another cell's."""
        return (self.spacing_um - _DIAGONAL_UM) / 2


KINDS: dict[str, Kind] = {
    "NeuN": Kind(
        candidates_mm3=260_000, spacing_um=15.6, radius_um=(4.0, 5.2), elongation=1.2, roughness=0.06,
        counts=700, spread=0.30, patchiness=0.25, dark_spots=2,
    ),
    "cFos": Kind(
        candidates_mm3=22_000, spacing_um=13.5, radius_um=(3.0, 4.1), elongation=1.15, roughness=0.0,
        counts=900, spread=0.60, patchiness=1.0,
    ),
    "TH": Kind(
        candidates_mm3=9_000, spacing_um=27.0, radius_um=(6.0, 7.6), elongation=2.0, roughness=0.10,
        counts=900, spread=0.30, patchiness=0.7, dark_spots=1,
        processes=Processes((2, 4), (45, 85), 1.7, 0.05, 1.1, branches=(0.6,), polar=0.75),
        fibres_mm3=40_000,
    ),
    "PV": Kind(
        candidates_mm3=9_000, spacing_um=27.0, radius_um=(5.8, 7.6), elongation=1.35, roughness=0.06,
        counts=1100, spread=0.35, patchiness=0.3,
        processes=Processes((3, 6), (35, 65), 1.1, 0.06, 1.4, branches=(0.6,)),
        baskets_mm3=24_000,
    ),
    "GFAP": Kind(
        candidates_mm3=40_000, spacing_um=37.0, radius_um=(2.6, 3.4), elongation=1.3, roughness=0.15,
        counts=800, spread=0.30, patchiness=0.5, soma=0.75,
        processes=Processes((7, 11), (16, 27), 1.05, 0.06, 2.2, branches=(0.9,)),
        mask_processes=True,
    ),
    "IBA1": Kind(
        candidates_mm3=45_000, spacing_um=40.0, radius_um=(2.8, 3.7), elongation=1.9, roughness=0.15,
        counts=850, spread=0.30, patchiness=0.15, soma=1.25,
        processes=Processes((3, 5), (18, 28), 0.62, 0.21, 5.0, branches=(3.2, 1.8)),
        mask_processes=True,
    ),
}  # fmt: skip


class Cells(NamedTuple):
    """Cells in a fixed order; cell i has the number i + 1 in the instance mask."""

    centre_um: Float64[np.ndarray, "n 3"]
    stream: np.ndarray  # (n, 4): tile z, y, x and number in the tile, from which the cell's shape is drawn


Accept = Callable[[np.ndarray, np.ndarray], np.ndarray]  # places (n, 3) in µm, chance (n,) → which are taken


def place_cells(
    kind: Kind, seed: Sequence[int], extent_um: np.ndarray, accept: Accept, advance: Callable[[], None]
) -> Cells:
    """All cells centred in [0, extent), none closer to another than the kind's spacing.

    Two rounds of "first come, first served" by a random priority, which needs no more than the candidates
    within three spacings: each tile is settled from itself and its neighbours.
    """
    assert 3 * kind.spacing_um <= TILE_UM
    grid = [max(1, int(np.ceil(extent / TILE_UM))) for extent in extent_um]
    centres, streams = [np.empty((0, 3))], [np.empty((0, 4), np.int64)]
    for tile in itertools.product(*map(range, grid)):
        spots, priority, owner = _candidates_around(kind, seed, tile, grid, extent_um, accept)
        accepted = _settle(spots, priority, kind.spacing_um) & (owner[:, 0] >= 0)
        centres.append(spots[accepted])
        streams.append(np.column_stack([np.tile(tile, (int(accepted.sum()), 1)), owner[accepted, 1]]))
        advance()
    return Cells(np.concatenate(centres), np.concatenate(streams).astype(np.int64))


def _candidates_around(
    kind: Kind,
    seed: Sequence[int],
    tile: Sequence[int],
    grid: Sequence[int],
    extent_um: np.ndarray,
    accept: Accept,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Candidate cells in and near a tile: positions, priorities, rows (0 or −1 outside the tile, number)."""
    low = np.asarray(tile) * TILE_UM - 3 * kind.spacing_um
    high = np.asarray(tile) * TILE_UM + TILE_UM + 3 * kind.spacing_um
    spots, priorities, owners = [], [], []
    for step in itertools.product((-1, 0, 1), repeat=3):
        other = [a + b for a, b in zip(tile, step, strict=True)]
        if any(not 0 <= a < n for a, n in zip(other, grid, strict=True)):
            continue
        random = np.random.default_rng([*seed, 1, *other])
        count = random.poisson(kind.candidates_mm3 * TILE_UM**3 * 1e-9)
        places = (np.asarray(other) + random.random((count, 3))) * TILE_UM
        priority, chance = random.random((2, count))
        nearby = np.flatnonzero(np.all((places >= low) & (places < high) & (places < extent_um), axis=1))
        nearby = nearby[accept(places[nearby], chance[nearby])]
        spots.append(places[nearby])
        priorities.append(priority[nearby])
        owners.append(np.column_stack([np.full(len(nearby), 0 if step == (0, 0, 0) else -1), nearby]))
    return np.concatenate(spots), np.concatenate(priorities), np.concatenate(owners)


def _settle(spots: np.ndarray, priority: np.ndarray, spacing: float) -> Bool[np.ndarray, " n"]:
    pairs = (
        cKDTree(spots).query_pairs(spacing, output_type="ndarray") if len(spots) else np.empty((0, 2), int)
    )
    first_wins = priority[pairs[:, 0]] < priority[pairs[:, 1]]
    winner = np.where(first_wins, pairs[:, 0], pairs[:, 1])
    loser = np.where(first_wins, pairs[:, 1], pairs[:, 0])
    open_, accepted = np.ones(len(spots), bool), np.zeros(len(spots), bool)
    for _ in range(2):
        beaten = np.zeros(len(spots), bool)
        beaten[loser[open_[winner] & open_[loser]]] = True
        new = open_ & ~beaten
        accepted |= new
        open_ &= ~new
        open_[loser[new[winner]]] = False
        open_[winner[new[loser]]] = False
    return accepted
