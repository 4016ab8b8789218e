"""Domains of a detector: labelled brains, and randomised phantoms drawn on demand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from canvas_fm.data.dataset.unique_names import check_one_each
from canvas_fm.data.phantom.randomised.draw_phantom import TOLERANCE_UM, draw_phantom
from canvas_fm.data.phantom.randomised.parameter_ranges import Autofluorescence, Families
from canvas_fm.data.points.boxes import read_boxes, whole
from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume, volume_name
from canvas_fm.data.volume.volume_flags import VolumeOptions
from canvas_fm.data.zyx import Zyx
from canvas_fm.errors import CanvasError

PHANTOM_SEEDS, TEST_SEEDS = range(1000), range(1000, 1100)
PHANTOM_SHAPE: Zyx = (40, 160, 160)


class LabelledVolume(NamedTuple):
    """A volume, its true cells in voxels, the boxes in which all are labelled, and its second channel."""

    volume: Volume
    cells: np.ndarray
    boxes: np.ndarray
    background: Volume | None = None


@dataclass(frozen=True)
class Domain:
    """One brain with its true cells: a labelled volume, or a phantom drawn on demand."""

    name: str
    group: str
    tolerance_um: float
    path: Path | None = None
    points: Path | None = None
    within: Path | None = None
    seed: int | None = None
    shape_zyx: Zyx | None = None  # of a phantom that is not of `PHANTOM_SHAPE`
    autofluorescence: bool = False
    pooled_only: bool = False
    volume_options: VolumeOptions = field(default_factory=VolumeOptions.of)
    crop_of: str | None = None  # name of the larger volume that it was cut from

    def open(self) -> LabelledVolume:
        """The volume with its true cells; a phantom is drawn."""
        if self.seed is not None:
            families = Families(autofluorescence=Autofluorescence() if self.autofluorescence else None)
            phantom = draw_phantom(self.seed, shape_zyx=self.shape_zyx or PHANTOM_SHAPE, families=families)
            um, background = phantom.look.voxel_um, None
            volume = Volume.from_array(phantom.voxels, voxel_um=um, marker=phantom.look.kind, name=self.name)
            if phantom.background is not None:
                background = Volume.from_array(
                    phantom.background, voxel_um=um, name=f"{self.name}, background"
                )
            return LabelledVolume(volume, phantom.centres_zyx, whole(volume.shape_zyx), background)
        assert self.points is not None
        volume = self.open_volume()
        boxes = whole(volume.shape_zyx) if self.within is None else read_boxes(self.within)
        return LabelledVolume(volume, Points.read(self.points).zyx, boxes)

    def open_volume(self) -> Volume:
        """The labelled volume."""
        assert self.path is not None
        return Volume.open(self.path, **self.volume_options.explicit)


def phantom_domains(n: int, *, test: bool = False, autofluorescence: bool = False) -> list[Domain]:
    """`n` phantoms, always the same; with `test` those reserved for the final test.

    With `autofluorescence` they have bodies that look like cells and a background channel that shows them.
    """
    seeds = TEST_SEEDS if test else PHANTOM_SEEDS
    if n > len(seeds):
        raise CanvasError(f"{n} phantom domains were requested; there are {len(seeds)}")
    chosen = sorted(np.random.default_rng(0).permutation(np.asarray(seeds))[:n].tolist())
    return [phantom_domain(seed, autofluorescence=autofluorescence) for seed in chosen]


def phantom_domain(seed: int, *, shape_zyx: Zyx | None = None, autofluorescence: bool = False) -> Domain:
    """The phantom of a seed as a domain; of another shape it is another brain of the same look."""
    kind = draw_phantom(seed, shape_zyx=(4, 8, 8)).look.kind
    return Domain(
        f"phantom {seed}", f"phantom {kind}", TOLERANCE_UM[kind],
        seed=seed, shape_zyx=shape_zyx, autofluorescence=autofluorescence,
    )  # fmt: skip


def labelled_domains(
    volumes: Sequence[str | Path],
    points: Sequence[str | Path],
    within: Sequence[str | Path] | None,
    tolerance_um: Mapping[str, float],
    *,
    pool_small: Sequence[str] = (),
    test: Sequence[str] = (),
    final_test: bool = False,
    **options: Any,
) -> list[Domain]:
    """Labelled volumes as domains, grouped by marker, with the marker's tolerance.

    Of the volumes named in `test` nothing is read but with `final_test`, and then they alone count. `options`
    are those of `Volume.open`.
    """
    volume_options = VolumeOptions.of(**options)
    check_one_each(volumes, {"points": points, "within": within})
    domains = []
    for index, path in enumerate(volumes):
        if (volume_name(Path(path)) in test) != final_test:
            continue
        volume = Volume.open(path, **volume_options.explicit)
        marker = volume.marker
        if marker is None or marker not in tolerance_um:
            raise CanvasError(
                f"{path} is of marker {volume.marker!r}, for which no tolerance was given; give "
                f"--tolerance-um {volume.marker or 'MARKER'}=N (given: {', '.join(tolerance_um) or 'none'})"
            )
        domains.append(
            Domain(
                volume.name, marker, tolerance_um[marker], Path(path), Path(points[index]),
                None if within is None else Path(within[index]), pooled_only=volume.name in pool_small,
                volume_options=volume_options, crop_of=volume.crop_of,
            )
        )  # fmt: skip
    return domains
