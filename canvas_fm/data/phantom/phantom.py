"""Synthetic brains of six markers with true centroids and instance masks.

It is drawn, not simulated: enough of each marker's look, of tissue and of a light-sheet microscope that
software meets what it will meet, and a truth that no annotator can give. No figure on it says anything about
real brains.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from scipy.ndimage import gaussian_filter

from canvas_fm.data.phantom.cells import KINDS, TILE_UM, Cells, Kind, place_cells
from canvas_fm.data.phantom.fields import add_patch, noise, noise_at, paste_mask, splat
from canvas_fm.data.phantom.randomised.shapes import Samples, draw_baskets, draw_cell, draw_fibres
from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume, Zyx, ZyxUm
from canvas_fm.errors import CanvasError
from canvas_fm.files.atomic import removed_on_error, write_text_atomic
from canvas_fm.progress import bar

MARKERS = tuple(KINDS)
BLOCK_ZYX: Zyx = (64, 256, 256)
_TILE_ZYX: Zyx = (32, 64, 64)  # camera noise is drawn in these, and blocks are made of whole ones
_BLUR_UM = (2.4, 0.9, 0.9)  # the light sheet's thickness, the objective's spread
_SLACK_UM = 10.0  # beyond a soma, for its patch's margin
_OFFSET, _COUNTS_PER_ELECTRON, _READ_NOISE, _TOP = 100.0, 2.0, 2.5, 4095


def write_phantom(
    out: str | Path,
    *,
    shape_zyx: Zyx = (64, 192, 192),
    markers: Sequence[str] = MARKERS,
    seed: int = 0,
    voxel_um: ZyxUm = (4.0, 1.8, 1.8),
    stripes: bool = True,
    shading: bool = True,
    block_zyx: Zyx = BLOCK_ZYX,
    progress: bool | None = None,
) -> dict[str, Path]:
    """Write a phantom brain; returns the folder of each marker, OUT/MARKER.

    It holds `raw.zarr` (uint16, counts of a 12-bit camera), `mask.zarr` (the cells numbered from 1, 0
    between them), `centroids.csv` (a row for each number: the centre of mass of its mask in voxels, z, y, x,
    and n_voxels) and `meta.json`. Masks of two cells never touch, not even by a corner, with voxels up to the
    default size.

    A marker is the same for the same seed, shape and voxel size, whichever markers are written beside it
    and whatever `block_zyx` is (rounded to multiples of 32 × 64 × 64). Memory is some ten times a block as
    float64, and some hundred bytes a cell. `progress=None` shows a bar where stderr is a terminal.

    Raises CanvasError for an unknown marker and where OUT/MARKER is there already; of a phantom that
    is not finished nothing is left.
    """
    out = Path(out)
    markers = [_known(marker) for marker in markers]
    shape = tuple(int(n) for n in shape_zyx)
    if len(shape) != 3 or min(shape) < 1 or len(voxel_um) != 3 or min(voxel_um) <= 0:
        raise CanvasError(
            f"a phantom of {shape} voxels of {tuple(voxel_um)} µm; expected three positive sizes each"
        )
    existing = [str(out / marker) for marker in markers if (out / marker).exists()]
    if existing:
        raise CanvasError(f"{', '.join(existing)} exists already; delete it or choose another folder")
    written = {marker: out / marker for marker in markers}
    with removed_on_error(*written.values()):
        for marker, folder in written.items():
            brain = _Brain(marker, shape, voxel_um, seed, stripes=stripes, shading=shading)
            folder.mkdir(parents=True)
            _write_marker(brain, folder, block_zyx, progress)
    return written


def _known(marker: str) -> str:
    for known in MARKERS:
        if marker.lower() == known.lower():
            return known
    raise CanvasError(f"no marker {marker!r} in the phantom; it has {', '.join(MARKERS)}")


def _write_marker(brain: _Brain, folder: Path, block_zyx: Zyx, progress: bool | None) -> None:
    block = tuple(t * max(1, round(b / t)) for b, t in zip(block_zyx, _TILE_ZYX, strict=True))
    blocks = list(_boxes(brain.shape, block))
    tiles = math.prod(math.ceil(extent / TILE_UM) for extent in brain.extent_um)
    with bar(f"phantom {brain.marker}", tiles + len(blocks), unit="steps", show=progress) as advance:
        cells = brain.place(advance)
        numbers = np.dtype("uint16" if len(cells.centre_um) < 2**16 else "uint32")
        centroids = np.full((len(cells.centre_um), 3), np.nan)
        sizes = np.zeros(len(cells.centre_um), np.int64)
        options = {
            "voxel_um": brain.voxel_um.tolist(),
            "shard_zyx": _shard(brain.shape, block),
            "source": "canvas-fm phantom",
        }
        with (
            Volume.create(folder / "raw.zarr", brain.shape, marker=brain.marker, **options) as raw,
            Volume.create(folder / "mask.zarr", brain.shape, dtype=numbers, **options) as masks,
        ):
            for low, high in blocks:
                light, mask = brain.draw(cells, low, high, centroids, sizes)
                raw.write(low, brain.photograph(light, low))
                masks.write(low, mask.astype(numbers))
                advance()
    Points(centroids, {"n_voxels": sizes}).write(folder / "centroids.csv")
    meta = {
        "marker": brain.marker,
        "shape_zyx": list(brain.shape),
        "voxel_um": brain.voxel_um.tolist(),
        "seed": brain.seed,
        "stripes": brain.stripes,
        "shading": brain.shading,
        "n_centroids": len(sizes),
        "source": "canvas-fm phantom",
    }
    write_text_atomic(folder / "meta.json", json.dumps(meta, indent=1) + "\n")


def _shard(shape: Sequence[int], block: Sequence[int]) -> Zyx:
    """Shard shape: one shard a block, in whole chunks of the store."""
    z, y, x = (
        min(c, n) * math.ceil(min(b, n) / min(c, n)) for n, b, c in zip(shape, block, _TILE_ZYX, strict=True)
    )
    return z, y, x


def _boxes(shape: Sequence[int], block: Sequence[int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for low in itertools.product(*(range(0, n, b) for n, b in zip(shape, block, strict=True))):
        yield np.array(low), np.minimum(np.add(low, block), shape)


class _Brain:
    """One marker's brain, rendered block by block: tissue, cells, light and camera."""

    def __init__(
        self, marker: str, shape: Zyx, voxel_um: ZyxUm, seed: int, *, stripes: bool, shading: bool
    ) -> None:
        self.marker, self.shape, self.seed = marker, shape, seed
        self.kind: Kind = KINDS[marker]
        self.stream = (seed, MARKERS.index(marker))
        self.voxel_um = np.asarray(voxel_um, dtype=np.float64)
        self.extent_um = np.asarray(shape) * self.voxel_um
        self.stripes, self.shading = stripes, shading

    def place(self, advance: Callable[[], None]) -> Cells:
        """All cells inside the tissue, at varying density, in voxels."""
        half = self.voxel_um / 2

        def accept(places: np.ndarray, chance: np.ndarray) -> np.ndarray:
            density = 1 - self.kind.patchiness * np.clip(
                1.7 - 2.2 * noise_at(places, 110.0, (*self.stream, 3)), 0, 1
            )
            return (chance < density) & (self._tissue(*(places - half).T, margin_um=9.0) > 0.5)

        cells = place_cells(self.kind, self.stream, self.extent_um, accept, advance)
        return Cells(cells.centre_um - half, cells.stream)

    def draw(
        self, cells: Cells, low: np.ndarray, high: np.ndarray, centroids: np.ndarray, sizes: np.ndarray
    ) -> tuple[Float64[np.ndarray, "z y x"], np.ndarray]:
        """Light (counts above the camera's offset) and instance mask of a block.

        Fills `centroids` and `sizes` of the cells whose mask it meets.
        """
        margin = np.ceil(4 * np.asarray(_BLUR_UM) / self.voxel_um).astype(np.int64)
        origin, size = low - margin, high - low + 2 * margin
        light, mask = np.zeros(size), np.zeros(high - low, np.uint32)
        thin = list(self._loose(origin, size))
        for number in self._near(cells.centre_um, origin, size):
            random = np.random.default_rng([*self.stream, 2, *cells.stream[number].tolist()])
            shape = draw_cell(self.kind, cells.centre_um[number], self.voxel_um, self.shape, random)
            add_patch(light, shape.solid, shape.origin - origin)
            thin.append(shape.samples)
            if paste_mask(mask, shape.mask, shape.origin - low, int(number) + 1):
                voxels = np.argwhere(shape.mask) + shape.origin
                centroids[number], sizes[number] = voxels.mean(axis=0), len(voxels)
        splat(light, thin, origin, self.voxel_um)
        light = gaussian_filter(light, np.asarray(_BLUR_UM) / self.voxel_um, truncate=3.5, mode="constant")
        light = light[tuple(slice(m, n - m) for m, n in zip(margin, size, strict=True))]
        return light + self._background(low, high), mask

    def photograph(self, light: Float64[np.ndarray, "z y x"], low: np.ndarray) -> np.ndarray:
        """Camera counts of a block, uint16: uneven illumination, Poisson noise, read noise."""
        high = low + light.shape
        electrons = light * self._illumination(low, high) / _COUNTS_PER_ELECTRON
        # Rounded, so that the last bits, in which blocks of other sizes may differ, never reach the noise.
        electrons = np.round(electrons, 3)
        counts = np.empty(light.shape, np.uint16)
        for start, stop in _boxes(light.shape, _TILE_ZYX):
            tile = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
            random = np.random.default_rng([*self.stream, 3, *((low + start) // _TILE_ZYX).tolist()])
            caught = random.poisson(electrons[tile]) * _COUNTS_PER_ELECTRON
            noisy = caught + _OFFSET + _READ_NOISE * random.standard_normal(caught.shape)
            counts[tile] = np.clip(np.rint(noisy), 0, _TOP)
        return counts

    def _near(self, centres: np.ndarray, origin: np.ndarray, size: np.ndarray) -> np.ndarray:
        margin_um = self.kind.reach_um + (
            _SLACK_UM if self.kind.processes is None else self.kind.processes.reach_um
        )
        low, high = origin * self.voxel_um - margin_um, (origin + size) * self.voxel_um + margin_um
        return np.flatnonzero(np.all((centres > low) & (centres < high), axis=1))

    def _loose(self, origin: np.ndarray, size: np.ndarray) -> Iterator[Samples]:
        """Fibres and baskets near a box, drawn tile by tile from the tile's own random stream."""
        kinds = (
            (4, self.kind.fibres_mm3, draw_fibres, 2.0, 76.0),
            (5, self.kind.baskets_mm3, draw_baskets, 0.8, 9.0),
        )
        for stream, density, draw, gain, reach_um in kinds:
            low = np.floor((origin * self.voxel_um - reach_um) / TILE_UM).astype(int)
            high = np.floor(((origin + size) * self.voxel_um + reach_um) / TILE_UM).astype(int)
            spans = [range(a, b + 1) for a, b in zip(low, high, strict=True)] if density else [()]
            for tile in itertools.product(*spans):
                random = np.random.default_rng([*self.stream, stream, *(at + 2**20 for at in tile)])
                count = random.poisson(density * TILE_UM**3 * 1e-9)
                centres = (np.asarray(tile) + random.random((count, 3))) * TILE_UM
                centres = centres[self._tissue(*centres.T) > 0.5]
                if len(centres):
                    yield draw(centres, self.kind.counts * gain, random)

    def _background(self, low: np.ndarray, high: np.ndarray) -> Float64[np.ndarray, "z y x"]:
        """Dim autofluorescence inside the tissue, a faint glow outside."""
        z, y, x = self._axes(low, high)
        cloud = 60 * self._noise(low, high, (150.0, 110.0, 110.0), 0)
        grain = 22 * self._noise(low, high, (14.0, 9.0, 9.0), 1)
        return 8 + self._tissue(z, y, x) * (48 + cloud + grain)

    def _illumination(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Illumination field: the light sheet comes from low x and decays; shadows run along x."""
        _, y, x = self._axes(low, high)
        factor = np.ones(high - low)
        if self.shading:
            across, along = y / self.extent_um[1], x / self.extent_um[2]
            factor *= (1.1 - 0.35 * along) * (1 - 0.5 * (across - 0.5) ** 2)
        if self.stripes:
            rows = self._noise(low, high, (9.0, 4.5, 900.0), 6)
            rows += 0.6 * self._noise(low, high, (30.0, 13.0, 700.0), 7)
            factor *= 1 - 0.22 * np.clip(rows - 0.62, 0, None) / 0.5
        return factor

    def _noise(
        self, low: np.ndarray, high: np.ndarray, pitch_um: Sequence[float], channel: int
    ) -> Float64[np.ndarray, "z y x"]:
        return noise(low, high, self.voxel_um, pitch_um, (*self.stream, channel))

    def _axes(self, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        z, y, x = (np.arange(a, b) * size for a, b, size in zip(low, high, self.voxel_um, strict=True))
        return z[:, None, None], y[None, :, None], x[None, None, :]

    def _tissue(self, z: np.ndarray, y: np.ndarray, x: np.ndarray, *, margin_um: float = 0.0) -> np.ndarray:
        """Tissue mask of a block: 1 inside, 0 outside, smooth edge; `margin_um` shrinks it."""
        half = self.extent_um / 2
        # A rounded section that keeps its corners out, a little smaller at both ends of z, with a wavy rim.
        u, v, w = ((axis - h) / h for axis, h in zip((z, y, x), half, strict=True))
        rim = (
            0.975
            + 0.035 * np.sin(3 * np.arctan2(v, w) + self.seed)
            + 0.02 * np.sin(7 * np.arctan2(v, w) + 2 * u)
        )
        radius = (np.abs(0.62 * u) ** 4 + np.abs(v) ** 4 + np.abs(w) ** 4) ** 0.25
        depth = (rim - radius) * min(half[1], half[2]) - margin_um
        return 1 / (1 + np.exp(-np.clip(depth / 3.0, -30, 30)))
