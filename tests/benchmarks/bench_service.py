"""The service, in crops a second: raw `.npy`, points by name and JSON, each beside the same work in Python.

One `canvas-fm serve` of the paper's encoder answers; Python embeds the same crops in the same batches with as
many threads. What is lost is sending, checking and answering. JSON shows why it is held to 64 crops.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from canvas_fm.data.volume import Volume
from canvas_fm.inference.embed import embed, embed_crops
from canvas_fm.models.checkpoint import Encoder, save_encoder
from canvas_fm.models.device import pick_device
from canvas_fm.models.mae import MaskedAutoencoder
from serving.client import Client
from tests.benchmarks.timing import medians, show

SHAPE = (64, 192, 192)
VOXEL_UM = (4.0, 1.8, 1.8)


def compare(
    client: Client, encoder: Encoder, volume: Volume, n: int, batch: int
) -> list[tuple[str, str, str]]:
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 4000, (n, *encoder.config.architecture.crop_zyx)).astype(np.uint16)
    floats = np.clip(raw / np.float32(4000), 0, 1)
    points = rng.uniform(0, np.asarray(SHAPE) - 1, (n, 3))
    few = floats[:64]
    window = (0.0, 4000.0)

    def small_ones() -> None:
        with ThreadPoolExecutor(16) as threads:
            list(threads.map(lambda i: client.embed(raw[i : i + 4], window), range(0, n, 4)))

    def as_json() -> None:
        reply = client._http.post("/embed_json", json={"crops": few.tolist()})
        assert reply.status_code == 200

    work = {
        "Python, crops": lambda: embed_crops(encoder, raw, window=window, batch=batch),
        "HTTP, uint16 .npy": lambda: client.embed(raw, window, per_request=n),
        "HTTP, float32 .npy": lambda: client.embed(floats, per_request=n),
        "HTTP, 4 crops a request, 16 at once": small_ones,
        "Python, points": lambda: embed(encoder, volume, points, batch=batch, show=False),
        "HTTP, points": lambda: client.embed_points("brain", points, per_request=n),
        "Python, 64 crops": lambda: embed_crops(encoder, few, batch=batch),
        "HTTP, 64 crops as .npy": lambda: client.embed(few),
        "HTTP, 64 crops as JSON": as_json,
    }
    seconds = medians(work, rounds=3, warm_up=1)
    rows, base = [], ""
    for name, taken in seconds.items():
        base = name if name.startswith("Python") else base
        count = 64 if "64" in name else n
        rows.append((name, f"{count / taken:,.0f} crops/s", f"{seconds[base] / taken:.2f} of Python"))
    return rows


def _address(service: subprocess.Popen, log: Path) -> str:
    while "serving on " not in (said := log.read_text()):
        assert service.poll() is None, said
        time.sleep(0.1)
    return said.partition("serving on ")[2].split()[0]


def main() -> None:
    device = pick_device("auto")
    n, batch = (128, 64) if device.type == "cpu" else (4096, 1024)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "brain.zarr"
        with Volume.create(path, SHAPE, voxel_um=VOXEL_UM) as writer:
            writer.write((0, 0, 0), np.random.default_rng(1).integers(0, 4000, SHAPE).astype(np.uint16))
        encoder = save_encoder(Path(folder) / "encoder", MaskedAutoencoder(), voxel_um=VOXEL_UM).to(device)
        command = [sys.executable, "-m", "canvas_fm.cli", "serve", f"{folder}/encoder"]
        command += ["--volume", f"brain={path}", "--port", "0"]
        log = Path(folder) / "log.txt"
        with log.open("w") as errors:
            service = subprocess.Popen(command, stderr=errors)
        try:
            with Client(_address(service, log)) as client:
                rows = compare(client, encoder, Volume.open(path), n, batch)
        finally:
            service.terminate()
            service.wait()
    title = f"Service on {device.type}, {torch.get_num_threads()} threads, the paper's encoder, {n} crops"
    show(title, rows)
