"""Randomised phantoms as training data of a detector, drawn in memory during training."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float32, UInt8, UInt16

from canvas_fm.data.phantom.randomised.draw_phantom import draw_phantom
from canvas_fm.data.phantom.randomised.parameter_ranges import CellKind
from canvas_fm.data.points.boxes import whole
from canvas_fm.data.volume.volume import Volume, Zyx, ZyxUm
from canvas_fm.data.volume.window import WindowRule
from canvas_fm.errors import CanvasError
from canvas_fm.inference.detect.tiles.tiles import Resampled
from canvas_fm.training.detector.targets import Labelled, TargetPainter
from canvas_fm.training.mae.training_crops import VolumeSource
from canvas_fm.training.recipe.detector_recipe import PhantomRecipe

# Which phantoms are for what: 0 to 999 are domains to choose by, 1000 to 1099 are looked at once.
CALIBRATION, TRAINING = 5_000, 100_000
_PER_SEED = 1_000_000


class PhantomCrops:
    """Crops of a pool of phantoms; each phantom is replaced after a number of crops.

    What a step gets depends on the step and the seed alone, so a run that resumes draws the same.
    """

    def __init__(
        self,
        recipe: PhantomRecipe,
        crop_zyx: Zyx,
        voxel_um: ZyxUm,
        rule: WindowRule,
        radius_um: float,
        seed: int,
        per_batch: int,
        cells: float,
        channels: int = 1,
    ) -> None:
        self.recipe, self.crop_zyx, self.voxel_um, self.rule = recipe, crop_zyx, voxel_um, rule
        self.channels = channels
        self.radius_um, self.seed, self.per_batch, self.cells = radius_um, seed, per_batch, cells
        self._pool: dict[int, _Drawn] = {}

    def at(
        self, step: int
    ) -> tuple[UInt16[np.ndarray, "b c z y x"], Float32[np.ndarray, "b c 2"], UInt8[np.ndarray, "b z y x"]]:
        """Phantom crops of a step's batch: raw crops and windows of each channel, labels."""
        first = step * self.per_batch // self.recipe.crops_each
        members = range(first, first + self.recipe.pool)
        self._pool = {k: self._pool.get(k) or self._draw(k) for k in members}
        random = np.random.default_rng([self.seed, TRAINING, step])
        chosen = random.integers(self.recipe.pool, size=self.per_batch)
        crops, windows, labels = zip(
            *(self._crop(self._pool[first + int(k)], random) for k in chosen), strict=True
        )
        return np.stack(crops), np.stack(windows), np.stack(labels)

    def _draw(self, number: int) -> _Drawn:
        labelled = labelled_phantom(
            self.recipe,
            TRAINING + self.seed * _PER_SEED + number,
            self.voxel_um,
            self.crop_zyx,
            self.channels,
        )
        return _Drawn(labelled, self.crop_zyx, self.radius_um, self.rule)

    def _crop(self, drawn: _Drawn, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        cells, volume = drawn.labelled.points_zyx, drawn.labelled.source.volume
        size = np.asarray(self.crop_zyx)
        place = random.random(3) * volume.shape_zyx
        if len(cells) and random.random() < self.cells:
            place = cells[random.integers(len(cells))] + random.uniform(-0.4, 0.4, 3) * size
        start = np.clip(
            np.floor(place + 0.5).astype(np.int64) - size // 2, 0, np.asarray(volume.shape_zyx) - size
        )
        box = tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))
        crop = np.stack([voxels[box] for voxels in drawn.channels])
        return crop, drawn.windows, drawn.painter.paint(start)


class _Drawn:
    """A phantom in the pool."""

    def __init__(self, labelled: Labelled, crop_zyx: Zyx, radius_um: float, rule: WindowRule) -> None:
        self.labelled = labelled
        volumes = [volume for volume in (labelled.source.volume, labelled.background) if volume is not None]
        self.channels = [volume.array.voxels for volume in volumes if volume.array is not None]
        windows = [volume.window_by(rule) for volume in volumes]
        self.windows = np.array([[w.low, 1 / (w.high - w.low)] for w in windows], np.float32)
        self.painter = TargetPainter(labelled, crop_zyx, radius_um)


def labelled_phantom(
    recipe: PhantomRecipe, seed: int, voxel_um: ZyxUm, crop_zyx: Zyx, channels: int = 1
) -> Labelled:
    """The phantom of a seed at the detector's voxel size; some are drawn at another and resampled.

    With two channels it has its background too; what the signal shows is the same.
    """
    shape = recipe.shape_zyx
    if any(n < c for n, c in zip(shape, crop_zyx, strict=True)):
        raise CanvasError(f"phantoms.shape_zyx {shape} is smaller than data.crop_zyx {crop_zyx}")
    random = np.random.default_rng([seed, 17])
    if random.random() < recipe.resampled:
        voxels, background, places, kind = _resampled(recipe, seed, voxel_um, random)
    else:
        phantom = draw_phantom(seed, shape_zyx=shape, voxel_um=voxel_um, families=recipe.families)
        voxels, background = phantom.voxels, phantom.background
        places, kind = phantom.centres_zyx, phantom.look.kind
    volume = Volume.from_array(voxels, voxel_um=voxel_um, marker=kind, name=f"phantom {seed}")
    behind = None
    if channels == 2 and background is not None:
        behind = Volume.from_array(background, voxel_um=voxel_um, name=f"background of phantom {seed}")
    return Labelled(VolumeSource(volume.name, volume), places, whole(shape), background=behind)


def _resampled(
    recipe: PhantomRecipe, seed: int, voxel_um: ZyxUm, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray, CellKind]:
    """Voxels, background, cells and kind of a phantom drawn at another voxel size."""
    families = recipe.families
    across = random.uniform(*families.voxel_yx_um)
    drawn_um = (max(across, random.uniform(*families.voxel_z_um)), across, across)
    # As many voxels as cover the same box, and one more to interpolate with.
    z, y, x = (
        int(np.ceil((n - 1) * um / fine)) + 2
        for n, um, fine in zip(recipe.shape_zyx, voxel_um, drawn_um, strict=True)
    )
    phantom = draw_phantom(seed, shape_zyx=(z, y, x), voxel_um=drawn_um, families=families)

    def at_voxel_um(voxels: np.ndarray) -> np.ndarray:
        volume = Volume.from_array(voxels, voxel_um=drawn_um)
        read = np.rint(Resampled(volume, voxel_um).read((0, 0, 0), recipe.shape_zyx))
        return np.clip(read, 0, 65535).astype(np.uint16)

    background = None if phantom.background is None else at_voxel_um(phantom.background)
    places = phantom.centres_zyx * np.asarray(drawn_um) / np.asarray(voxel_um)
    inside = np.all(places < np.asarray(recipe.shape_zyx) - 0.5, axis=1)
    return at_voxel_um(phantom.voxels), background, places[inside], phantom.look.kind


def calibration_phantoms(
    recipe: PhantomRecipe, voxel_um: ZyxUm, crop_zyx: Zyx, channels: int = 1
) -> Iterator[Labelled]:
    """Phantoms for choosing the threshold, disjoint from the training ones."""
    for number in range(recipe.calibrate):
        yield labelled_phantom(recipe, CALIBRATION + number, voxel_um, crop_zyx, channels)
