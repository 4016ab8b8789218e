"""A DataLoader of four workers over two volumes against our own loop: CPU seconds in one run.

Two volumes of 96 × 384 × 384 voxels, 4,000 random crops of 16 × 32 × 32 in each, batches of 64, and caches
that hold a part of the volumes, so that chunks are decoded as in a training on whole brains. The loop reads
the same crops in the same order, batch by batch and through the window, in this process. Of a loader the CPU
seconds of all its processes count, over epochs after one that started the workers.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

import canvas_fm as cf
from canvas_fm.training.torch_dataset import CropDataset, RandomCrops
from tests.benchmarks.timing import show

CROP, BATCH, WORKERS, SHAPE = (16, 32, 32), 64, 4, (96, 384, 384)
CACHE = 8 * 2**20  # bytes of decoded chunks: of a volume's 28 MB
_TICK = os.sysconf("SC_CLK_TCK")


def cpu_seconds(workers: list[int]) -> float:
    """Of this process and of its workers."""
    ticks = 0
    for pid in workers:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / _TICK


def own_loop(dataset: CropDataset) -> Callable[[], int]:
    """The rows of the stream in its order, batch by batch, as our own trainings read theirs."""
    rows = dataset.in_chunk_order().rows()

    def epoch() -> int:
        return sum(len(dataset.crops(rows[at : at + BATCH])) for at in range(0, len(rows), BATCH))

    return epoch


def over(loader: DataLoader[Any]) -> Iterator[int]:
    for crops, _ in loader:
        yield len(crops)


def measure(volumes: list[cf.Volume]) -> dict[str, float]:
    """Crops a CPU second of each way, the mean of two epochs."""
    dataset = CropDataset(volumes, RandomCrops(4000, foreground=0.0), crop_zyx=CROP, cache_bytes=CACHE)
    shared: dict[str, Any] = {
        "num_workers": WORKERS, "persistent_workers": True, "multiprocessing_context": "forkserver"
    }  # fmt: skip
    loaders = {
        "loader, items in chunk order": DataLoader(dataset.in_chunk_order(), batch_size=BATCH, **shared),
        "loader, batches in chunk order": DataLoader(
            dataset.in_chunk_order(batch=BATCH), batch_size=None, **shared
        ),
    }
    rates = {}
    loop = own_loop(dataset)
    ways: dict[str, Callable[[], int]] = {"our own loop": loop}
    ways |= {name: (lambda each=each: sum(over(each))) for name, each in loaders.items()}
    for name, epoch in ways.items():
        spent = []
        for number in range(3):
            workers = [] if name not in loaders or number == 0 else _pids(loaders[name])
            before = cpu_seconds(workers)
            n = epoch()
            assert n == len(dataset), (name, n)
            if number:
                spent.append((cpu_seconds(workers) - before) / n)
        rates[name] = 1 / float(np.mean(spent))
    return rates


def _pids(loader: DataLoader[Any]) -> list[int]:
    return [worker.pid for worker in loader._iterator._workers]  # type: ignore[union-attr]


def main() -> None:
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        volumes = []
        for name in "ab":
            path = Path(folder) / f"{name}.zarr"
            voxels = random.normal(400, 40, SHAPE).clip(0).astype(np.uint16)
            with cf.Volume.create(path, SHAPE, voxel_um=(4.0, 1.8, 1.8)) as writer:
                writer.write((0, 0, 0), voxels)
            volumes.append(cf.Volume.open(path))
        rates = measure(volumes)
    own = rates["our own loop"]
    rows = [(name, f"{rate:,.0f} crops a CPU second", f"{rate / own:.2f}") for name, rate in rates.items()]
    show("DataLoader with 4 workers on two volumes", rows)


if __name__ == "__main__":
    main()
