"""Layers of napari as volumes and points, and back: data are in voxels z, y, x, the scale is in µm."""

from __future__ import annotations

from typing import Any

import numpy as np

from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.levels.dask_levels import dask_levels
from canvas_fm.data.volume.volume import Volume
from canvas_fm.data.zyx import ZyxUm
from canvas_fm.errors import CanvasError
from canvas_fm.viewing.neuroglancer.colours import KINDS, colouring_of

LayerData = tuple[Any, dict[str, Any], str]
METADATA = "canvas-fm"  # key of a layer's metadata
_MOST_BYTES = 4 << 30  # of a layer that is not read from a file of ours
_SIZE_UM = 20.0  # of the circle around a point, seen in planes above and below as a ball is
OPEN_CIRCLE = {"face_color": "transparent", "border_width": 0.1, "projection_mode": "rescale_spherical"}
_PLACEMENT = ("scale", "translate", "rotate", "shear", "units")


def image_layer(volume: Volume) -> LayerData:
    """A volume as an image layer: its stored levels as dask arrays, contrast by its window, scale in µm."""
    levels = dask_levels(volume)
    options = {name: value for name, value in volume.options.items() if value is not None}
    options.pop("follow_links", None)
    about = {
        "name": volume.name,
        "scale": volume.voxel_um,
        "units": ("um", "um", "um"),
        "contrast_limits": tuple(volume.window),
        "metadata": {METADATA: {"path": str(volume.path), "options": options}},
        "multiscale": len(levels) > 1,
    }
    return (levels if len(levels) > 1 else levels[0]), about, "image"


def volume_of(layer: Any) -> Volume:
    """The volume that an image layer shows, in the layer's scale.

    A layer that our reader opened is read from its file, box by box; any other has to fit in memory.
    Raises CanvasError for a layer that is no single channel in z, y, x, or has no voxel size.
    """
    if (stored := layer.metadata.get(METADATA)) is not None:
        volume = Volume.open(stored["path"], **stored["options"])
        if np.allclose(volume.voxel_um, layer.scale, rtol=1e-6):
            return volume
        return Volume.open(stored["path"], **stored["options"] | {"voxel_um": voxel_um_of(layer)})
    data = layer.data[0] if layer.multiscale else layer.data
    if layer.rgb or data.ndim != 3:
        raise CanvasError(
            f"the layer {layer.name!r} has shape {tuple(data.shape)}{' in colours' if layer.rgb else ''}; "
            "expected one channel in z, y, x: split its channels or time points into layers of their own"
        )
    if data.size * data.dtype.itemsize > _MOST_BYTES:
        raise CanvasError(
            f"the layer {layer.name!r} holds {data.size * data.dtype.itemsize / 1e9:.0f} GB, which would all "
            "be read into memory; open its file with the reader of canvas-fm, which reads it by boxes"
        )
    return Volume.from_array(np.asarray(data), voxel_um=voxel_um_of(layer), name=layer.name)


def voxel_um_of(layer: Any) -> ZyxUm:
    """The layer's scale (z, y, x) in micrometres; a scale without a unit is taken to be in micrometres.

    Raises CanvasError where each voxel measures 1 pixel: that is how layers without a size look.
    """
    sizes = []
    for size, unit in zip(layer.scale, layer.units, strict=True):
        known = unit.dimensionality == {"[length]": 1}
        sizes.append(float((size * unit).to("micrometer").magnitude) if known else float(size))
    if not any(unit.dimensionality == {"[length]": 1} for unit in layer.units) and sizes == [1.0] * 3:
        raise CanvasError(
            f"the layer {layer.name!r} has no voxel size; set it in the console: viewer.layers"
            f"[{layer.name!r}].scale = (z, y, x) in micrometres, such as (4, 1.8, 1.8)"
        )
    z, y, x = sizes
    return z, y, x


def points_layer(points: Points, name: str, like: Any = None, *, voxel_um: ZyxUm | None = None) -> LayerData:
    """Points as a layer: coloured by P(cell), score, label or region; columns are features.

    They lie as the image layer `like` does, else in voxels of `voxel_um`.
    """
    about: dict[str, Any] = {"name": name, "features": dict(points.columns)} | OPEN_CIRCLE
    about |= {"metadata": {METADATA: {"meta": dict(points.meta)}}}
    um = voxel_um
    if like is not None:
        about |= {key: getattr(like, key) for key in _PLACEMENT} | {"affine": like.affine.affine_matrix}
        um = voxel_um_of(like)
    elif um is not None:
        about |= {"scale": um, "units": ("um", "um", "um")}
    about["size"] = 10.0 if um is None else _SIZE_UM / um[-1]
    return points.zyx, about | _colours(points), "points"


def points_of(layer: Any, like: Any) -> Points:
    """The points of a layer in voxels of the image layer `like`, with features as columns.

    Raises CanvasError for points of other than three axes, or turned against the image.
    """
    if layer.ndim != 3 or any(
        not np.allclose(getattr(layer, name), getattr(like, name)) for name in ("rotate", "shear", "affine")
    ):
        raise CanvasError(
            f"the points {layer.name!r} do not lie along the axes z, y, x of {like.name!r}; give both layers "
            "the same rotation, shear and affine"
        )
    world = np.asarray(layer.data, np.float64) * layer.scale + layer.translate
    zyx = (world - like.translate) / like.scale
    if np.array_equal(layer.scale, like.scale) and np.array_equal(layer.translate, like.translate):
        zyx = np.asarray(layer.data, np.float64)  # to the last digit
    columns = {str(name): _column(layer.features[name]) for name in layer.features}
    return Points(zyx, columns, dict(layer.metadata.get(METADATA, {}).get("meta", {})))


def _column(values: Any) -> np.ndarray:
    array = values.to_numpy()
    return array if array.dtype.kind in "iuf" else array.astype(np.str_)


def _colours(points: Points) -> dict[str, Any]:
    """Colours of a points layer, the same as in Neuroglancer."""
    colouring = colouring_of(points)
    if colouring.column is None:
        return {"border_color": KINDS[0]}
    if not colouring.entries:
        limits = (colouring.low, colouring.high)
        return colour_scale(colouring.column, limits)
    _, kind = np.unique(points.columns[colouring.column], return_inverse=True)
    return {"border_color": [KINDS[number % len(KINDS)] for number in kind.tolist()]}


def colour_scale(column: str, limits: tuple[float, float]) -> dict[str, Any]:
    """Circles coloured by a column of numbers."""
    return {"border_color": column, "border_colormap": "viridis", "border_contrast_limits": limits}
