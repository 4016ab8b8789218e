"""Points as NumPy arrays: ClearMap's structured `cells.npy`, or plain rows whose columns are numbered."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from canvas_fm.errors import CanvasError
from canvas_fm.files.numpy_errors import UNREADABLE_NUMPY

NPY = ".npy"


def read_npy(path: Path) -> dict[str, np.ndarray]:
    """Columns by name; those of a plain (n, k) array are called 0, 1, … and have to be named to be used.

    Never unpickled. Raises CanvasError for anything that is no table of numbers and texts.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except UNREADABLE_NUMPY as problem:
        raise CanvasError(f"{path} cannot be read as a NumPy array: {problem}") from problem
    if isinstance(array, np.ndarray) and array.dtype.names is not None and array.ndim == 1:
        columns = {name: array[name] for name in array.dtype.names}
    elif isinstance(array, np.ndarray) and array.ndim == 2 and array.dtype.kind in "iuf":
        columns = {str(place): array[:, place] for place in range(array.shape[1])}
    else:
        shape, dtype = getattr(array, "shape", "?"), getattr(array, "dtype", "an archive")
        raise CanvasError(
            f"{path} holds {dtype} of shape {shape}; expected rows of points with named columns"
        )
    if odd := [
        name for name, values in columns.items() if values.dtype.kind not in "iufbUS" or values.ndim > 1
    ]:
        raise CanvasError(
            f"{path}: its column {odd[0]} holds {columns[odd[0]].dtype}; expected numbers or texts"
        )
    return {
        name: np.char.decode(values, "utf-8", "replace") if values.dtype.kind == "S" else _native(values)
        for name, values in columns.items()
    }


def is_table(path: Path) -> bool:
    """Whether an array may be a table, not an image, by its axes; also where it cannot be read."""
    try:
        return bool(np.load(path, mmap_mode="r", allow_pickle=False).ndim < 3)
    except UNREADABLE_NUMPY:
        return True


def _native(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values.astype(values.dtype.newbyteorder("=")))
