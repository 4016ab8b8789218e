"""Paths that are no volume: what they are instead, and which command or program makes one of them."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from canvas_fm.data.store.files import is_store
from canvas_fm.data.store.lfs_pointers import why_unfetched
from canvas_fm.errors import CanvasError, counted

_CONVERTED = (".h5", ".hdf5", ".ims", ".czi", ".nd2", ".lif")
# What else images are kept in, here and there one plane in each file.
_IMAGES = (
    ".nrrd", ".nhdr", ".nii", ".mhd", ".mha", ".npy", ".lsm", ".stk", ".raw", ".vsi", ".oir", ".oib",
    ".dcimg",
    ".jp2", ".jpg", ".jpeg", ".png", ".bmp", ".klb", ".mrc", ".dcm", ".dv", ".vms", ".svs", ".zvi", ".xml",
    ".mat", ".npz", ".am",
)  # fmt: skip
_DESCRIPTION = 1 << 16  # bytes of an XML in which BigDataViewer names the voxels
_TILE = re.compile(r"-?\d+_-?\d+")
_TIFF = (".tif", ".tiff", ".btf", ".tf2", ".tf8")


def refuse_unsupported(path: Path) -> None:
    """Raise CanvasError for a file or folder that is something else than a volume and known as such."""
    why = why_unfetched(path)
    if why is not None:
        raise CanvasError(f"{path} {why[0]}; {why[1]}")
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    if path.is_file() and suffix in _TIFF:  # which are no TIFF themselves: a.tif.gz
        raise CanvasError(
            f"{path} is a compressed TIFF file; unpack it, planes are decoded from the file itself"
        )
    if path.is_file() and suffix in _CONVERTED and path.name.lower().endswith(".gz"):
        raise CanvasError(f"{path} is a compressed {suffix} file; unpack it first")
    refuse_converted(path)
    if path.is_file() and suffix == ".ome":
        raise CanvasError(f"{path} is the metadata of planes beside it; give their folder, {path.parent}")
    if path.is_file() and suffix == ".xml" and (data := _described_by(path)):
        raise CanvasError(
            f"{path} is BigDataViewer's description of an image; give the file or folder with its voxels "
            f"to canvas-fm convert: {data}"
        )
    if path.is_file() and suffix in _IMAGES:
        raise CanvasError(
            f"{path} is a {suffix} file, which is not read; save it as TIFF or OME-Zarr (Fiji, napari)"
        )
    if path.is_dir() and not is_store(path):
        held = _held(path)
        if held is not None:
            raise CanvasError(f"{path} is neither a Zarr store nor a folder of TIFF planes: {held}")


def refuse_converted(path: Path) -> None:
    """Raise CanvasError for a file of a format that `convert` alone reads, by its name: it is not opened."""
    if path.suffix.lower() in _CONVERTED and path.is_file():
        raise CanvasError(
            f"{path} is read by convert alone: canvas-fm convert {path.name} OUT.zarr, give OUT.zarr"
        )


def _described_by(path: Path) -> str | None:
    """Name of the voxels that a description of BigDataViewer or BigStitcher stands for, else None."""
    with path.open("rb") as file:
        text = file.read(_DESCRIPTION).decode("utf-8", "replace")
    if "<SpimData" not in text:
        return None
    named = re.search(r"<(?:hdf5|n5|zarr)\b[^>]*>([^<]+)<", text)
    return named[1] if named else "its <ImageLoader> names them"


def _held(folder: Path) -> str | None:
    """Contents of a folder without planes, and what to do."""
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError:
        return None
    names = {entry.name for entry in entries}
    if (folder / ".zmetadata").exists():
        return "of its metadata .zmetadata alone is left; copy the store again, with its hidden files"
    if "attributes.json" in names or (folder / "s0" / "attributes.json").exists():
        return "it is an N5 container; canvas-fm convert writes an array of it as OME-Zarr"
    if "info" in names:
        return "it is a precomputed volume of Neuroglancer; canvas-fm convert writes it as OME-Zarr"
    inner = [entry for entry in entries if entry.is_dir()]
    tiles = [
        tile for entry in inner for tile in entry.iterdir() if tile.is_dir() and _TILE.fullmatch(tile.name)
    ]
    if tiles:
        return (
            f"it holds {counted(len(tiles), 'tile')} in folders X/X_Y; give one, or canvas-fm stitch them all"
        )
    if planes := [entry.name for entry in inner if _holds(entry, _TIFF)]:
        return f"its folders {_list(planes)} hold TIFF files; give one of them"
    if stores := [entry.name for entry in inner if is_store(entry)]:
        return f"it holds the Zarr stores {_list(stores)}; give one of them"
    suffixes = Counter(entry.suffix.lower() for entry in entries if entry.is_file())
    for suffix, count in suffixes.most_common():
        if suffix in _CONVERTED:
            return (
                f"it holds {count} {suffix} file{'s' * (count > 1)}; canvas-fm convert writes one as OME-Zarr"
            )
        if suffix in _IMAGES:
            return f"it holds {count} {suffix} file{'s' * (count > 1)}, which are not read; save them as TIFF"
    return None if entries else "it is empty"


def _holds(folder: Path, suffixes: tuple[str, ...]) -> bool:
    try:
        return any(entry.suffix.lower() in suffixes for entry in folder.iterdir())
    except OSError:
        return False


def _list(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
