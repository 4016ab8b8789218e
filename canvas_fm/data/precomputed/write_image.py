"""Write a volume's pyramid as a Neuroglancer precomputed image or segmentation in sharded files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np

from canvas_fm.data.precomputed.morton import morton_bits, morton_cells, morton_codes
from canvas_fm.data.precomputed.shards import Encoding, Sharding, encoded, write_shards
from canvas_fm.data.volume.levels.pyramid import Level, open_pyramid
from canvas_fm.data.volume.volume import Volume
from canvas_fm.data.zyx import Zyx
from canvas_fm.errors import CanvasError
from canvas_fm.files.atomic import write_text_atomic
from canvas_fm.progress import bar

KIND = "neuroglancer_multiscale_volume"
CHUNK = 64  # voxels along each axis
Layer = Literal["image", "segmentation"]
_SHARD_BITS, _MINISHARD_BITS = 7, 2  # of the chunks in a file: 128, in four minishards
_TYPES = {
    "image": ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "float32"),
    "segmentation": ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64"),
}


def write_image(
    volume: Volume, folder: Path, *, layer: Layer = "image", encoding: Encoding = "gzip"
) -> dict[str, Any]:
    """Write all levels into a new folder and return its `info`, which is written last.

    Chunks of 64 × 64 × 64 voxels, 128 in a file: a file for 33.5 M voxels, and one or more for each coarser
    level. Memory for the voxels of one file. float64 becomes float32, int64 labels uint64.
    """
    if folder.exists() and any(folder.iterdir()):
        raise CanvasError(f"{folder} exists already and is not empty; delete it or choose another name")
    info = image_info(volume, layer=layer, encoding=encoding)
    levels = open_pyramid(volume, labels=layer == "segmentation")
    total = sum(math.prod(grid_of(level.shape_zyx)) for level in levels)
    with bar(f"export {volume.name}", total, unit="chunks") as advance:
        for level, scale in zip(levels, info["scales"], strict=True):
            _write_level(level, folder / scale["key"], scale, info["data_type"], advance)
    write_text_atomic(folder / "info", json.dumps(info))
    return info


def image_info(
    volume: Volume, *, layer: Layer = "image", encoding: Encoding | None = "gzip"
) -> dict[str, Any]:
    """The `info` of a volume's pyramid; unsharded if `encoding` is None, as for chunks made on request."""
    levels = open_pyramid(volume, labels=layer == "segmentation")
    return {
        "@type": KIND,
        "type": layer,
        "data_type": _data_type(volume, layer),
        "num_channels": 1,
        "scales": [_scale(number, level, encoding) for number, level in enumerate(levels)],
    }


def chunk_bytes(level: Level, start_zyx: Zyx, data_type: str) -> bytes:
    """The raw bytes of the chunk that begins at a voxel, x fastest; clipped at the border."""
    stop = [min(a + CHUNK, n) for a, n in zip(start_zyx, level.shape_zyx, strict=True)]
    return _raw(level.read(start_zyx, stop), data_type)


def grid_of(shape_zyx: Zyx) -> tuple[int, int, int]:
    """Chunks along x, y and z."""
    z, y, x = (math.ceil(size / CHUNK) for size in shape_zyx)
    return x, y, z


def _data_type(volume: Volume, layer: Layer) -> str:
    name = {"float64": "float32", "int64": "uint64"}.get(volume.dtype.name, volume.dtype.name)
    if name not in _TYPES[layer] or (volume.dtype.name == "int64" and layer == "image"):
        raise CanvasError(
            f"{volume.path} holds {volume.dtype} values; Neuroglancer shows {', '.join(_TYPES[layer])} "
            f"as {layer}"
        )
    return name


def _scale(number: int, level: Level, encoding: Encoding | None) -> dict[str, Any]:
    bits = morton_bits(grid_of(level.shape_zyx))
    inside = min(bits, _SHARD_BITS)
    minishards = min(_MINISHARD_BITS, inside)
    z, y, x = level.shape_zyx
    scale: dict[str, Any] = {
        "key": f"level{number}",
        "size": [x, y, z],
        "resolution": [round(size * 1000, 6) for size in reversed(level.voxel_um)],
        "voxel_offset": [0, 0, 0],
        "chunk_sizes": [[CHUNK] * 3],
        "encoding": "raw",
    }
    if encoding is not None:
        sharding = Sharding(inside - minishards, minishards, bits - inside, data_encoding=encoding)
        scale["sharding"] = sharding.to_json()
    return scale


def _write_level(level: Level, folder: Path, scale: dict[str, Any], data_type: str, advance: Any) -> None:
    grid = grid_of(level.shape_zyx)
    sharding = Sharding.of_json(scale["sharding"], folder)
    chunks = np.indices(grid).reshape(3, -1).T
    codes = morton_codes(chunks, grid)

    def values(rows: np.ndarray) -> tuple[bytes, np.ndarray]:
        """The chunks of one file, whose box is read at once."""
        places = morton_cells(codes[rows], grid)[:, ::-1] * CHUNK
        low = places.min(axis=0)
        high = np.minimum(places.max(axis=0) + CHUNK, level.shape_zyx)
        box = level.read(low.tolist(), high.tolist())
        parts = []
        for place in places - low:
            part = box[tuple(slice(int(a), int(a) + CHUNK) for a in place)]
            parts.append(encoded(_raw(part, data_type), sharding.data_encoding))
            advance()
        return b"".join(parts), np.array([len(part) for part in parts], np.int64)

    write_shards(folder, sharding, codes, values)


def _raw(voxels: np.ndarray, data_type: str) -> bytes:
    return np.ascontiguousarray(voxels, np.dtype(data_type).newbyteorder("<")).tobytes()
