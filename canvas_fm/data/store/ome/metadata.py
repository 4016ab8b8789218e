"""OME-Zarr metadata: which array is the image, its axes, its voxel size.

OME-Zarr 0.1 to 0.4 (Zarr v2), 0.5 and 0.6 (Zarr v3) are read, and plain arrays; whatever else there is, and
whatever contradicts itself, is refused with a sentence. A scale that cannot be used leaves the voxel size
open, for the caller to give. Source: https://ngff.openmicroscopy.org/0.1 to /0.6.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from canvas_fm.data.store.files import Files, Folder
from canvas_fm.data.store.keys import METADATA, split_key
from canvas_fm.data.store.lfs_pointers import pointer_in
from canvas_fm.data.store.ome.axes import axes_of_system, axis_letter, check_axes, read_axes, short
from canvas_fm.data.store.ome.both_formats import check_arrays, warn_of_scales
from canvas_fm.data.store.ome.scale import read_scale, voxel_um_of
from canvas_fm.data.zyx import ZyxUm
from canvas_fm.errors import CanvasError, DamagedStore

_VERSIONS = ("0.1", "0.2", "0.3", "0.4", "0.5", "0.6")  # and drafts of them
_MOST = 64  # series that are looked for where none are listed
_AXES_OF_OLD = {version: list("tczyx") for version in ("0.1", "0.2")}  # these two name no axes
_FEW = 4  # channels, where an axis has no name
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Node:
    """One group or array of a store, from its metadata file."""

    path: str
    zarr_format: int
    is_array: bool
    attributes: dict[str, Any]
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Image:
    """Array path, axes and voxel size of level 0.

    `axes` are one letter each in stored order (z, y, x, t, c, or ? for a custom one); `voxel_um` is z,y,x
    and None where the metadata gives none, `why_no_voxel` then says what is lacking. `coarser` are the array
    paths and Zarr formats of the levels after it.
    """

    array: str
    zarr_format: int
    axes: tuple[str, ...]
    voxel_um: ZyxUm | None
    why_no_voxel: str = ""
    channels: tuple[str, ...] = ()
    coarser: tuple[tuple[str, int], ...] = ()


def read_image(files: Files, root: Node | None) -> Image:
    """The image of a store with this root; CanvasError says why there is none or why it is ambiguous."""
    if root is None:
        raise CanvasError(
            f"{files} is no Zarr store: it has no zarr.json, .zgroup or .zarray; give the folder of an "
            "image, or a folder of TIFF planes"
        )
    _check_v2_beside(files, root)
    if root.is_array:
        return _level_of_group(files, root) or _plain(files, root)
    attributes = root.attributes
    ome = attributes.get("ome", attributes)
    if not isinstance(ome, dict):
        raise CanvasError(f"{files}: the attribute 'ome' is {short(ome)}, not an object")
    if "multiscales" in ome:
        return _multiscale(files, ome)
    series = _series(files) if "bioformats2raw.layout" in ome and "plate" not in ome else []
    if len(series) != 1:
        raise CanvasError(f"{files} holds no image: {_what_else(files, ome, series)}")
    only = read_node(files, series[0])
    inner = {} if only is None else only.attributes.get("ome", only.attributes)
    if not isinstance(inner, dict) or "multiscales" not in inner:
        raise CanvasError(f"{files}: its series {series[0]} is no image: it has no 'multiscales'")
    return _multiscale(files, inner, f"{series[0]}/")


def _series(files: Files) -> list[str]:
    """The images of a store that bioformats2raw wrote: those that it lists, else the numbered groups."""
    node = read_node(files, "OME")
    attributes = {} if node is None else node.attributes.get("ome", node.attributes)
    listed = attributes.get("series") if isinstance(attributes, dict) else None
    if isinstance(listed, list) and listed and all(isinstance(series, str) and series for series in listed):
        return [series.strip("/") for series in listed if ".." not in series.split("/")]
    numbers = itertools.takewhile(lambda series: read_node(files, series) is not None, map(str, range(_MOST)))
    return list(numbers)


def read_node(files: Files, path: str) -> Node | None:
    """The group or array at a path inside the store, None if absent."""
    start = f"{path}/" if path else ""
    v3 = _read_json(files, f"{start}zarr.json")
    if v3 is not None:
        kind, attributes = v3.get("node_type"), v3.get("attributes")
        attributes = {} if attributes is None else attributes  # null, as zarr-python reads it
        if kind not in ("group", "array") or v3.get("zarr_format") != 3 or not isinstance(attributes, dict):
            raise CanvasError(f"{files}: {start}zarr.json describes neither a group nor an array of Zarr v3")
        return Node(path, 3, kind == "array", attributes, v3)
    return _read_v2(files, path)


def _check_v2_beside(files: Files, node: Node) -> None:
    """Compare a v3 node with the v2 metadata in the same folder, where there are any."""
    v2 = _read_v2(files, node.path) if node.zarr_format == 3 else None
    if v2 is None:
        return
    where = f"{files}/{node.path}" if node.path else str(files)
    if node.is_array and v2.is_array:
        check_arrays(where, node.metadata, v2.metadata)
    warn_of_scales(where, node.attributes, v2.attributes)


def _read_v2(files: Files, path: str) -> Node | None:
    start = f"{path}/" if path else ""
    array = _read_json(files, f"{start}.zarray")
    group = None if array is not None else _read_json(files, f"{start}.zgroup")
    attributes = _read_json(files, f"{start}.zattrs")
    if array is None and group is None and attributes is None:
        return None
    return Node(path, 2, array is not None, attributes or {}, array or group or {})


def _read_json(files: Files, key: str) -> dict[str, Any] | None:
    content = files.read(key)
    if content is None:
        return None
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as problem:
        why = pointer_in(content) or (f"is not JSON ({problem})",)
        raise DamagedStore(files, *split_key(key), *why) from problem
    if not isinstance(value, dict):
        raise DamagedStore(files, *split_key(key), f"is {short(value)} where an object is expected")
    return value


def _what_else(files: Files, ome: dict[str, Any], series: Sequence[str]) -> str:
    if "plate" in ome:
        return "it is a plate; give the path of one image in it, such as A/1/0"
    if "well" in ome:
        return f"it is a well of a plate; give one image in it, such as {files}/{[*_children(files), '0'][0]}"
    if "bioformats2raw.layout" in ome:
        listing = ", ".join(series[:8]) or "none"
        return f"it is a collection of series ({listing}); give one, such as {files}/{[*series, '0'][0]}"
    if "labels" in ome:
        return f"it is a list of label images ({short(ome['labels'])}); give the path of one"
    if children := _children(files):
        listing = ", ".join(children[:4]) + (" …" if len(children) > 4 else "")
        return f"it has no 'multiscales'; it holds {listing}: give one, such as {files}/{children[0]}"
    return "it has no 'multiscales'; give the path of an OME-Zarr image, or of an array with --voxel-um"


def _children(files: Files) -> list[str]:
    """Groups and arrays directly below the root of a local store that may be listed."""
    if not isinstance(files, Folder) or not files.follow_links:
        return []
    names = (entry.name for entry in files.root.iterdir() if entry.is_dir())
    return sorted(name for name in names if any(files.stamp(f"{name}/{file_name}") for file_name in METADATA))


def _multiscale(files: Files, ome: dict[str, Any], base: str = "") -> Image:
    """The image that the metadata of a group describe; `base` is the group below the root, with a slash."""
    scales = ome["multiscales"]
    if not isinstance(scales, list) or not scales or not isinstance(scales[0], dict):
        raise CanvasError(f"{files}: 'multiscales' is {short(scales)} where a list of images is expected")
    image = scales[0]
    if len(scales) > 1:
        _log.warning("%s: 'multiscales' holds %d images; the first is the default", files, len(scales))
    version = image.get("version", ome.get("version"))
    if version is not None and not str(version).startswith(_VERSIONS):
        raise CanvasError(
            f"{files} is OME-Zarr {short(version)}; this version reads 0.1 to 0.6: save it as 0.5"
        )
    named = image.get("axes", _AXES_OF_OLD.get(str(version)))
    axes, units = read_axes(files, axes_of_system(files, image) if named is None else named)
    datasets = image.get("datasets")
    if not isinstance(datasets, list) or not datasets:
        raise CanvasError(f"{files}: 'datasets' is {short(datasets)} where a list of levels is expected")
    outer, why_outer = read_scale(files, "multiscales", image.get("coordinateTransformations"), axes)
    levels = [_level(files, axes, dataset, base) for dataset in datasets]
    finest, scale, why = levels[0]
    path, zarr_format = finest.path, finest.zarr_format
    _check_v2_beside(files, finest)
    for other, coarser, _ in levels[1:]:
        if scale and coarser:
            finer = any(a > b * 1.001 for a, b in zip(scale, coarser, strict=True))
        else:
            shapes = (other.metadata["shape"], finest.metadata["shape"])
            finer = any(a > b for a, b in zip(*shapes, strict=True))
        if finer:
            raise CanvasError(f"{files}: level {other.path!r} is finer than the first one, {path!r}")
    why = why or why_outer or ("" if scale or outer else "no scale")
    beyond = tuple((other.path, other.zarr_format) for other, _, _ in levels[1:])
    if why:
        return Image(path, zarr_format, axes, None, why, _channels(ome), beyond)
    ones = [1.0] * len(axes)
    voxel, why = voxel_um_of(axes, units, [a * b for a, b in zip(scale or ones, outer or ones, strict=True)])
    return Image(path, zarr_format, axes, voxel, why, _channels(ome), beyond)


def _level_of_group(files: Files, node: Node) -> Image | None:
    """An array that a group above it names as a level, with the axes and scale that the group gives it.

    None for any other array, in an archive, and where folders above must not be looked at.
    """
    if not isinstance(files, Folder) or not files.follow_links:
        return None
    for folder in files.root.parents[:2]:
        outer = Folder(folder, follow_links=True)
        path = files.root.relative_to(folder).as_posix()
        try:
            group = read_node(outer, "")
        except CanvasError:
            continue
        ome = {} if group is None else group.attributes.get("ome", group.attributes)
        images = ome.get("multiscales") if isinstance(ome, dict) else None
        for image in images if isinstance(images, list) else []:
            datasets = image.get("datasets") if isinstance(image, dict) else None
            levels = datasets if isinstance(datasets, list) else []
            level = [each for each in levels if isinstance(each, dict) and each.get("path") == path]
            if level:
                outer_image = _multiscale(outer, ome | {"multiscales": [image | {"datasets": level}]})
                return replace(outer_image, array="", zarr_format=node.zarr_format)
    return None


def _level(
    files: Files, axes: tuple[str, ...], dataset: Any, base: str
) -> tuple[Node, list[float] | None, str]:
    """Array and scale of one level, or why the scale is unusable; axes are checked."""
    path = dataset.get("path") if isinstance(dataset, dict) else None
    if not isinstance(path, str) or not path.strip("/") or ".." in path.split("/"):
        raise CanvasError(
            f"{files}: a level's path is {short(path)} where a name inside the store is expected"
        )
    path = base + path.removeprefix("./").strip("/")
    node = read_node(files, path)
    if node is None or not node.is_array:
        raise CanvasError(f"{files}: the metadata names level {path!r}, but there is no such array")
    shape = node.metadata.get("shape")
    if not isinstance(shape, list) or len(shape) != len(axes):
        raise CanvasError(
            f"{files}: level {path!r} has shape {short(shape)}; the metadata gives it {len(axes)} axes"
        )
    steps = dataset.get("coordinateTransformations")
    return node, *read_scale(files, f"level {path!r}", steps, axes)


def _channels(ome: dict[str, Any]) -> tuple[str, ...]:
    """Channel names in the metadata, used in error messages only."""
    omero = ome.get("omero")
    channels = omero.get("channels") if isinstance(omero, dict) else None
    if not isinstance(channels, list) or not all(isinstance(channel, dict) for channel in channels):
        return ()
    labels = [channel.get("label") for channel in channels]
    return tuple(f"channel {at}" if label in (None, "") else str(label) for at, label in enumerate(labels))


def _plain(files: Files, node: Node) -> Image:
    """A bare array: by its named axes, else t, c, z, y, x, from the last."""
    shape = node.metadata.get("shape")
    if not isinstance(shape, list) or len(shape) < 3:
        raise CanvasError(f"{files} is an array of shape {short(shape)}; a volume has z, y and x")
    names = node.metadata.get("dimension_names") or node.attributes.get("_ARRAY_DIMENSIONS")
    if not names and len(shape) > 3 and shape[-1] <= _FEW < min(shape[-4:-1]):
        raise CanvasError(
            f"{files} is an array of shape {short(shape)} without names of its axes; the last one has "
            f"{shape[-1]}, like channels: name the axes (dimension_names, _ARRAY_DIMENSIONS)"
        )
    letters = tuple([*["?"] * (len(shape) - 5), "t", "c", "z", "y", "x"][-len(shape) :])
    if isinstance(names, list) and len(names) == len(shape):
        named = tuple(axis_letter(str(name), None) for name in names)
        if set(named) & set("zyx"):
            check_axes(files, names, named)
            letters = named
    return Image("", node.zarr_format, letters, None, "a plain array states none")
