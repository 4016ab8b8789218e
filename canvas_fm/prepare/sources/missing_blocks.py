"""Missing blocks of N5, precomputed and HDF5 volumes, which their readers return as zeros."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from canvas_fm.data.store.lfs_pointers import why_unfetched
from canvas_fm.data.volume.stored.chunked_array import EMPTY_HINT
from canvas_fm.errors import CanvasError, DamagedStore

_HINT = f"copy it again, or {EMPTY_HINT}"
_PACKED = (".gz", ".br")  # what CloudVolume appends to the name of a block on a disk


def refuse_missing(
    path: Path, folder: Path, files: Iterable[Path], names: Sequence[Sequence[str]], mark: str
) -> None:
    """Raise DamagedStore where a folder lacks one of the files whose names are those of each axis, joined."""
    start = len(str(folder)) + 1
    held = {str(file)[start:].replace(os.sep, "/") for file in files}
    lacking = [key for cell in itertools.product(*names) if (key := mark.join(cell)) not in held]
    unfetched = why_unfetched(folder / lacking[0]) if lacking else None
    if unfetched is not None:
        raise DamagedStore(path, "image", lacking[0], *unfetched)
    if lacking:
        raise _missing(path, "image", lacking[0], len(lacking), math.prod(map(len, names)))


def refuse_packed(path: Path, folder: Path, files: Iterable[Path]) -> None:
    """Raise CanvasError for blocks that are gzip files, as CloudVolume leaves them on a disk: TensorStore
    does not find these, and reads zeros."""
    packed = next((file for file in files if file.parent == folder and file.suffix in _PACKED), None)
    if packed is not None:
        raise CanvasError(
            f"{path}: its blocks are compressed files ({packed.name}), as CloudVolume writes them, which "
            "TensorStore does not find; unpack them all"
            + (f": gunzip -r {folder}" if packed.suffix == ".gz" else "")
        )


def refuse_unwritten(path: Path, data: Any, box: Sequence[tuple[int, int]]) -> None:
    """Raise DamagedStore where voxels of a box of an HDF5 data set were never written; first and last index
    along each stored axis."""
    if data.is_virtual or data.external:
        return
    if data.chunks is None:
        if data.size and not data.id.get_storage_size():
            raise DamagedStore(path, data.name, "all", "missing; no voxel was ever written", _HINT)
        return
    whole = math.prod(-(-n // chunk) for n, chunk in zip(data.shape, data.chunks, strict=True))
    if data.id.get_num_chunks() >= whole:
        return
    written: set[tuple[int, ...]] = set()
    data.id.chunk_iter(lambda chunk: written.add(tuple(chunk.chunk_offset)))
    spans = [
        range(low - low % chunk, high, chunk) for (low, high), chunk in zip(box, data.chunks, strict=True)
    ]
    needed = set(itertools.product(*spans))
    if lacking := sorted(needed - written):
        raise _missing(path, data.name, str(lacking[0]), len(lacking), len(needed))


def _missing(path: Path, array: str, first: str, missing: int, total: int) -> DamagedStore:
    verb = "is" if missing == 1 else "are"
    cause = (
        f"missing, as {missing:,} of the image's {total:,} chunks {verb}; it was never written, or is lost"
    )
    return DamagedStore(path, array, first, cause, _HINT)
