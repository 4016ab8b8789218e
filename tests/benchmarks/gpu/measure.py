"""What the GPU does: a training step, throughput against its own matrix products, embedding, detection."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tests.benchmarks.gpu.data import Resident, boxes, views
from tests.benchmarks.gpu.net import CROP, Encoder, detector
from tests.benchmarks.gpu.step import Trainer, half


@dataclass(frozen=True)
class Sizes:
    """How much is measured: whole on a GPU, toy on a CPU."""

    dim: int = 192
    depth: int = 6
    small: int = 64
    large: int = 1024
    embed: int = 4096
    matrix: int = 8192
    volume: tuple[int, int, int] = (64, 384, 384)
    rounds: int = 20

    @classmethod
    def toy(cls) -> Sizes:
        return cls(dim=96, depth=1, small=8, large=16, embed=16, matrix=128, volume=(4, 32, 32), rounds=2)


def seconds(work: Callable[[], object], device: torch.device, rounds: int) -> float:
    """Mean seconds of one call over so many, after a few that warm up; the device has finished them all."""
    for _ in range(min(3, rounds)):
        work()
    _finish(device)
    began = time.perf_counter()
    for _ in range(rounds):
        work()
    _finish(device)
    return (time.perf_counter() - began) / rounds


def figures(data: Resident, device: torch.device, sizes: Sizes) -> dict[str, Any]:
    """All figures of the machine, by name with unit; goals stand beside those that have one."""
    found: dict[str, Any] = {"device": _name(device), "torch": torch.__version__}
    matrix = torch.randn(sizes.matrix, sizes.matrix, device=device, dtype=torch.bfloat16)
    product = seconds(lambda: matrix @ matrix, device, sizes.rounds)
    peak = 2 * sizes.matrix**3 / product
    found["bf16_matrix_products_tflops"] = peak / 1e12
    small = Trainer(device, sizes.small // 2, dim=sizes.dim, depth=sizes.depth)

    def whole_step() -> None:
        small.draw(data)
        small.step()

    found["step_ms_of_small_batch"] = 1e3 * seconds(small.step, device, sizes.rounds)
    found["step_and_its_views_ms_of_small_batch"] = 1e3 * seconds(whole_step, device, sizes.rounds)
    found["step_ms_goal"] = 1.5
    large = Trainer(device, sizes.large // 2, dim=sizes.dim, depth=sizes.depth)
    large.draw(data)
    taken = seconds(large.step, device, sizes.rounds)
    encoder = large.model.encoder
    # Forward and twice as much backward, of the tokens that are seen; the decoder's are left out.
    operations = 3 * sizes.large * encoder.operations(1 + large.model.visible)
    found |= {"training_crops_per_s": sizes.large / taken, "share_of_peak": operations / taken / peak}
    found["share_of_peak_goal"] = 0.35
    return found | _inference(data, device, sizes, encoder.eval())


@torch.inference_mode()
def _inference(data: Resident, device: torch.device, sizes: Sizes, encoder: Encoder) -> dict[str, Any]:
    generator = torch.Generator(device).manual_seed(1)
    crops = views(boxes(data, sizes.embed, generator), generator)

    def embed() -> torch.Tensor:
        with half(device):
            return encoder(crops)

    found: dict[str, Any] = {"embedding_crops_per_s": sizes.embed / seconds(embed, device, sizes.rounds)}
    found["embedding_crops_per_s_goal"] = 100_000
    net, voxels = detector().to(device).eval(), torch.rand(1, 1, *sizes.volume, device=device)

    def detect() -> torch.Tensor:
        with half(device):
            return net(voxels)

    found["detection_mvoxel_per_s"] = voxels.numel() / seconds(detect, device, sizes.rounds) / 1e6
    few = crops[:64]
    reference = encoder.to("cpu")(few.cpu())
    encoder.to(device)
    for name, result in (("float32", encoder(few)), ("half", embed()[: len(few)])):
        off = (result.float().cpu() - reference).norm(dim=1) / reference.norm(dim=1)
        found[f"largest_relative_difference_to_cpu_{name}"] = float(off.max())
    found["largest_relative_difference_allowed"] = {"float32": 1e-4, "half": 0.05}
    assert crops.shape[2:] == CROP
    return found


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
