"""Opening files in napari: volumes as pyramids, one layer a channel, and cells of every points format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from canvas_fm.data.dataset.sample import sample
from canvas_fm.data.points.formats.read_write import suffixes, voxel_um_of
from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.tiff.channels import list_channels
from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError
from canvas_fm.napari.layers import LayerData, image_layer, points_layer

_COLOURS = ("green", "magenta", "cyan", "yellow", "red", "blue")
Read = Callable[[str | list[str]], list[LayerData]]


def get_reader(path: str | list[str]) -> Read | None:
    """Reader function of the napari plugin for a path; None for paths that we do not open.

    Tables are opened if they hold points, so that napari's own reader gets every other one.
    """
    paths = [path] if isinstance(path, str) else path
    if all(Path(each).suffix in (".zarr", ".zip") for each in paths):
        return read_volumes
    if all(Path(each).is_file() and Path(each).name.lower().endswith(suffixes()) for each in paths):
        try:
            for each in paths:
                Points.read(each)
        except CanvasError:
            return None
        return read_cells
    return None


def read_volumes(path: str | list[str]) -> list[LayerData]:
    """A layer for each volume, or for each channel of one that has several."""
    layers = []
    for each in [path] if isinstance(path, str) else path:
        channels = list_channels(Path(each))
        if not channels:
            layers.append(image_layer(Volume.open(each)))
        for at, (c, name) in enumerate(channels.items()):
            data, about, kind = image_layer(Volume.open(each, c=c))
            about |= {"name": f"{about['name']} {name or c}", "blending": "additive"}
            layers.append((data, about | {"colormap": _COLOURS[at % len(_COLOURS)]}, kind))
    return layers


def read_cells(path: str | list[str]) -> list[LayerData]:
    """A points layer for each file; its scale is the voxel size that the file states, else 1."""
    layers = []
    for each in [path] if isinstance(path, str) else path:
        points = Points.read(each)
        layers.append(points_layer(points, Path(each).stem, voxel_um=voxel_um_of(points.meta)))
    return layers


def sample_microglia() -> list[LayerData]:
    """The shipped volume of microglia."""
    return [image_layer(sample("microglia").volume)]


def sample_cfos() -> list[LayerData]:
    """The shipped volume of c-Fos."""
    return [image_layer(sample("cfos").volume)]
