"""Pack real blocks for the benchmark of a GPU.

    python -m tests.benchmarks.gpu.pack VOLUME… --out data/gpu.npz

Blocks are read at the volume's own voxel size, with each volume's window and the places of bright blobs.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from canvas_fm.data.volume.volume import Volume
from canvas_fm.data.volume.window import WindowRule
from canvas_fm.errors import CanvasError
from canvas_fm.training.joint.blob_positions import find_blobs
from tests.benchmarks.gpu.data import BLOCK, MOST_BYTES


def pack(volumes: Sequence[str | Path], out: Path, *, blocks: int, block_zyx: tuple[int, int, int]) -> int:
    """Write `blocks` blocks, as many of each volume, at its brightest places; the bytes of the file."""
    rule, stack, windows, places = WindowRule(), [], [], []
    for index, path in enumerate(volumes):
        volume, random = Volume.open(path), np.random.default_rng(index)
        window, size = volume.window_by(rule), np.asarray(block_zyx)
        room = np.asarray(volume.shape_zyx) - size
        if (room < 0).any():
            raise CanvasError(f"{volume.name} is {volume.shape_zyx}, smaller than a block of {block_zyx}")
        blobs = find_blobs(volume, 5.0, rule, random)
        for _ in range(math.ceil(blocks / len(volumes))):
            centre = blobs[random.integers(len(blobs))] if len(blobs) else random.integers(volume.shape_zyx)
            start = np.clip(centre - size // 2, 0, room)
            inside = blobs[((blobs >= start) & (blobs < start + size)).all(axis=1)] - start
            inside = inside if len(inside) else size[None] // 2
            stack.append(volume.read(tuple(start), block_zyx).astype(np.uint16))
            windows.append((window.low, window.high))
            places.append(np.insert(inside, 0, len(stack) - 1, axis=1))
    out.parent.mkdir(parents=True, exist_ok=True)
    arrays = {"blocks": np.stack(stack), "windows": np.asarray(windows, np.float32)}
    with out.open("wb") as file:
        np.savez_compressed(file, **arrays, places=np.concatenate(places).astype(np.int16))
    if (written := out.stat().st_size) > MOST_BYTES:
        out.unlink()
        raise CanvasError(f"{blocks} blocks are {written:,} bytes, more than {MOST_BYTES:,}; give fewer")
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("volumes", nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--blocks", type=int, default=24)
    options = parser.parse_args()
    print(pack(options.volumes, options.out, blocks=options.blocks, block_zyx=BLOCK), "bytes")


if __name__ == "__main__":
    main()
