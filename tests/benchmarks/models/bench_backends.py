"""Backends of the encoder, each in crops a second beside torch in fp32 in the same run, on one CPU thread.

Beside the speed stands how far the vectors are from those of fp32, and whether int8 is admitted: give the
folder of an encoder that `canvas-fm quantise` has checked,
`python -m tests.benchmarks.models.bench_backends FOLDER`.
A 3D ResNet of cellfinder's width, the field's usual judge of candidates, runs beside them. Without a folder,
random weights of the paper's size are quantised on random crops, for the speed alone. Seconds are those that
the process was computing, so that others on the machine count little. On a GPU the batch is 1024 and the last
column the share of a large bf16 product's rate.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from canvas_fm.errors import CanvasError, MissingExtra
from canvas_fm.inference.backends.openvino import Compiled, converted
from canvas_fm.inference.embed.encoder_runner import Runner
from canvas_fm.models.device import native_bf16, pick_device
from canvas_fm.models.encoder.mae import MaskedAutoencoder
from canvas_fm.models.encoder.vit import POOLS
from canvas_fm.models.heads.resnet import ResNet3D, ResNetConfig
from canvas_fm.models.load_model import Encoder, load, save_encoder
from tests.benchmarks.timing import medians, show

GFLOP = 1.409  # of one crop through the paper's encoder
RESNET = "3D ResNet, width 64, 16 × 32 × 32"
Net = Callable[[np.ndarray], np.ndarray]


def on_cpu(encoder: Encoder, crops: np.ndarray) -> tuple[dict[str, Net], str]:
    """The backends by name, torch in fp32 first; and what is to be said of int8."""
    nets: dict[str, Net] = {"torch fp32": Runner(encoder, None, None, "fp32")}
    if native_bf16(encoder.device):
        nets["torch bf16"] = Runner(encoder, None, None, "bf16")
    try:
        for precision in ("fp32", *(["bf16"] if native_bf16(encoder.device) else [])):
            nets[f"openvino {precision}"] = Runner(encoder, None, None, precision, None, "openvino")
    except MissingExtra as problem:
        return nets, str(problem)
    try:
        nets["openvino int8"] = Runner(encoder, None, None, "int8", None, "openvino")
        return nets, "int8 is admitted for this encoder"
    except CanvasError as problem:
        said = str(problem)
    from canvas_fm.heads.quantise import _nncf, _quantised

    net = Compiled(_quantised(_nncf(), converted(encoder), [crops]), "int8")
    at = POOLS.index(encoder.config.pool)
    nets["openvino int8, not admitted"] = lambda given: net(given)[:, at]
    return nets, said


def on_gpu(encoder: Encoder) -> dict[str, Net]:
    return {
        "torch fp32": Runner(encoder, None, None, "fp32"),
        "torch bf16": Runner(encoder, None, None, "bf16"),
        "cuda-graphs bf16": Runner(encoder, None, None, "bf16", None, "cuda-graphs"),
    }


def resnet(device: torch.device, batch: int) -> Callable[[], object]:
    """The field's classifier (`canvas_fm.models.heads.resnet`) on as many crops of its own size."""
    net = ResNet3D(ResNetConfig(width=64)).eval().to(device)
    crops = torch.rand(batch, 1, *net.config.crop_zyx, device=device)

    def run() -> object:
        with torch.inference_mode():
            return net(crops).cpu()

    return run


def peak_tflops(size: int = 8192) -> float:
    """What one large bf16 product reaches on this GPU."""
    a = torch.rand(size, size, device="cuda").bfloat16()
    return 2 * size**3 / medians({"product": lambda: a @ a})["product"] / 1e12


def compare(encoder: Encoder) -> tuple[list[tuple[str, str, str]], str]:
    gpu = encoder.device.type == "cuda"
    batch = 1024 if gpu else 64
    crops = np.random.default_rng(0).random((batch, 1, *encoder.config.architecture.crop_zyx), np.float32)
    nets, said = (on_gpu(encoder), "") if gpu else on_cpu(encoder, crops)
    clock = time.perf_counter if gpu else time.process_time
    work = {name: (lambda net=net: net(crops)) for name, net in nets.items()}
    work[RESNET] = resnet(encoder.device, batch)
    seconds = medians(work, rounds=7, warm_up=2, clock=clock)
    wanted, base = nets["torch fp32"](crops), seconds["torch fp32"]
    peak = peak_tflops() if gpu else 0.0
    rows = []
    for name, net in nets.items():
        far = np.linalg.norm(net(crops) - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
        rate = batch / seconds[name]
        share = f", {rate * GFLOP / 1e3 / peak:.2f} of a large bf16 product" if gpu else ""
        beside = f"{base / seconds[name]:.2f} times torch fp32, vectors off by {np.median(far):.1e}{share}"
        times = f"{seconds[RESNET] / seconds[name]:.1f} times the ResNet"
        rows.append((name, f"{rate:,.0f} crops/s", f"{beside}; {times}"))
    rows.append((RESNET, f"{batch / seconds[RESNET]:,.0f} crops/s", "cellfinder's width, fp32"))
    return rows, said


def main(folder: str | None = None) -> None:
    threads = torch.get_num_threads()
    device = pick_device("auto")
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as name:
            if folder is None:
                save_encoder(Path(name) / "random", MaskedAutoencoder(), voxel_um=(4.0, 1.8, 1.8))
            encoder = load(folder or Path(name) / "random", device=device, kind="encoder")
            rows, said = compare(encoder)
    finally:
        torch.set_num_threads(threads)
    show(f"Backends on {device.type}, {encoder.name}, batch {1024 if device.type == 'cuda' else 64}", rows)
    if said:
        print(f"  {said}")


if __name__ == "__main__":
    main(*sys.argv[1:])
