"""Contents of a view: volumes as channels, heat maps, label volumes and points, opened and named."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from canvas_fm.data.points.points import Points
from canvas_fm.data.precomputed.write_image import Layer
from canvas_fm.data.volume.volume import Volume
from canvas_fm.data.volume.volume_flags import VolumeOptions
from canvas_fm.errors import CanvasError
from canvas_fm.files.option_sets import takes
from canvas_fm.viewing.neuroglancer.colours import Colouring, colouring_of

Kind = Literal["volume", "heat map", "labels"]


@dataclass(frozen=True)
class VolumeLayer:
    """A volume under its name; `key` is its folder in a data set."""

    name: str
    key: str
    kind: Kind
    volume: Volume

    @property
    def shown_as(self) -> Layer:
        return "segmentation" if self.kind == "labels" else "image"


@dataclass(frozen=True)
class PointsLayer:
    """Points under their name, with the colours of a column."""

    name: str
    key: str
    points: Points
    colouring: Colouring


@dataclass(frozen=True)
class Scene:
    """All layers of a view, the first volume's space is the view's."""

    volumes: tuple[VolumeLayer, ...]
    points: tuple[PointsLayer, ...]

    @property
    def first(self) -> Volume:
        return self.volumes[0].volume

    @property
    def start_zyx(self) -> tuple[float, float, float]:
        """Initial position of the view: the point nearest to the median of all, else the volume's centre."""
        for layer in self.points:
            inside = layer.points.zyx[layer.points.inside(self.first.shape_zyx)]
            if len(inside):
                far = ((inside - np.median(inside, axis=0)) * self.first.voxel_um) ** 2
                z, y, x = inside[far.sum(axis=1).argmin()].tolist()
                return z, y, x
        z, y, x = ((size - 1) / 2 for size in self.first.shape_zyx)
        return z, y, x


@takes(VolumeOptions)
def open_scene(
    volumes: Sequence[str | Path],
    *,
    points: Sequence[str | Path] = (),
    labels: Sequence[str | Path] = (),
    heat_maps: Sequence[str | Path] = (),
    color_by: str | None = None,
    **volume_options: Any,
) -> Scene:
    """Open everything that a view shows; options are those of `Volume.open`, for every volume.

    Label volumes and heat maps without a voxel size take the first volume's if their shape is the same.
    """
    if not volumes:
        raise CanvasError("there is no volume to show; give at least one")
    layers: list[VolumeLayer] = []
    taken: set[str] = set()

    def add(path: str | Path, kind: Kind, volume: Volume) -> None:
        name = _free(volume.name, taken)
        layers.append(VolumeLayer(name, f"volumes/{_key(name)}", kind, volume))

    for path in volumes:
        add(path, "volume", Volume.open(path, **volume_options))
    first = layers[0].volume
    kinds: list[tuple[Kind, Sequence[str | Path]]] = [("heat map", heat_maps), ("labels", labels)]
    for kind, paths in kinds:
        for path in paths:
            add(path, kind, _open_beside(path, first))
    shown = []
    for path in points:
        read = Points.read(path, voxel_um=None)
        name = _free(Path(path).name.split(".")[0], taken)
        shown.append(PointsLayer(name, f"points/{_key(name)}", read, colouring_of(read, color_by)))
    return Scene(tuple(layers), tuple(shown))


def _open_beside(path: str | Path, first: Volume) -> Volume:
    try:
        return Volume.open(path)
    except CanvasError as problem:
        if "has no voxel size" not in str(problem):
            raise
    volume = Volume.open(path, voxel_um=first.voxel_um)
    if volume.shape_zyx != first.shape_zyx:
        raise CanvasError(
            f"{path} has no voxel size and the shape {volume.shape_zyx}, not {first.shape_zyx} of "
            f"{first.path}; convert it with --voxel-um first"
        )
    return volume


def _free(name: str, taken: set[str]) -> str:
    free, number = name or "layer", 2
    while free in taken:
        free, number = f"{name}-{number}", number + 1
    taken.add(free)
    return free


def _key(name: str) -> str:
    """A name as a part of an address."""
    return re.sub("[^A-Za-z0-9._-]", "_", name).lstrip(".") or "layer"
