"""Memory of `refine apply` on a million candidates against that on ten thousand, by tiny models.

What may grow are the rows of the file, not features or crops. Candidates are drawn in one block of the
phantom, so many stand in the same voxels; every row is judged all the same. `CANVAS_FM_BENCH_CANDIDATES=1e5`
makes it smaller.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from canvas_fm.data.phantom.phantom import write_phantom
from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.heads.features.extractor import Extractor
from canvas_fm.heads.labels.candidates import Candidates
from canvas_fm.heads.refine.refiner import Refiner
from canvas_fm.models.detector.convmixer import ConvMixerConfig, HeatMapNet
from canvas_fm.models.encoder.mae import DecoderConfig, MaskedAutoencoder
from canvas_fm.models.encoder.vit import EncoderConfig
from canvas_fm.models.load_model import load, save_detector, save_encoder
from canvas_fm.pipeline.fit_refiner import fit_refiner
from tests.benchmarks.timing import show

SHAPE_ZYX = (64, 256, 256)
FEW = 10_000
ROW = 8 * 3 + 8 + 4  # bytes of a row in memory: z, y, x, a score, p_cell


def make_models(folder: Path, voxel_um: tuple[float, float, float]) -> None:
    torch.manual_seed(0)
    architecture = EncoderConfig(crop_zyx=(4, 8, 8), patch_zyx=(1, 2, 2), dim=24, depth=1, heads=2)
    mae = MaskedAutoencoder(architecture, DecoderConfig(dim=12, depth=1, heads=2))
    save_encoder(folder / "encoder", mae, voxel_um=voxel_um, pool="centre")
    net = HeatMapNet(ConvMixerConfig(dim=4, depth=1, kernel_zyx=(3, 3, 3)))
    save_detector(folder / "detector", net, voxel_um=voxel_um, threshold=0.5, min_distance_um=6)


def fit(folder: Path, volume: Volume, random: np.random.Generator) -> None:
    """A refiner that corrects each brain, on coin flips: it is to be large enough, not good."""
    zyx = random.uniform(0, np.asarray(SHAPE_ZYX) - 1, (400, 3))
    boxes = np.array([[0, 0, 0, 64, 256, 128], [0, 0, 128, 64, 256, 256]])
    points = Points(zyx, {"label": random.integers(0, 2, 400)})
    models = load(folder / "encoder", kind="encoder"), load(folder / "detector", kind="detector")
    extractor = Extractor(*models, device="cpu")
    candidates = [Candidates.of(volume, points, within=boxes)]
    fit_refiner(
        Refiner(correction="standardise", C=0.01), candidates, extractor, folder / "refiner", show=False
    )


def measure(folder: str, volume: str, candidates: str, threads: int) -> dict[str, Any]:
    """Seconds and peak memory of this process, which does nothing else: what the command does."""
    from canvas_fm.heads.refine.apply.apply import refine

    torch.set_num_threads(threads)
    root = Path(folder)
    refiner = Refiner.load(root / "refiner")
    models = {"encoder": load(root / "encoder"), "detector": load(root / "detector"), "device": "cpu"}
    opened = Volume.open(volume)
    before = _peak_mb()
    start = time.perf_counter()
    points = Points.read(candidates)
    read = _peak_mb()
    out = Path(candidates).with_suffix(".cells.csv")
    judged = refine(refiner, opened, points, **models, out=out, batch=512, show=False)
    assert len(judged) == len(points)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "before": before, "read": read, "peak": _peak_mb(), "rows": len(judged)}


def _peak_mb() -> float:
    """The most memory that this process ever held; getrusage would count its parent's before it began."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def main() -> None:
    many = int(float(os.environ.get("CANVAS_FM_BENCH_CANDIDATES", "1e6")))
    with tempfile.TemporaryDirectory() as name:
        folder, random = Path(name), np.random.default_rng(0)
        made = write_phantom(
            folder / "brain", shape_zyx=SHAPE_ZYX, markers=("NeuN",), stripes=False, progress=False
        )
        volume = Volume.open(made["NeuN"] / "raw.zarr")
        make_models(folder, volume.voxel_um)
        fit(folder, volume, random)
        found = []
        for n in (FEW, many):
            path = folder / f"{n}.csv"
            zyx = random.uniform(0, np.asarray(SHAPE_ZYX) - 1, (n, 3)).round(1)
            Points(zyx, {"score": random.random(n).round(3)}).write(path)
            words = (name, str(volume.path), str(path), torch.get_num_threads())
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found.append(pool.apply(measure, words))
            lines = sum(1 for _ in path.with_suffix(".cells.csv").open())
            assert lines >= n
    few, more = found
    extra = more["rows"] - few["rows"]
    grown = (more["peak"] - few["peak"]) * 2**20 / max(extra, 1)
    show(
        f"Memory of refine apply, {torch.get_num_threads()} threads",
        [
            (f"{few['rows']:,} candidates", f"{few['peak']:.0f} MB peak", f"{few['before']:.0f} MB before"),
            (
                f"{more['rows']:,} candidates",
                f"{more['peak']:.0f} MB peak",
                f"{more['read']:.0f} MB once read",
            ),
            ("growth a candidate", f"{grown:.0f} bytes", f"a row of the file is {ROW} in memory"),
            ("features of a candidate", f"{4 * (24 + 32)} bytes", "here; 3,072 with the paper's encoder"),
            ("speed", f"{more['rows'] / more['seconds']:,.0f} candidates/s", f"{more['seconds']:.0f} s"),
        ],
    )


if __name__ == "__main__":
    main()
