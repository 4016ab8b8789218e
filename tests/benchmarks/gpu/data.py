"""Training data on the device: blocks of volumes as uint16, and simple phantoms that are drawn there."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.benchmarks.gpu.net import CROP

BOX = (14, 34, 34)  # around a place: holds every view of its centre
BLOCK = (40, 128, 128)
MOST_BYTES = 30_000_000  # of the packed file


class Resident(NamedTuple):
    """Blocks (n, z, y, x) as int16 bits of uint16, their windows, and places (m, 4): block, z, y, x."""

    blocks: Tensor
    windows: Tensor
    places: Tensor


def load_packed(path: Path, device: torch.device) -> Resident:
    """The packed file's arrays `blocks`, `windows` and `places`, on the device."""
    with np.load(path) as packed:
        blocks = torch.from_numpy(packed["blocks"].view(np.int16)).to(device)
        windows = torch.from_numpy(packed["windows"].astype(np.float32)).to(device)
        return Resident(blocks, windows, torch.from_numpy(packed["places"].astype(np.int64)).to(device))


def draw_phantoms(n: int, generator: torch.Generator, block: tuple[int, int, int] = BLOCK) -> Resident:
    """Blocks of round and elongated cells over haze and noise; size, brightness and density vary by block."""
    device = generator.device

    def even(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator, device=device)

    blocks, places = [], []
    for number in range(n):
        cells = int(even(30, 200, 1).item())
        at = torch.stack([even(4, s - 5, cells).long() for s in block], dim=1)
        image = torch.zeros(1, 1, *block, device=device)
        image[0, 0, at[:, 0], at[:, 1], at[:, 2]] = even(0.3, 1.0, cells)
        sigma = (float(even(0.6, 1.4, 1)), *([float(even(1.2, 3.0, 1))] * 2))
        image = _blurred(image, sigma)
        haze = F.interpolate(even(0.0, 1.0, 1, 1, 3, 5, 5), size=block, mode="trilinear")
        bright = float(even(400, 4000, 1))
        image = 200 + bright * image / image.max() + float(even(0, 300, 1)) * haze
        image = image + image.sqrt() * torch.randn(image.shape, generator=generator, device=device)
        blocks.append(image[0, 0].clamp(0, 30_000).to(torch.int16))
        places.append(torch.cat([torch.full_like(at[:, :1], number), at], dim=1))
    stack = torch.stack(blocks)
    flat = stack.flatten(1)[:, ::37].float()
    windows = torch.stack([flat.quantile(0.005, dim=1), flat.quantile(0.999, dim=1)], dim=1)
    return Resident(stack, windows, torch.cat(places))


def joined(parts: list[Resident]) -> Resident:
    """Several sets in one; blocks have one size."""
    first, places = 0, []
    for part in parts:
        shift = torch.tensor([first, 0, 0, 0], device=part.places.device)
        places.append(part.places + shift)
        first += len(part.blocks)
    return Resident(
        torch.cat([p.blocks for p in parts]), torch.cat([p.windows for p in parts]), torch.cat(places)
    )


def boxes(data: Resident, n: int, generator: torch.Generator, share: float = 0.7) -> Tensor:
    """Windowed boxes (n, 1, *BOX), a share of them around places and the rest anywhere."""
    device, size = data.blocks.device, torch.tensor(data.blocks.shape[1:], device=data.blocks.device)
    box = torch.tensor(BOX, device=device)
    at = data.places[torch.randint(len(data.places), (n,), generator=generator, device=device)]
    anywhere = torch.rand(n, 3, generator=generator, device=device) * size
    use = torch.rand(n, 1, generator=generator, device=device) < share
    start = torch.where(use, at[:, 1:], anywhere.long()) - box // 2
    start = torch.minimum(start.clamp_min(0), size - box)
    z, y, x = (start[:, a, None] + torch.arange(BOX[a], device=device) for a in range(3))
    raw = data.blocks[at[:, 0, None, None, None], z[:, :, None, None], y[:, None, :, None], x[:, None, None]]
    low, high = data.windows[at[:, 0]].unbind(dim=1)
    voxels = (raw.to(torch.int32) & 0xFFFF).float()
    scaled = (voxels - low[:, None, None, None]) / (high - low)[:, None, None, None]
    return scaled[:, None]


def views(box: Tensor, generator: torch.Generator) -> Tensor:
    """One view of each box: shifted, turned, scaled, with other gain, gamma, offset and noise."""
    n, device = len(box), box.device

    def even(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=generator, device=device)

    angle, scale = even(0, 2 * math.pi), even(-0.18, 0.18).exp()
    flip = torch.where(even(0, 1, 3) < 0.5, -1.0, 1.0)
    shift = even(-1, 1, 3) * torch.tensor([1.4, 2.9, 2.9], device=device)
    axes = (torch.arange(s, device=device) - s // 2 for s in CROP)
    offset = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).float()
    z, y, x = (flip[:, None, None, None] * offset).unbind(dim=-1)
    cos, sin = ((f(angle) * scale)[:, None, None, None] for f in (torch.cos, torch.sin))
    turned = (z * scale[:, None, None, None], cos * y - sin * x, sin * y + cos * x)
    grid = [
        2 * (t + shift[:, axis, None, None, None] + size // 2) / (size - 1) - 1
        for axis, (t, size) in enumerate(zip(turned, BOX, strict=True))
    ]
    crop = F.grid_sample(box, torch.stack(grid[::-1], dim=-1), padding_mode="border", align_corners=True)
    deviation = crop.std(dim=(2, 3, 4), keepdim=True) + 0.005
    low, high = crop.amin((2, 3, 4), keepdim=True), crop.amax((2, 3, 4), keepdim=True)
    unit = ((crop - low) / (high - low + 1e-6)).clamp(1e-6, 1)
    crop = low + (high - low) * unit ** even(-0.45, 0.45, 1, 1, 1, 1).exp()
    noise = torch.randn(crop.shape, generator=generator, device=device)
    crop = crop + deviation * even(0, 0.5, 1, 1, 1, 1) * noise
    return (crop * even(-0.6, 0.6, 1, 1, 1, 1).exp() + even(-0.05, 0.05, 1, 1, 1, 1)).clamp(0, 1)


def _blurred(image: Tensor, sigma: tuple[float, float, float]) -> Tensor:
    for axis, width in enumerate(sigma):
        reach = math.ceil(3 * width)
        at = torch.arange(-reach, reach + 1, device=image.device, dtype=torch.float32)
        kernel = torch.exp(-0.5 * (at / width) ** 2)
        shape, padding = [1, 1, 1, 1, 1], [0, 0, 0]
        shape[2 + axis], padding[axis] = len(kernel), reach
        image = F.conv3d(image, (kernel / kernel.sum()).view(shape), padding=padding)
    return image
