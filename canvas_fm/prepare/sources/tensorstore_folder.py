"""N5 and Neuroglancer precomputed volumes in a folder, read through TensorStore where it is installed."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from canvas_fm.data.store.lfs_pointers import why_unfetched
from canvas_fm.data.zyx import Zyx, ZyxLike, ZyxUm, whole_zyx
from canvas_fm.errors import CanvasError, DamagedStore, MissingExtra
from canvas_fm.prepare.convert_flags import ConvertOptions
from canvas_fm.prepare.sources.missing_blocks import refuse_missing, refuse_packed
from canvas_fm.prepare.sources.opened_file import OpenedFile, usable_voxel_um

_log = logging.getLogger(__name__)
_UM = {"nm": 1e-3, "um": 1.0, "µm": 1.0, "μm": 1.0, "micrometer": 1.0, "micron": 1.0, "mm": 1e3}


class ArrayFolder(NamedTuple):
    """A driver of TensorStore, the folder that it opens, and the metadata there."""

    driver: str
    folder: Path
    metadata: dict[str, Any]


class TensorStoreChannel:
    """One channel of an array whose axes are x, y, z and perhaps channels."""

    bad_chunks: list[str]

    def __init__(self, path: Path, array: Any) -> None:
        self.path, self._array, self.bad_chunks = path, array.transpose([2, 1, 0]), []
        self.shape_zyx: Zyx = whole_zyx(self._array.shape, "shape")
        chunk = self._array.chunk_layout.read_chunk.shape or (1, *self.shape_zyx[1:])
        self.chunk_zyx: Zyx = whole_zyx(
            [min(c, n) for c, n in zip(chunk, self.shape_zyx, strict=True)], "chunk"
        )
        self.dtype = np.dtype(self._array.dtype.numpy_dtype).newbyteorder("=")

    def read(self, origin_zyx: ZyxLike, size_zyx: ZyxLike) -> np.ndarray:
        origin, size = whole_zyx(origin_zyx, "origin_zyx"), whole_zyx(size_zyx, "size_zyx")
        # A precomputed volume may begin elsewhere than at zero; ours begins at its first voxel.
        low = [a + o for a, o in zip(origin, self._array.domain.origin, strict=True)]
        box = tuple(slice(a, a + n) for a, n in zip(low, size, strict=True))
        try:
            return np.asarray(self._array[box].read().result())
        except Exception as problem:  # TensorStore has one type for all that goes wrong
            named = re.search(r'local file "([^"]+)"', str(problem))
            unfetched = why_unfetched(Path(named[1])) if named else None
            why = unfetched or (f"cannot be decoded ({problem})", "copy it again")
            raise DamagedStore(self.path, "image", f"near {origin}", *why) from problem

    def read_into(self, box: np.ndarray, origin_zyx: ZyxLike) -> None:
        box[:] = self.read(origin_zyx, box.shape)


def find_folder(path: Path) -> ArrayFolder | None:
    """The array that TensorStore opens: of N5 the finest level, a precomputed volume; None for others.

    A container of BigDataViewer (`setup0/timepoint0/s0`) is opened where it holds one image, else CanvasError
    names them.
    """
    images = _of_big_data_viewer(path)
    if len(images) > 1:
        names = ", ".join(str(image.relative_to(path)) for image in images[:8])
        more = ", …" if len(images) > 8 else ""
        raise CanvasError(
            f"{path} holds {len(images)} images of BigDataViewer ({names}{more}); give the folder of one"
        )
    for image in (path, *images):
        for folder in (image, image / "s0"):
            metadata = _json(folder / "attributes.json")
            if "dimensions" in metadata and "blockSize" in metadata:
                return ArrayFolder("n5", folder, _json(image / "attributes.json") | metadata)
    if (path / "attributes.json").is_file() and (arrays := _arrays_in(path)):
        if arrays == ["."]:
            raise CanvasError(
                f"{path} lacks its finest level, s0; copy it again, or give the folder of another level"
            )
        listing = ", ".join(arrays[:8]) + (", …" if len(arrays) > 8 else "")
        raise CanvasError(f"{path} is an N5 container; give the folder of one image in it: {listing}")
    info = _json(path / "info")
    return ArrayFolder("neuroglancer_precomputed", path, info) if "scales" in info else None


def _of_big_data_viewer(path: Path) -> list[Path]:
    """The images of an N5 container as BigDataViewer and BigStitcher write it, by setup and time point."""
    attributes = path.glob("setup*/timepoint*/s0/attributes.json") if path.is_dir() else []
    return sorted(file.parent.parent for file in attributes)


def _arrays_in(container: Path) -> list[str]:
    """The images of an N5 container: arrays, and groups of levels of which `s0` is the finest."""
    arrays = []
    for root, inner, names in os.walk(container):
        folder = Path(root)
        inner[:] = sorted(name for name in inner if not name.isdecimal())  # folders of blocks
        if "attributes.json" in names and "dimensions" in _json(folder / "attributes.json"):
            is_level = re.fullmatch(r"s\d+", folder.name) and folder != container
            arrays.append(str((folder.parent if is_level else folder).relative_to(container)))
            inner.clear()
    return list(dict.fromkeys(arrays))


def open_folder(path: Path, array_folder: ArrayFolder, options: ConvertOptions) -> OpenedFile:
    """The channels of the finest level; MissingExtra where TensorStore is not installed."""
    try:
        import tensorstore
    except ImportError as problem:
        raise MissingExtra(
            "tensorstore", "tensorstore", f"reading {array_folder.driver} volumes"
        ) from problem
    try:
        where = {"driver": "file", "path": str(array_folder.folder.resolve())}
        array = tensorstore.open({"driver": array_folder.driver, "kvstore": where}, open=True).result()
    except ValueError as problem:
        raise CanvasError(f"{path} cannot be opened as {array_folder.driver}: {problem}") from problem
    if array_folder.driver == "n5":
        if array.rank != 3:
            raise CanvasError(
                f"{path} has {array.rank} axes; N5 is read with three, x, y, z: give the folder of one "
                "channel"
            )
        return OpenedFile(
            [TensorStoreChannel(path, array)], ["channel 0"], _n5_voxel_um(array_folder.metadata)
        )
    several = range(array.shape[3])
    channels = [TensorStoreChannel(path, array[..., c]) for c in several]
    _refuse_coarser(path, array_folder.metadata["scales"])
    size = array_folder.metadata["scales"][0].get("resolution")
    voxel_um = usable_voxel_um([n / 1000 for n in size[::-1]]) if size else None
    _warn_offset(path, array.domain.origin[:3])
    return OpenedFile(channels, [f"channel {c}" for c in several], voxel_um)


def files_below(folder: Path) -> list[Path]:
    """The files of a folder and of those in it, in order; folders that are links are followed, each once."""
    files, seen = list[Path](), set[str]()
    for root, inner, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:
            inner.clear()
            continue
        seen.add(real)
        files += [file for name in names if (file := Path(root, name)).is_file()]
    return sorted(files)


def refuse_missing_files(path: Path, array_folder: ArrayFolder, files: Sequence[Path]) -> None:
    """Raise DamagedStore where files of the finest level are missing: TensorStore reads them as zeros."""
    metadata, folder = array_folder.metadata, array_folder.folder
    if array_folder.driver == "n5":
        sizes = zip(metadata["dimensions"], metadata["blockSize"], strict=True)
        names = [[str(cell) for cell in range(-(-n // block))] for n, block in sizes]
        refuse_missing(path, folder, files, names, "/")
        return
    scale = metadata["scales"][0]
    key = Path(str(scale["key"]))
    if scale.get("sharding") or ".." in key.parts:  # an index tells of blocks that share files
        return
    starts = zip(scale.get("voxel_offset") or (0, 0, 0), scale["size"], scale["chunk_sizes"][0], strict=True)
    names = [
        [f"{a}-{min(a + chunk, low + n)}" for a in range(low, low + n, chunk)] for low, n, chunk in starts
    ]
    folder = folder / key
    refuse_packed(path, folder, files)
    refuse_missing(path, folder, files, names, "_")


def _refuse_coarser(path: Path, scales: Sequence[dict[str, Any]]) -> None:
    """Raise CanvasError where the first scale, which has to be the finest, is not."""
    first, *others = scales
    for other in others:
        if any(a > b for a, b in zip(other["size"], first["size"], strict=True)):
            raise CanvasError(
                f"{path}: its scale {other.get('key')!r} is finer than the first one, {first.get('key')!r}; "
                "put the finest first in its file 'info'"
            )


def _warn_offset(path: Path, origin_xyz: Sequence[int]) -> None:
    """Warn of a volume that begins elsewhere than at zero: points of others count from there."""
    if any(origin_xyz):
        offset = " ".join(str(int(-n)) for n in reversed(origin_xyz))
        _log.warning(
            "%s begins at voxel %s (x, y, z), the store at 0: points of other programs are moved by "
            "`canvas-fm points convert --origin %s`",
            path,
            tuple(map(int, origin_xyz)),
            offset,
        )


def _n5_voxel_um(metadata: dict[str, Any]) -> ZyxUm | None:
    """Voxel size of BigDataViewer's and Fiji's N5: `pixelResolution` or `resolution`, `units`; x first."""
    stated = metadata.get("pixelResolution")
    sizes = stated.get("dimensions") if isinstance(stated, dict) else metadata.get("resolution")
    unit = stated.get("unit") if isinstance(stated, dict) else (metadata.get("units") or ["?"])[0]
    factor = _UM.get(str(unit).lower())
    if factor is None or not isinstance(sizes, list) or len(sizes) != 3:
        return None
    return usable_voxel_um([float(n) * factor for n in sizes[::-1]])


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
