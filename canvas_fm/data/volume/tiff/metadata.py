"""TIFF metadata: voxel size from ImageJ or OME, and the files of a split OME-TIFF."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import tifffile

from canvas_fm.data.store.tar_index import in_tar, member_of, read_member
from canvas_fm.data.zyx import ZyxUm
from canvas_fm.errors import CanvasError

_UM = {
    "µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0, "micrometre": 1.0,
    "\\u00b5m": 1.0, "nm": 1e-3, "nanometer": 1e-3, "mm": 1e3, "millimeter": 1e3, "cm": 1e4, "m": 1e6,
    "å": 1e-4, "inch": 25400.0, "in": 25400.0, "pm": 1e-6, "micrometers": 1.0, "micrometres": 1.0,
    "\\u03bcm": 1.0,
}  # fmt: skip


class OmePixels(NamedTuple):
    """Axes and planes of an OME-TIFF split over several files."""

    axes: str  # of the planes, slowest first, for example TCZ
    shape: tuple[int, ...]
    files: np.ndarray  # of paths, in that shape; None where no file is named
    pages: np.ndarray  # the page of each plane in its file


def stated_voxel_um(path: Path, tiff: tifffile.TiffFile) -> ZyxUm | None:
    """Voxel size z, y, x in µm from OME or ImageJ metadata with a unit of length; None if absent."""
    if tiff.ome_metadata:
        try:
            pixels, _ = _pixels(path, tiff)
        except LostMetadata:
            return None
        return None if pixels is None else _ome_voxel_um(pixels)
    if tiff.imagej_metadata is not None:
        return _imagej_voxel_um(tiff, tiff.imagej_metadata)
    return None


def _ome_voxel_um(pixels: ElementTree.Element) -> ZyxUm | None:
    sizes = []
    for axis in "ZYX":
        size, unit = pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "µm")
        factor = _UM.get(unit.strip().lower())
        if size is None or factor is None:
            return None
        sizes.append(abs(_number(size)) * factor)  # below 0 where a stage moves down
    return _checked(sizes)


def _imagej_voxel_um(tiff: tifffile.TiffFile, about: Mapping[str, object]) -> ZyxUm | None:
    """`unit` is that of x, and of y and z where `yunit` and `zunit` do not name another."""
    units = [about.get(key, about.get("unit", "")) for key in ("zunit", "yunit", "unit")]
    factors = [_UM.get(str(unit).strip().lower()) for unit in units]
    page = tiff.pages.first
    tags = [page.tags.get(name) for name in ("YResolution", "XResolution")]
    if "spacing" not in about or not all(tags) or None in factors:
        return None
    per_unit = [tag.value[0] / tag.value[1] if tag.value[1] else 0.0 for tag in tags if tag is not None]
    if min(per_unit) <= 0:
        return None
    sizes = [abs(_number(about["spacing"])), *(1 / n for n in per_unit)]
    return _checked([size * factor for size, factor in zip(sizes, factors, strict=True) if factor])


def _number(value: object) -> float:
    try:
        return float(str(value))
    except ValueError:
        return math.nan


def _checked(sizes: list[float]) -> ZyxUm | None:
    if not all(math.isfinite(size) and size > 0 for size in sizes):
        return None
    z, y, x = sizes
    return z, y, x


class LostMetadata(CanvasError):
    """The OME metadata of a file are in another one, which is not beside it."""


def _pixels(path: Path, tiff: tifffile.TiffFile) -> tuple[ElementTree.Element | None, bool]:
    """The image of the OME metadata whose planes are in this file, and whether there are others.

    Of several that are not told apart it is the first. A file may leave the metadata to another one,
    `.companion.ome` or the first file of a stack.
    """
    root = _parsed(tiff.ome_metadata)
    elsewhere = next((node.get("MetadataFile") for node in _named(root, "BinaryOnly")), None)
    if elsewhere:
        root = _parsed(_read_metadata(path, path.parent / PureWindowsPath(elsewhere).name))
    images = _named(root, "Pixels")
    _name_this_file(path, root, images)
    here = [pixels for pixels in images if any(_file_name(block) == path.name for block in pixels)]
    stacks = [pixels for pixels in here if pixels.get("SizeZ") != "1"]
    if len(stacks) > 1:
        raise CanvasError(
            f"{path} holds planes of {len(stacks)} images by its OME metadata; a volume is one: save it as a "
            "file of its own"
        )
    return next(iter(stacks or here or images), None), len(images) > 1


def _name_this_file(
    path: Path, root: ElementTree.Element | None, images: Sequence[ElementTree.Element]
) -> None:
    """Let blocks of planes name a file that was renamed by its new name: told by its identifier, or alone."""
    own = None if root is None else root.get("UUID")
    uuids = [uuid for pixels in images for uuid in _named(pixels, "UUID") if uuid.get("FileName")]
    lone = len({uuid.get("FileName") for uuid in uuids}) == 1
    for uuid in uuids:
        name = PureWindowsPath(uuid.get("FileName", "")).name
        is_own = own is not None and (uuid.text or "").strip() == own
        if name != path.name and (is_own or lone) and not (path.parent / name).exists():
            uuid.set("FileName", path.name)


def _read_metadata(path: Path, place: Path) -> str | None:
    archive = in_tar(place)
    if not (place.is_file() if archive is None else archive[1] in archive[0].files):
        raise LostMetadata(
            f"{path} is a part of an OME-TIFF whose metadata are in {place.name}, which is not beside it; "
            "copy it there"
        )
    member = member_of(place)
    if place.suffix.lower() in (".ome", ".xml"):
        content = place.read_bytes() if member is None else read_member(member)
        return content.decode("utf-8", "replace")
    part: dict[str, Any] = {} if member is None else {"offset": member.offset, "size": member.size}
    with tifffile.TiffFile(place if member is None else member.archive, **part) as other:
        return other.ome_metadata


def _parsed(text: str | None) -> ElementTree.Element | None:
    if not text:
        return None
    if re.search("<!(DOCTYPE|ENTITY)", text, re.IGNORECASE):
        raise CanvasError("the OME metadata declare entities, which no microscope writes; they are not read")
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError:
        return None


def _named(root: ElementTree.Element | None, name: str) -> list[ElementTree.Element]:
    """The elements of that name, whatever version of the schema they are of."""
    return [] if root is None else [node for node in root.iter() if node.tag.rpartition("}")[2] == name]


def split_pixels(path: Path, tiff: tifffile.TiffFile) -> OmePixels | None:
    """Location of each plane of an OME-TIFF split over files; None for a self-contained file.

    Read from the metadata alone: no other file is opened, so time is linear in the planes.
    """
    pixels, several = _pixels(path, tiff) if tiff.ome_metadata else (None, False)
    if pixels is None:
        return None
    blocks = [node for node in pixels if node.tag.rpartition("}")[2] == "TiffData"]
    named = [_file_name(block) for block in blocks]
    if not any(name is not None and (name != path.name or several) for name in named):
        return None
    order = pixels.get("DimensionOrder", "XYZCT")[2:]
    sizes = {axis: int(pixels.get(f"Size{axis}", "1")) for axis in order}
    axes = order[::-1]
    shape = tuple(sizes[axis] for axis in axes)
    files, pages = np.full(shape, None, object), np.zeros(shape, int)
    for block, name in zip(blocks, named, strict=True):
        place = tuple(int(block.get(f"First{axis}", "0")) for axis in axes)
        if any(not 0 <= p < n for p, n in zip(place, shape, strict=True)):
            raise CanvasError(f"{path}: its OME metadata place a plane at {axes} {place} of {shape}")
        first = int(np.ravel_multi_index(place, shape))
        count = int(block.get("PlaneCount", "1" if block.get("IFD") is not None else str(files.size - first)))
        ifd = int(block.get("IFD", "0"))
        for k in range(min(count, files.size - first)):
            files.flat[first + k] = path if name is None else path.parent / name
            pages.flat[first + k] = ifd + k
    return OmePixels(axes, shape, files, pages)


def _file_name(block: ElementTree.Element) -> str | None:
    """File of a block of planes, always next to the one that names it: folders in the name are dropped."""
    uuid = next((node for node in block if node.tag.rpartition("}")[2] == "UUID"), None)
    name = None if uuid is None else uuid.get("FileName")
    return None if not name else PureWindowsPath(name).name
