"""Reading crops against naive zarr slicing: the same points, in the same random order, in the same process.

One point in 20,000 voxels, crops of 16 × 32 × 32, chunks of 32 × 64 × 64 compressed with zstd through Blosc:
once as other programs write them, a file a chunk without checksums, once as we write them, sharded and
checked. Every round begins with an empty cache (a new reader); the system's page cache holds the files for
all. Memory is measured apart, each way in a fresh process: the peak above what was held before the crops
were read, the crops that are returned among it.
"""

from __future__ import annotations

import multiprocessing
import resource
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import zarr

from canvas_fm.data.crops.reader import CropReader, crop_starts
from canvas_fm.data.phantom.phantom import write_phantom
from canvas_fm.data.volume.volume import Volume
from tests.benchmarks.timing import medians, show

CROP = (16, 32, 32)
SHAPE = (96, 320, 320)
BATCH = 64


class Row(NamedTuple):
    """One way of reading: crops a second, against naive slicing, and the memory it took."""

    what: str
    crops_per_second: float
    ratio: float
    peak_mib: float


def naive(path: Path, points: np.ndarray) -> np.ndarray:
    array = zarr.open_array(path / "0" if (path / "0").is_dir() else path, mode="r")
    starts = crop_starts(points, CROP).tolist()
    return np.stack([array[z : z + 16, y : y + 32, x : x + 32] for z, y, x in starts])


def with_zarr(path: Path, points: np.ndarray) -> np.ndarray:
    return reader(path, "zarr").read_points(points)


def with_tensorstore(path: Path, points: np.ndarray) -> np.ndarray:
    return reader(path, "tensorstore").read_points(points)


def in_batches(path: Path, points: np.ndarray) -> None:
    for _ in reader(path, "auto").batches_points(points, BATCH):
        pass


def reader(path: Path, backend: Literal["auto", "zarr", "tensorstore"]) -> CropReader:
    return CropReader(Volume.open(path, voxel_um=(4.0, 1.8, 1.8)), CROP, backend=backend)


WAYS: dict[str, Callable[[Path, np.ndarray], object]] = {
    "naive zarr slicing": naive,
    "ours, zarr": with_zarr,
    "ours, tensorstore": with_tensorstore,
    f"ours, batches of {BATCH}": in_batches,
}


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def peak_mib(what: str, path: Path, points: np.ndarray) -> float:
    """How far resident memory rises while the crops are read; for a process that has read nothing before."""
    WAYS[what](path, points[:2])  # what imports and the first touch of a store keep
    before = highest = resident_mib()
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.002):
            highest = max(highest, resident_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    held = WAYS[what](path, points)
    done.set()
    watcher.join()
    del held
    return highest - before


def peak_apart(what: str, path: Path, points: np.ndarray) -> float:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(peak_mib, what, path, points).result()


def write_foreign(folder: Path, voxels: np.ndarray) -> Path:
    codec = zarr.codecs.BloscCodec(cname="zstd", clevel=1, shuffle="shuffle")
    array = zarr.create_array(
        folder / "foreign.zarr", shape=voxels.shape, chunks=(32, 64, 64), dtype="uint16", compressors=[codec]
    )
    array[:] = voxels
    return folder / "foreign.zarr"


def compare(label: str, path: Path, rounds: int) -> list[Row]:
    n = int(np.prod(SHAPE)) // 20_000
    room = np.subtract(SHAPE, CROP)
    points = np.random.default_rng(0).integers(0, room + 1, (n, 3)) + np.array(CROP) // 2.0
    expected = naive(path, points[:50])
    for way in (with_zarr, with_tensorstore):
        assert np.array_equal(way(path, points[:50]), expected), f"{way.__name__} reads other crops"
    work = {what: partial(way, path, points) for what, way in WAYS.items()}
    seconds = medians(work, rounds=rounds, warm_up=1)
    limit = seconds["naive zarr slicing"]
    return [
        Row(f"{label}: {what}", n / seconds[what], limit / seconds[what], peak_apart(what, path, points))
        for what in WAYS
    ]


def run(rounds: int = 3) -> list[Row]:
    """Write a phantom brain in two forms and read it in four ways."""
    with tempfile.TemporaryDirectory() as name:
        ours = write_phantom(name, shape_zyx=SHAPE, markers=["NeuN"])["NeuN"] / "raw.zarr"
        foreign = write_foreign(Path(name), Volume.open(ours).read((0, 0, 0), SHAPE))
        return compare("a file a chunk", foreign, rounds) + compare("sharded, checked", ours, rounds)


def main() -> None:
    size = " × ".join(map(str, SHAPE))
    rows = [
        (
            row.what,
            f"{row.crops_per_second:,.0f} crops/s",
            f"{row.ratio:.1f} × naive, +{row.peak_mib:.0f} MiB",
        )
        for row in run()
    ]
    show(f"Crops of 16 × 32 × 32, one point in 20,000 voxels of {size} (wanted: 10 × naive)", rows)
