"""Embedding, in crops a second: the encoder alone, from arrays, and from points of a volume on the disk.

All three run the same batches in the same run. What `embed_crops` loses against the encoder alone is
checking and copying; what `embed` loses is reading, decoding and windowing that the computation does not
hide. On a CPU everything runs on one thread, on a GPU also in batches of 1,024.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from canvas_fm.data.volume.volume import Volume
from canvas_fm.inference.embed.embed import embed, embed_crops
from canvas_fm.models.device import native_bf16, pick_device
from canvas_fm.models.encoder.mae import MaskedAutoencoder
from canvas_fm.models.load_model import Encoder, save_encoder
from tests.benchmarks.timing import medians, show

SHAPE = (128, 256, 256)
VOXEL_UM = (4.0, 1.8, 1.8)


def cells(seed: int = 0) -> np.ndarray:
    """Dim noise with bright balls: about as compressible as a brain."""
    rng = np.random.default_rng(seed)
    voxels = rng.poisson(60, SHAPE).astype(np.uint16)
    z, y, x = np.ogrid[-3:4, -6:7, -6:7]
    ball = (800 * np.exp(-(z**2 / 4 + (y**2 + x**2) / 16))).astype(np.uint16)
    for low in rng.integers(0, np.asarray(SHAPE) - ball.shape, (2000, 3)):
        voxels[tuple(slice(a, a + n) for a, n in zip(low, ball.shape, strict=True))] += ball
    return voxels


def compare(
    encoder: Encoder, volume: Volume, batch: int, precision: str, n: int
) -> list[tuple[str, str, str]]:
    device, rng = encoder.device, np.random.default_rng(1)
    points = rng.uniform(0, np.asarray(SHAPE) - 1, (n, 3))
    crops = rng.random((n, 1, *encoder.config.architecture.crop_zyx), dtype=np.float32)
    ready = [torch.from_numpy(crops[i : i + batch]).to(device) for i in range(0, n, batch)]
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32

    @torch.inference_mode()
    def alone() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            for part in ready:
                encoder.net(part)

    options = {"batch": batch, "precision": precision, "device": device}
    seconds = medians(
        {
            "encoder alone": alone,
            "embed_crops": lambda: embed_crops(encoder, crops, **options),
            "embed": lambda: embed(encoder, volume, points, show=False, **options),
        },
        rounds=2 if device.type == "cpu" else 7,
        warm_up=1,
    )
    limit = seconds["encoder alone"]
    return [
        (
            f"{name}, batch {batch}, {precision}",
            f"{n / taken:,.0f} crops/s",
            f"{limit / taken:.2f} of the encoder",
        )
        for name, taken in seconds.items()
    ]


def main() -> None:
    device = pick_device("auto")
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        with Volume.create(Path(folder) / "brain.zarr", SHAPE, voxel_um=VOXEL_UM) as writer:
            writer.write((0, 0, 0), cells())
        volume = Volume.open(Path(folder) / "brain.zarr")
        encoder = save_encoder(Path(folder) / "encoder", MaskedAutoencoder(), voxel_um=VOXEL_UM).to(device)
        rows = []
        for precision in ("fp32", *(["bf16"] if native_bf16(device) else [])):
            for batch in (16, 64, 256) if device.type == "cpu" else (64, 256, 1024):
                n = max(64, batch) if device.type == "cpu" else 16 * batch
                rows += compare(encoder, volume, batch, precision, n)
    torch.set_num_threads(threads)
    show(f"Embedding on {device.type}, the paper's encoder, volume of {' × '.join(map(str, SHAPE))}", rows)
