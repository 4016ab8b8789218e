"""Encoder and training step, each beside its limit or its peer in the same run.

The encoder is held against the time of its own matrix products alone; the training step (forward, loss,
backward, clip, AdamW) against MONAI's MaskedAutoEncoderViT and lucidrains' vit-pytorch MAE of the same size,
both with the same optimizer; vit-pytorch's in bf16 too, MONAI's does not run under autocast. On a CPU
everything runs on one thread, keeps freed memory as our commands do, and is measured in seconds of that
processor.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from canvas_fm.models.allocator import keep_freed_memory
from canvas_fm.models.device import native_bf16, pick_device
from canvas_fm.models.encoder.mae import MaskedAutoencoder, content_aware_loss, loss_target, random_mask
from canvas_fm.models.encoder.vit import EncoderConfig, ViTEncoder
from canvas_fm.models.pretrained.torchvision_operators import declare_missing_operators
from tests.benchmarks.timing import medians, show

PAPER = EncoderConfig()
MASK_RATIO = 0.75


def autocast(device: torch.device, dtype: torch.dtype):
    return torch.autocast(device.type, dtype=dtype) if dtype != torch.float32 else nullcontext()


def matrix_products(batch: int, device: torch.device, dtype: torch.dtype) -> Callable[[], None]:
    """Every matrix product of one forward pass of the paper's encoder, and nothing else."""
    c = PAPER
    rows, sequence, head = batch * (c.tokens + 1), c.tokens + 1, c.dim // c.heads
    hidden = int(c.dim * c.mlp_ratio)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, device=device).to(dtype)

    patches, patch_weight = rand(batch * c.tokens, c.patch_voxels), rand(c.patch_voxels, c.dim)
    narrow, wide = rand(rows, c.dim), rand(rows, hidden)
    qkv, proj, up, down = rand(c.dim, 3 * c.dim), rand(c.dim, c.dim), rand(c.dim, hidden), rand(hidden, c.dim)
    q, k = rand(batch * c.heads, sequence, head), rand(batch * c.heads, head, sequence)
    attention, v = rand(batch * c.heads, sequence, sequence), rand(batch * c.heads, sequence, head)

    def run() -> None:
        torch.mm(patches, patch_weight)
        for _ in range(c.depth):
            torch.mm(narrow, qkv)
            torch.bmm(q, k)
            torch.bmm(attention, v)
            torch.mm(narrow, proj)
            torch.mm(narrow, up)
            torch.mm(wide, down)

    return run


def forward_pass(batch: int, device: torch.device, dtype: torch.dtype) -> Callable[[], None]:
    net = ViTEncoder(PAPER).to(device).eval().requires_grad_(False)
    crops = torch.rand(batch, 1, *PAPER.crop_zyx, device=device)

    def run() -> None:
        with autocast(device, dtype):
            net(crops)

    return run


def training_step(
    net: nn.Module, loss: Callable[[Tensor], Tensor], batch: int, device: torch.device, dtype: torch.dtype
) -> Callable[[], None]:
    net.to(device).train()
    optimizer = torch.optim.AdamW(
        net.parameters(), lr=1.5e-4, weight_decay=0.05, betas=(0.9, 0.95), fused=True
    )
    crops = torch.rand(batch, 1, *PAPER.crop_zyx, device=device)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, dtype):
            value = loss(crops)
        value.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()

    return run


def our_step(batch: int, device: torch.device, dtype: torch.dtype) -> Callable[[], None]:
    mae = MaskedAutoencoder()

    def loss(crops: Tensor) -> Tensor:
        drawn = random_mask(batch, mae.encoder.config.tokens, MASK_RATIO)
        visible, masked = (index.to(device) for index in drawn)
        made = mae.masked_patches(crops, visible, masked)
        target = loss_target(mae.target(crops), visible)
        mean_variance = target.variance.mean()
        top, bottom = content_aware_loss(made.patches, target.at(masked), mean_variance=mean_variance)
        return top / bottom

    return training_step(mae, loss, batch, device, dtype)


def monai_step(batch: int, device: torch.device, dtype: torch.dtype) -> Callable[[], None]:
    from monai.networks.nets import MaskedAutoEncoderViT

    net = MaskedAutoEncoderViT(
        in_channels=1, img_size=PAPER.crop_zyx, patch_size=PAPER.patch_zyx, hidden_size=384, mlp_dim=1536,
        num_layers=6, num_heads=6, masking_ratio=MASK_RATIO, decoder_hidden_size=192, decoder_mlp_dim=768,
        decoder_num_layers=4, decoder_num_heads=3, qkv_bias=True,
    )  # fmt: skip
    target_of = MaskedAutoencoder().target

    def loss(crops: Tensor) -> Tensor:
        made, mask = net(crops)
        error = (made.float() - target_of(crops)).square().mean(dim=-1)
        return (error * mask).sum() / mask.sum()

    return training_step(net, loss, batch, device, dtype)


def vit_pytorch_step(batch: int, device: torch.device, dtype: torch.dtype) -> Callable[[], None]:
    declare_missing_operators()  # it imports torchvision
    from vit_pytorch.mae import MAE
    from vit_pytorch.vit_3d import ViT

    (z, y, x), (pz, py, px) = PAPER.crop_zyx, PAPER.patch_zyx
    encoder = ViT(
        image_size=(y, x), image_patch_size=(py, px), frames=z, frame_patch_size=pz, channels=1,
        num_classes=1, dim=384, depth=6, heads=6, mlp_dim=1536, dim_head=64,
    )  # fmt: skip
    net = MAE(encoder=encoder, decoder_dim=192, masking_ratio=MASK_RATIO, decoder_depth=4, decoder_heads=3)
    return training_step(net, net, batch, device, dtype)


def main() -> None:
    device = pick_device()
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
        keep_freed_memory()
    try:
        encoder_against_its_products(device)
        step_against_peers(device)
    finally:
        torch.set_num_threads(threads)


def encoder_against_its_products(device: torch.device) -> None:
    rows = []
    with torch.inference_mode():
        for dtype, goal in ((torch.float32, 0.85), (torch.bfloat16, 0.65)):
            emulated = dtype == torch.bfloat16 and not native_bf16(device)
            batch = 1024 if device.type == "cuda" else 2 if emulated else 64
            work = {
                "encoder": forward_pass(batch, device, dtype),
                "products": matrix_products(batch, device, dtype),
            }
            seconds = medians(work, rounds=3 if emulated else 9, clock=_clock(device))
            ratio = seconds["products"] / seconds["encoder"]
            name = str(dtype).removeprefix("torch.") + (
                " (emulated: no such instructions here)" if emulated else ""
            )
            rows.append((f"{name}, batch {batch}", f"{batch / seconds['encoder']:,.1f} crops/s",
                         f"{ratio:.2f} of what its matrix products allow (goal {goal})"))  # fmt: skip
    show(f"encoder, {device.type}", rows)


def step_against_peers(device: torch.device) -> None:
    fp32, bf16 = torch.float32, torch.bfloat16
    batch = 64
    work = {
        "ours": our_step(batch, device, fp32),
        "MONAI": monai_step(batch, device, fp32),
        "vit-pytorch": vit_pytorch_step(batch, device, fp32),
    }
    seconds = medians(work, rounds=5, warm_up=1, clock=_clock(device))
    ours = seconds["ours"]
    rows = [("ours, fp32", f"{1000 * ours:,.1f} ms a step of {batch}", f"{batch / ours:,.1f} crops/s")]
    for peer in ("MONAI", "vit-pytorch"):
        speed = f"{seconds[peer] / ours:.2f} times its speed (goal 1.1 of the better)"
        rows.append((f"{peer}, fp32", f"{1000 * seconds[peer]:,.1f} ms", speed))
    few = batch if native_bf16(device) else 2
    work = {
        "fp32": our_step(few, device, fp32),
        "bf16": our_step(few, device, bf16),
        "vit-pytorch": vit_pytorch_step(few, device, bf16),
    }
    seconds = medians(work, rounds=3, warm_up=1, clock=_clock(device))
    note = "" if native_bf16(device) else ", emulated: no such instructions here"
    gain = f"{seconds['fp32'] / seconds['bf16']:.2f} times fp32 (goal 2 with AMX{note})"
    rows.append((f"ours, bf16, batch {few}", f"{1000 * seconds['bf16']:,.1f} ms", gain))
    speed = f"{seconds['vit-pytorch'] / seconds['bf16']:.2f} times its speed"
    rows.append(("vit-pytorch, bf16", f"{1000 * seconds['vit-pytorch']:,.1f} ms", speed))
    show(f"training step, mask ratio {MASK_RATIO}, {device.type}", rows)


def _clock(device: torch.device) -> Callable[[], float]:
    """Seconds of the processor on a CPU, which other work hardly changes, else of the clock."""
    return time.process_time if device.type == "cpu" else time.perf_counter
