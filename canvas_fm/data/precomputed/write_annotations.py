"""Write points as precomputed annotations: a sharded, multi-level spatial index, and one by id."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from canvas_fm.data.points.tables import PointTable
from canvas_fm.data.precomputed.morton import morton_bits, morton_codes
from canvas_fm.data.precomputed.properties import properties_of, row_type
from canvas_fm.data.precomputed.read_annotations import KIND, NAMESPACE
from canvas_fm.data.precomputed.shards import Encoding, Sharding, encoded, write_shards
from canvas_fm.data.precomputed.spatial_levels import LIMIT, SpatialLevel, spatial_levels
from canvas_fm.errors import CanvasError
from canvas_fm.files.atomic import write_text_atomic

_SHARD_BYTES = 32 << 20
_KEYS_A_MINISHARD = 12  # bits: 4,096 ids have an index of a few hundred bytes, as they follow each other
_CELLS_A_MINISHARD = 8  # bits


def write_precomputed(
    points: PointTable,
    folder: Path,
    *,
    voxel_um: tuple[float, float, float],
    shape_zyx: tuple[int, int, int] | None = None,
    limit: int = LIMIT,
    encoding: Encoding = "gzip",
) -> dict[str, Any]:
    """Write a new folder and return its `info`, which is written last.

    An id is a row's number from 1, so that reading gives the rows in their order. Positions are float32 at
    voxel corners: whole and half voxels are exact, others to 0.001 of a voxel up to 8,192. The bounds are
    those of the volume of `shape_zyx`, widened where points lie outside.
    """
    if folder.exists() and any(folder.iterdir()):
        raise CanvasError(f"{folder} exists already and is not empty; delete it or choose another name")
    folder.mkdir(parents=True, exist_ok=True)
    properties = properties_of(points.columns, folder)
    rows = np.zeros(len(points.zyx), row_type(properties))
    rows["position"] = points.zyx[:, ::-1] + 0.5
    for number, each in enumerate(properties):
        rows[f"p{number}"] = each.values
    lower, upper = _bounds(rows["position"], shape_zyx)
    voxel_xyz = (voxel_um[2], voxel_um[1], voxel_um[0])
    levels = spatial_levels(rows["position"], lower, upper, voxel_xyz, limit=limit)
    info = {
        "@type": KIND,
        "dimensions": dimensions_of(voxel_um),
        "lower_bound": lower.tolist(),
        "upper_bound": upper.tolist(),
        "annotation_type": "POINT",
        "properties": [each.declared for each in properties],
        "relationships": [],
        "spatial": [
            _write_level(folder, f"spatial{number}", level, rows, encoding)
            for number, level in enumerate(levels)
        ],
        "by_id": _write_by_id(folder, "by_id", rows),
        NAMESPACE: {"points": len(rows)},
    }
    write_text_atomic(folder / "info", json.dumps(info, ensure_ascii=False))
    return info


def dimensions_of(voxel_um: tuple[float, float, float]) -> dict[str, list[Any]]:
    """Neuroglancer's `dimensions`: metres a voxel, by axis, without the rounding of binary fractions."""
    sizes = zip("xyz", reversed(voxel_um), strict=True)
    return {axis: [float(Decimal(repr(float(size))).scaleb(-6)), "m"] for axis, size in sizes}


def _bounds(positions: np.ndarray, shape_zyx: tuple[int, int, int] | None) -> tuple[np.ndarray, np.ndarray]:
    lower = np.zeros(3, np.float32)
    upper = np.ones(3, np.float32) if shape_zyx is None else np.array(shape_zyx[::-1], np.float32)
    if len(positions):
        lower = np.minimum(lower, np.floor(positions.min(axis=0)))
        upper = np.maximum(upper, np.ceil(positions.max(axis=0)))
    return lower, upper


def _write_level(
    folder: Path, key: str, level: SpatialLevel, rows: np.ndarray, encoding: Encoding
) -> dict[str, Any]:
    """One level, and its entry in `info`."""
    ends = np.cumsum(level.counts)
    per_row = rows.dtype.itemsize + 8
    bits = morton_bits(level.grid_shape)
    shard_bits = min(_bits_for(per_row * len(level.rows), _SHARD_BYTES), bits)
    minishard_bits = max(bits - shard_bits - _CELLS_A_MINISHARD, 0)
    sharding = Sharding(
        bits - shard_bits - minishard_bits, minishard_bits, shard_bits, data_encoding=encoding
    )

    def values(cells: np.ndarray) -> tuple[bytes, np.ndarray]:
        encoded_cells = [encoded(cell(int(number)), encoding) for number in cells]
        return b"".join(encoded_cells), np.array([len(value) for value in encoded_cells], np.int64)

    def cell(number: int) -> bytes:
        inside = level.rows[ends[number] - level.counts[number] : ends[number]]
        ids = (inside + 1).astype("<u8")
        return len(inside).to_bytes(8, "little") + rows[inside].tobytes() + ids.tobytes()

    write_shards(folder / key, sharding, morton_codes(level.cells, level.grid_shape), values)
    return {
        "key": key,
        "grid_shape": list(level.grid_shape),
        "chunk_size": list(level.chunk_size),
        "limit": level.limit,
        "sharding": sharding.to_json(),
    }


def _write_by_id(folder: Path, key: str, rows: np.ndarray) -> dict[str, Any]:
    """The index by id: raw rows, as gzip would lengthen each."""
    keys = np.arange(1, len(rows) + 1, dtype=np.uint64)
    bits = len(rows).bit_length()
    preshift = min(bits, _KEYS_A_MINISHARD)
    shard_bits = min(_bits_for(rows.dtype.itemsize << bits, _SHARD_BYTES), bits - preshift)
    sharding = Sharding(preshift, bits - preshift - shard_bits, shard_bits)

    def values(numbers: np.ndarray) -> tuple[bytes, np.ndarray]:
        return rows[numbers].tobytes(), np.full(len(numbers), rows.dtype.itemsize, np.int64)

    write_shards(folder / key, sharding, keys, values)
    return {"key": key, "sharding": sharding.to_json()}


def _bits_for(total: int, each: int) -> int:
    """Bits that number the parts of a whole, each of at most so many bytes."""
    return max(-(-total // each) - 1, 0).bit_length()
