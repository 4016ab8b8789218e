"""Embeddings on disk: one vector for each point, with the points and their columns."""

from __future__ import annotations

import hashlib
import json
import math
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable
from urllib.parse import quote

import numpy as np
import zarr
from jaxtyping import Float32, Float64

from canvas_fm.data.points.points import Points
from canvas_fm.data.store.checked_store import MANIFEST, CheckedStore, split_key, write_manifest
from canvas_fm.data.volume.window import Window
from canvas_fm.errors import CanvasError, DamagedStore
from canvas_fm.files.atomic import sync_path
from canvas_fm.files.resumable import unfinished_folder

if TYPE_CHECKING:
    from canvas_fm.data.volume.volume import ZyxUm

_CHUNK_BYTES = 4 * 2**20  # of vectors
_CHUNK_ROWS = 65_536  # of points, ids and columns
RowSelection = slice | np.ndarray | list[int]


class Embeddings:
    """An opened `X.emb.zarr`: vectors (n, d), points (n, 3), ids and columns, rows in the order given.

    Every file is compared with the store's manifest when it is first touched: what is missing or differs by
    one bit is a DamagedStore that names array and chunk. Vectors are read when they are asked for.
    """

    def __init__(self, path: Path, store: CheckedStore, group: zarr.Group) -> None:
        self.path, self._store, self._group = path, store, group
        self.attributes: dict[str, Any] = dict(group.attrs["canvas_fm"])  # type: ignore[arg-type]
        self._vectors = self._array("embeddings")

    @classmethod
    def open(cls, path: str | Path) -> Embeddings:
        """Open a finished store; CanvasError if missing, unfinished or something else."""
        path = Path(path)
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            unfinished = unfinished_folder(path)
            if unfinished.exists():
                raise CanvasError(
                    f"{path} is unfinished: {unfinished.name} beside it holds what is done so far; "
                    "run the same embedding again, it goes on from there"
                )
            raise CanvasError(f"{path} does not exist")
        if not path.is_dir() or not (path / MANIFEST).exists():
            if (path / "embeddings").is_dir():
                raise DamagedStore(path, "", MANIFEST, "missing", "restore the file or write the store again")
            raise CanvasError(f"{path} is no embeddings store (X.emb.zarr, as `canvas-fm embed` writes it)")
        store = CheckedStore(path)
        store.verify_metadata()
        kind = _kind(path, store)
        if kind != "embeddings":
            raise CanvasError(f"{path} holds {kind or 'something else'}, not embeddings")
        return cls(path, store, zarr.open_group(path, mode="r", zarr_format=3))

    def __len__(self) -> int:
        return self._vectors.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(n, d); CanvasError where a point has several vectors (`tokens`, `grid`)."""
        if self._vectors.ndim != 2:
            raise CanvasError(
                f"{self.path} holds the {self.pool} of each crop, {self._one_shape} numbers a point; "
                "here one vector a point is needed: embed with pool mean, cls or centre"
            )
        n, dim = self._vectors.shape
        return n, dim

    @property
    def whole_shape(self) -> tuple[int, ...]:
        """Full shape: (n, d), of `tokens` (n, 64, d), of `grid` (n, d, 4, 4, 4)."""
        return self._vectors.shape

    @property
    def _one_shape(self) -> tuple[int, ...]:
        return self._vectors.shape[1:]

    def read(self, rows: RowSelection) -> Float32[np.ndarray, "rows ..."]:
        """Vectors of some rows in that order: a slice, indices or a mask of n booleans."""
        row_index = np.arange(len(self))[rows] if isinstance(rows, slice) else np.asarray(rows)
        if row_index.dtype == bool and row_index.shape == (len(self),):
            row_index = np.flatnonzero(row_index)
        if row_index.size == 0:
            return np.empty((0, *self._one_shape), np.float32)
        if row_index.ndim != 1 or row_index.dtype.kind not in "iu":
            raise CanvasError(
                f"rows are {row_index.dtype} of shape {row_index.shape}; give row numbers or a mask"
            )
        if row_index.min() < 0 or row_index.max() >= len(self):
            raise CanvasError(
                f"rows go from {row_index.min()} to {row_index.max()}; {self.path} has {len(self)} rows"
            )
        step = self._vectors.chunks[0]
        out = np.empty((len(row_index), *self._one_shape), np.float32)
        # Each chunk is decoded once, whatever the order of the rows.
        order = np.argsort(row_index // step, kind="stable")
        chunk_of = (row_index // step)[order]
        for in_chunk in np.split(order, np.flatnonzero(np.diff(chunk_of)) + 1):
            chunk = int(row_index[in_chunk[0]] // step)
            out[in_chunk] = self._chunk("embeddings", self._vectors, chunk)[
                row_index[in_chunk] - chunk * step
            ]
        return out

    @cached_property
    def vectors(self) -> Float32[np.ndarray, "n ..."]:
        """All vectors, read on first access and cached; `read` reads a part."""
        return self.read(slice(None))

    @cached_property
    def zyx(self) -> Float64[np.ndarray, "n 3"]:
        """Points (n, 3), z, y, x in voxels of level 0 of their volume."""
        return self._whole("points")

    @cached_property
    def ids(self) -> np.ndarray:
        """Column `id` of the points, else row numbers."""
        return self._whole("ids")

    @cached_property
    def columns(self) -> dict[str, np.ndarray]:
        """Columns of the points, each (n,); non-numbers as text."""
        return {
            name: self.ids if name == "id" else self._whole(f"columns/{column_key(name)}")
            for name in self.attributes["columns"]
        }

    @property
    def points(self) -> Points:
        """The points with their columns."""
        return Points(zyx=self.zyx, columns=dict(self.columns), meta=dict(self.attributes["points_meta"]))

    @property
    def encoder_sha256(self) -> str:
        """Identity of the encoder."""
        return self.attributes["encoder_sha256"]

    @property
    def pool(self) -> str:
        """`mean`, `cls` or `centre`; `tokens` or `grid` where each patch has its vector."""
        return self.attributes["pool"]

    @property
    def precision(self) -> str:
        """Precision of the encoder: `fp32` or `bf16`."""
        return self.attributes["precision"]

    @property
    def volume(self) -> str:
        """Name of the volume."""
        return self.attributes["volume"]

    @property
    def marker(self) -> str | None:
        """Marker of the volume, if known."""
        return self.attributes["marker"]

    @property
    def voxel_um(self) -> ZyxUm:
        """Voxel size of the volume, z, y, x in µm."""
        z, y, x = self.attributes["voxel_um"]
        return z, y, x

    @property
    def window(self) -> Window:
        """Intensity window of the volume's voxels."""
        return Window(*self.attributes["window"])

    def verify(self) -> int:
        """Verify every file against the manifest; returns their number, raises DamagedStore."""
        return self._store.verify_all()

    def _array(self, name: str) -> zarr.Array:
        array = self._group[name]
        assert isinstance(array, zarr.Array), name
        return array

    def _chunk(self, name: str, array: zarr.Array, chunk: int) -> np.ndarray:
        """One chunk of rows, after verifying its file."""
        key = f"{name}/c/{chunk}" + "/0" * (array.ndim - 1)
        if self._store.verify(key) is None:
            raise DamagedStore(self.path, *split_key(key), "missing", "write the store again")
        step = array.chunks[0]
        try:
            return np.asarray(array[chunk * step : (chunk + 1) * step])
        except (ValueError, OSError, RuntimeError) as problem:  # changed since it was compared
            raise DamagedStore(self.path, *split_key(key), f"cannot be decoded ({problem})") from problem

    def _whole(self, name: str) -> np.ndarray:
        array = self._array(name)
        chunks = range(-(-array.shape[0] // array.chunks[0]))
        values = np.concatenate([self._chunk(name, array, chunk) for chunk in chunks])
        return values if values.dtype.kind in "biuf" else np.array(values.tolist(), dtype=np.str_)


def _kind(path: Path, store: CheckedStore) -> str | None:
    """Kind of store by its attributes, None without them."""
    content = store.files.read("zarr.json")
    if content is None:
        raise DamagedStore(path, "", "zarr.json", "missing", "restore the file or write the store again")
    try:
        return json.loads(content)["attributes"]["canvas_fm"].get("kind")
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def points_sha256(points: Points) -> str:
    """Hash of positions, columns and meta, which the store keeps."""
    digest = hashlib.sha256(np.ascontiguousarray(points.zyx, dtype="<f8").tobytes())
    digest.update(json.dumps([list(points.columns), points.meta]).encode())
    for values in map(storable, points.columns.values()):
        digest.update(values.dtype.str.encode())
        digest.update(json.dumps(values.tolist()).encode() if values.dtype == object else values.tobytes())
    return digest.hexdigest()


def column_key(name: str) -> str:
    """Array name of a column: letters and digits unchanged, the rest percent-encoded."""
    return quote(name, safe=" ").replace(".", "%2E") or "%"


def storable(values: np.ndarray) -> np.ndarray:
    """A column as stored: numbers and booleans unchanged, others as strings."""
    array = np.asarray(values)
    return array if array.dtype.kind in "biuf" else array.astype(np.str_).astype(object)


@runtime_checkable
class SlicedVectors(Protocol):
    """Protocol: vectors that are read slice by slice, float32."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Float32[np.ndarray, "rows ..."]: ...


def write_store(
    folder: Path,
    vectors: Float32[np.ndarray, "n ..."] | SlicedVectors,
    points: Points,
    attributes: dict[str, Any],
) -> None:
    """Write a complete embeddings store into the new folder `folder`: arrays, attributes, manifest.

    `vectors` may lie in a file: they are copied chunk by chunk. Equal input gives equal bytes.
    """
    n = len(vectors)
    names = list(points.columns)
    about = {"kind": "embeddings", "format_version": 1, **attributes}
    about |= {"columns": names, "points_meta": dict(points.meta), "complete": True}
    group = zarr.create_group(folder, zarr_format=3, attributes={"canvas_fm": about})
    rows = max(1, _CHUNK_BYTES // (4 * math.prod(vectors.shape[1:])))
    target = _create(group, "embeddings", vectors.shape, "float32", rows, compress=False)
    for first in range(0, n, rows):
        target[first : first + rows] = vectors[first : first + rows]
    _create(group, "points", (n, 3), "float64", _CHUNK_ROWS)[:] = points.zyx
    ids = storable(points.columns["id"]) if "id" in points.columns else np.arange(n)
    _write_column(group, "ids", ids)
    for name in names:
        if name != "id":
            _write_column(group, f"columns/{column_key(name)}", storable(points.columns[name]))
    write_manifest(folder)
    for inner in (*folder.rglob("*"), folder):
        if inner.is_dir():
            sync_path(inner)


def _write_column(group: zarr.Group, name: str, values: np.ndarray) -> None:
    dtype = "string" if values.dtype == object else values.dtype.newbyteorder("=").name
    _create(group, name, values.shape, dtype, _CHUNK_ROWS)[:] = values


def _create(
    group: zarr.Group, name: str, shape: tuple[int, ...], dtype: str, rows: int, compress: bool = True
) -> zarr.Array:
    """Create an array in chunks of whole rows with checksums; chunks of zeros are written too."""
    squeeze = [zarr.codecs.ZstdCodec(level=1)] if compress else []
    return group.create_array(
        name,
        shape=shape,
        chunks=(min(rows, shape[0]), *shape[1:]),
        dtype=dtype,
        compressors=[*squeeze, zarr.codecs.Crc32cCodec()],
        config={"write_empty_chunks": True},
    )
