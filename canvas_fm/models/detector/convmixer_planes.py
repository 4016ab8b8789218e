"""The detector's net on a CPU, a few planes at a time: `HeatMapNet` without its large temporaries.

Layer by layer over a tile every activation is fresh memory of the tile's size, and half of the time goes into
page faults. Here planes run through all layers while they are in the cache, from one small buffer to the
next; batch norm is a scale and a shift, and what can be done in place is.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from canvas_fm.models.detector.convmixer import HeatMapNet, LocalContrast

_BYTES = 1 << 21  # of the activations that run through the layers together; 1 to 4 MB are equally fast


@torch.inference_mode()
def features_by_planes(
    net: HeatMapNet, voxels: Float[Tensor, "c z y x"], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "dim pz py px"]:
    """`net.features` of one box, channels last in memory; float32, computed in `dtype`."""
    stream = _Stream(net, voxels, dtype)
    out = torch.empty((*stream.patches_zyx, net.config.dim))
    for start, planes in stream.run():
        out[start : start + len(planes)] = planes
    return rearrange(out, "z y x c -> c z y x")


@torch.inference_mode()
def heat_by_planes(
    net: HeatMapNet, voxels: Float[Tensor, "c z y x"], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "z y x"]:
    """Sigmoid of `net` of one box, computed in `dtype`."""
    stream, heat = _Stream(net, voxels, dtype), _HeatPlanes(net, voxels, dtype)
    for start, planes in stream.run():
        heat.add(start, planes)
    return heat.heat


@torch.inference_mode()
def features_and_heat_by_planes(
    net: HeatMapNet, voxels: Float[Tensor, "c z y x"], dtype: torch.dtype = torch.float32
) -> tuple[Float[Tensor, "dim pz py px"], Float[Tensor, "z y x"]]:
    """Outputs of `features_by_planes` and `heat_by_planes`, of one pass through the layers."""
    stream, heat = _Stream(net, voxels, dtype), _HeatPlanes(net, voxels, dtype)
    out = torch.empty((*stream.patches_zyx, net.config.dim))
    for start, planes in stream.run():
        out[start : start + len(planes)] = planes
        heat.add(start, planes)
    return rearrange(out, "z y x c -> c z y x"), heat.heat


class _HeatPlanes:
    """The heat map of a box, written plane by plane from the last layer's vectors."""

    def __init__(self, net: HeatMapNet, voxels: Tensor, dtype: torch.dtype) -> None:
        self.heat, self.patch_zyx = torch.empty(voxels.shape[1:]), net.config.patch_zyx
        self.weight, self.bias = net.head.weight.to(dtype), net.head.bias.to(dtype)

    def add(self, start: int, planes: Tensor) -> None:
        pz, py, px = self.patch_zyx
        y, x = planes.shape[1:3]
        probability = F.linear(planes, self.weight, self.bias).float().sigmoid_().view(-1, y, x, pz, py, px)
        into = self.heat[start * pz : (start + len(planes)) * pz].view(-1, pz, y, py, x, px)
        into.copy_(rearrange(probability, "z y x pz py px -> z pz y py x px"))


class _Stream:
    """Buffers of one pass: each layer's input planes, zero planes before the first and after the last."""

    def __init__(self, net: HeatMapNet, voxels: Tensor, dtype: torch.dtype) -> None:
        config = net.config
        sizes = zip(voxels.shape[1:], config.patch_zyx, strict=True)
        if any(n % p for n, p in sizes):
            raise ValueError(f"{tuple(voxels.shape[1:])} voxels are not whole patches {config.patch_zyx}")
        z, y, x = (n // p for n, p in zip(voxels.shape[1:], config.patch_zyx, strict=True))
        self.patches_zyx = (z, y, x)
        parts = list(net.body)
        contrast = parts.pop(0) if isinstance(parts[0], LocalContrast) else None
        self.embedding = _Embedding(parts[0], contrast, voxels, config.patch_zyx, dtype)
        margin = config.kernel_zyx[0] // 2
        self.step = max(margin, 1, _BYTES // (y * x * config.dim * dtype.itemsize))
        self.step = min(self.step, max(z, margin))
        shape = (2 * margin + self.step, y, x, config.dim)
        self.layers = [_Layer(part, torch.zeros(shape, dtype=dtype), margin) for part in parts[1:]]
        self.last = torch.empty((self.step, y, x, config.dim), dtype=dtype)

    def run(self) -> Any:
        """Yield (first plane, planes of the last layer); a buffer that the next step writes over."""
        z, done = self.patches_zyx[0], 0
        for start in range(0, z, self.step):
            count = min(self.step, z - start)
            self.embedding(start, self.layers[0].room(count))
            if count := self._through(0, count):
                yield done, self.last[:count]
                done += count
        for number, layer in enumerate(self.layers):
            if layer.margin:
                layer.room(layer.margin).zero_()
                if count := self._through(number, layer.margin):
                    yield done, self.last[:count]
                    done += count

    def _through(self, number: int, count: int) -> int:
        """Planes that come out of the last layer for `count` new ones of this layer's input."""
        following = [*(layer.room for layer in self.layers[number + 1 :]), lambda n: self.last[:n]]
        for layer, room in zip(self.layers[number:], following, strict=True):
            count = layer.advance(count, room)
            if not count:
                break
        return count


class _Layer:
    """x + norm(gelu(depthwise x)), then norm(gelu(pointwise)), on the planes in `buffer`."""

    def __init__(self, part: Any, buffer: Tensor, margin: int) -> None:
        depthwise, _, norm = part[0].inner
        pointwise, _, norm_after = part[1]
        self.buffer, self.margin, self.filled = buffer, margin, margin
        dtype = buffer.dtype
        self.kernel = depthwise.weight.to(dtype).contiguous(memory_format=torch.channels_last_3d)
        self.kernel_bias = depthwise.bias.to(dtype)
        self.padding = [0, *(n // 2 for n in depthwise.kernel_size[1:])]
        scale, shift = _scale_and_shift(norm)
        self.scale = scale.to(dtype)
        # The shift goes through the matrix that follows, into its bias.
        self.matrix = pointwise.weight.t().to(dtype)
        self.bias = (pointwise.bias + pointwise.weight @ shift).to(dtype)
        self.scale_after, self.shift_after = (t.to(dtype) for t in _scale_and_shift(norm_after))

    def room(self, count: int) -> Tensor:
        """Buffer of the next `count` input planes."""
        return self.buffer[self.filled : self.filled + count]

    def advance(self, count: int, room: Any) -> int:
        """Take `count` planes that were written, write as many outputs as they allow, and say how many."""
        self.filled += count
        ready = self.filled - 2 * self.margin
        if ready <= 0:
            return 0
        planes = self.buffer[: self.filled]
        images = rearrange(planes, "z y x c -> 1 c z y x")
        mixed = F.conv3d(images, self.kernel, self.kernel_bias, padding=self.padding, groups=planes.shape[-1])
        mixed = rearrange(torch.ops.aten.gelu_(mixed), "1 c z y x -> z y x c")
        torch.addcmul(planes[self.margin : self.margin + ready], mixed, self.scale, out=mixed)
        out = room(ready)
        torch.addmm(self.bias, _rows(mixed), self.matrix, out=_rows(out))
        torch.ops.aten.gelu_(out)
        out.mul_(self.scale_after).add_(self.shift_after)
        kept = self.buffer[ready : self.filled]
        self.buffer[: 2 * self.margin].copy_(kept if ready >= 2 * self.margin else kept.clone())
        self.filled = 2 * self.margin
        return ready


class _Embedding:
    """Patches of voxels, or of their local contrast, to the first layer's vectors."""

    def __init__(
        self, part: Any, contrast: Any, voxels: Tensor, patch_zyx: tuple[int, int, int], dtype: torch.dtype
    ) -> None:
        convolution, _, norm = part
        self.voxels, self.contrast, self.patch_zyx = voxels, contrast, patch_zyx
        self.statistics = () if contrast is None else contrast.statistics(voxels[None])
        self.matrix = rearrange(convolution.weight, "dim c z y x -> (c z y x) dim").to(dtype)
        self.bias = convolution.bias.to(dtype)
        self.scale, self.shift = (t.to(dtype) for t in _scale_and_shift(norm))

    def __call__(self, start: int, out: Tensor) -> None:
        """Write the vectors of the planes from `start` on, as many as `out` has."""
        z, y, x = self.patch_zyx
        planes = slice(start, start + len(out))
        voxels = self.voxels[None, :, start * z : (start + len(out)) * z]
        if self.contrast is not None:
            voxels = self.contrast.views(voxels, *(statistic[:, :, planes] for statistic in self.statistics))
        patches = rearrange(voxels[0], "c (z pz) (y py) (x px) -> (z y x) (c pz py px)", pz=z, py=y, px=x)
        torch.addmm(self.bias, patches.to(self.matrix.dtype), self.matrix, out=_rows(out))
        torch.ops.aten.gelu_(out)
        out.mul_(self.scale).add_(self.shift)


def _rows(planes: Tensor) -> Tensor:
    return planes.view(-1, planes.shape[-1])


def _scale_and_shift(norm: nn.BatchNorm3d) -> tuple[Tensor, Tensor]:
    """Batch norm of a trained net: what each channel is multiplied by, and what is added."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale
