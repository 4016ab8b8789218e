"""The detector's net: a 3D ConvMixer from windowed voxels to a heat map of cell centres."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.grad
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from canvas_fm.models.folder.network_config import ConvMixerConfig, LocalContrastConfig

_PLANES = 16  # of patches whose voxels are squared at a time


class Depthwise(nn.Conv3d):
    """Depthwise 3D convolution that preserves the size.

    On a CPU its gradient by the input is taken as a convolution with the mirrored kernel: 8 ms where torch's
    own takes 51 (32 channels, 37 k patches, kernel 3 × 5 × 5, one core).
    """

    def __init__(self, dim: int, kernel_zyx: tuple[int, int, int]) -> None:
        super().__init__(dim, dim, kernel_zyx, groups=dim, padding="same")

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda or not torch.is_grad_enabled():
            return super().forward(x)
        assert self.bias is not None
        return _DepthwiseByMirror.apply(x, self.weight) + self.bias[:, None, None, None]


class _DepthwiseByMirror(torch.autograd.Function):
    """In float32 under autocast too: its two gradients would else meet in different types."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv3d(x, weight, padding="same", groups=len(weight))

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        (gradient,) = gradients
        gradient = gradient.contiguous(memory_format=torch.channels_last_3d)
        half = [n // 2 for n in weight.shape[2:]]
        by_weight = torch.nn.grad.conv3d_weight(x, weight.shape, gradient, padding=half, groups=len(weight))
        mirrored = weight.flip(2, 3, 4).contiguous()
        return F.conv3d(gradient, mirrored, padding="same", groups=len(weight)), by_weight


class Pointwise(nn.Linear):
    """1 × 1 × 1 convolution as a matrix product: 10 ms forward and backward, Conv3d takes 44."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, x.ndim - 1)).movedim(x.ndim - 1, 1)


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class LocalContrast(nn.Module):
    """Three bounded views of each channel: intensity, relative and standardised local contrast.

    Its intensity u in units of the window's rule, as u / (u + 2); its difference from the mean of the
    surround over that mean; and over the surround's standard deviation. Each is squashed into (−1, 1), so
    that a cell at half and one at fifty times its surround are both seen.
    """

    def __init__(self, config: LocalContrastConfig, patch_zyx: tuple[int, int, int]) -> None:
        super().__init__()
        self.config, self.patch_zyx = config, patch_zyx

    def forward(self, voxels: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b c3 z y x"]:
        return self.views(voxels, *self.statistics(voxels))

    def statistics(
        self, voxels: Float[Tensor, "b c z y x"]
    ) -> tuple[Float[Tensor, "b c pz py px"], Float[Tensor, "b c pz py px"]]:
        """Mean and standard deviation of the surround of each patch, in units of the window's rule."""
        with torch.autocast(voxels.device.type, enabled=False):
            means, powers = [], []
            # A trace would keep the number of parts of its example.
            parts = [voxels] if torch.jit.is_tracing() else voxels.split(_PLANES * self.patch_zyx[0], dim=2)
            for planes in parts:
                value = planes.float() * self.config.width
                means.append(F.avg_pool3d(value, self.patch_zyx))
                powers.append(F.avg_pool3d(value * value, self.patch_zyx))
            mean, power = self._around(torch.cat(means, dim=2)), self._around(torch.cat(powers, dim=2))
            return mean, (power - mean * mean).clamp_min(0).sqrt()

    def views(
        self,
        voxels: Float[Tensor, "b c z y x"],
        mean: Float[Tensor, "b c pz py px"],
        deviation: Float[Tensor, "b c pz py px"],
    ) -> Float[Tensor, "b c3 z y x"]:
        """The three views of planes of voxels, whose statistics are given."""
        with torch.autocast(voxels.device.type, enabled=False):
            value = voxels.float() * self.config.width
            off = value - self._to_voxels(mean)
            relative = off / self._to_voxels(mean + 0.05)
            standard = off / self._to_voxels(deviation + 0.02 * mean + 1e-3)
            views = [value / (value + 2), relative / (2 + relative.abs()), standard / (3 + standard.abs())]
            return torch.cat(views, dim=1)

    def _around(self, mean: Tensor) -> Tensor:
        """Mean of the patches' means over the surround of each; what lies outside the volume is excluded."""
        for axis, n in enumerate(self.config.surround_zyx):
            kernel = [n if a == axis else 1 for a in range(3)]
            half = [k // 2 for k in kernel]
            if n <= mean.shape[axis + 2]:
                mean = F.avg_pool3d(mean, kernel, 1, half, count_include_pad=False)
                continue
            # torch refuses a kernel that is longer than a thin volume, whatever its padding.
            around = [pad for k in reversed(half) for pad in (k, k)]
            share = F.avg_pool3d(F.pad(torch.ones_like(mean), around), kernel, 1)
            mean = F.avg_pool3d(F.pad(mean, around), kernel, 1) / share
        return mean

    def _to_voxels(self, patches: Tensor) -> Tensor:
        for axis, n in enumerate(self.patch_zyx):
            patches = patches.repeat_interleave(n, dim=axis + 2) if n > 1 else patches
        return patches


def convmixer(config: ConvMixerConfig) -> nn.Sequential:
    """Voxels to one vector a patch: Trockman and Kolter, "Patches Are All You Need?", in 3D."""
    dim, kernel = config.dim, config.kernel_zyx

    def then_norm(convolution: nn.Module) -> nn.Sequential:
        return nn.Sequential(convolution, nn.GELU(), nn.BatchNorm3d(dim))

    contrast = config.contrast
    views = config.channels if contrast is None else 3 * config.channels
    embedding = nn.Conv3d(views, dim, config.patch_zyx, stride=config.patch_zyx)
    return nn.Sequential(
        *([] if contrast is None else [LocalContrast(contrast, config.patch_zyx)]),
        then_norm(embedding),
        *(
            nn.Sequential(
                Residual(then_norm(Depthwise(dim, kernel))),
                then_norm(Pointwise(dim, dim)),
            )
            for _ in range(config.depth)
        ),
    )


class HeatMapNet(nn.Module):
    """Windowed voxels in [0, 1] to the logit of a cell centre at every voxel.

    Nothing in it looks farther than `config.halo_zyx`, and no statistic is taken over space: a tile with that
    halo gives what the whole volume gives.
    """

    def __init__(self, config: ConvMixerConfig, *, prior: float = 0.01) -> None:
        super().__init__()
        self.config = config
        self.body = convmixer(config)
        self.head = Pointwise(config.dim, math.prod(config.patch_zyx))
        # A head that starts at the share of positive voxels: the focal loss does not start by unlearning 0.5.
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.constant_(self.head.bias, -math.log((1 - prior) / prior))

    def features(self, voxels: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b dim pz py px"]:
        """Feature map, one vector a patch; sizes must be multiples of the patch."""
        if any(n % p for n, p in zip(voxels.shape[2:], self.config.patch_zyx, strict=True)):
            raise ValueError(
                f"{tuple(voxels.shape[2:])} voxels are not whole patches {self.config.patch_zyx}"
            )
        # A float32 depthwise convolution runs 2 to 3 times faster on a CPU with the channels last.
        return self.body(voxels.contiguous(memory_format=torch.channels_last_3d))

    def logits(self, features: Float[Tensor, "b dim pz py px"]) -> Float[Tensor, "b z y x"]:
        """Logits of the voxels from each patch's vector."""
        z, y, x = self.config.patch_zyx
        return rearrange(self.head(features), "b (z y x) pz py px -> b (pz z) (py y) (px x)", z=z, y=y, x=x)

    def forward(self, voxels: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b z y x"]:
        return self.logits(self.features(voxels))


def focal_loss(
    logits: Float[Tensor, "*shape"],
    target: Float[Tensor, "*shape"],
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Float[Tensor, "*shape"]:
    """Binary focal loss of each voxel: −α_t (1 − p_t)^γ log p_t (Eq. 5 of Lin et al., "Focal Loss").

    `target` may lie between 0 and 1: α_t and p_t are then mixed, as for a cross entropy with soft labels.
    """
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    p = torch.sigmoid(logits)
    p_t = p * target + (1 - p) * (1 - target)
    alpha_t = alpha * target + (1 - alpha) * (1 - target)
    return alpha_t * (1 - p_t) ** gamma * loss


def pool_boxes(
    features: Float[Tensor, "dim pz py px"],
    starts_zyx: Int[Tensor, "n 3"],
    *,
    box_zyx: tuple[int, int, int],
    patch_zyx: tuple[int, int, int],
    bins: int = 2,
) -> Float[Tensor, "n pooled"]:
    """Mean feature in each of `bins`³ parts of boxes of voxels: `dim`·`bins`³ values a box.

    A box starts at any voxel, counted from the map's first; a patch counts by its share in the part. What
    lies outside the map is left out of the mean; a part wholly outside is 0. Order: channel, bin z, y, x.
    """
    (z, wz), (y, wy), (x, wx) = (
        _touched(starts_zyx[:, axis], box_zyx[axis], patch_zyx[axis], features.shape[1 + axis], bins)
        for axis in range(3)
    )
    # Only the patches that a part touches are gathered; the whole map for each box took 20 times as long.
    table, (stride_z, stride_y, stride_x) = _vectors_of_patches(features)
    z, wz = (t[:, :, None, None, :, None, None] for t in (z, wz))
    y, wy = (t[:, None, :, None, None, :, None] for t in (y, wy))
    x, wx = (t[:, None, None, :, None, None, :] for t in (x, wx))
    boxes, parts = len(starts_zyx), bins**3
    rows = (z * stride_z + y * stride_y + x * stride_x).reshape(boxes * parts, -1)
    weights = (wz * wy * wx).reshape(boxes * parts, -1)
    pooled = F.embedding_bag(rows, table, per_sample_weights=weights.to(table.dtype), mode="sum")
    return rearrange(pooled, "(n part) c -> n (c part)", n=boxes)


def _vectors_of_patches(
    features: Float[Tensor, "dim pz py px"],
) -> tuple[Float[Tensor, "rows dim"], tuple[int, int, int]]:
    """A map as a table with a vector in each row, and by how many rows one patch is from the next in z, y, x.

    The part of a map whose channels lie together in memory is not copied: rows of the whole are between its.
    """
    planes = rearrange(features, "c z y x -> z y x c")
    dim = planes.shape[-1]
    if planes.stride(-1) != 1 or any(stride % dim for stride in planes.stride()[:3]):
        planes = planes.contiguous()
    z, y, x = (stride // dim for stride in planes.stride()[:3])
    last = sum(stride * (n - 1) for stride, n in zip((z, y, x), planes.shape, strict=False))
    return planes.as_strided((last + 1, dim), (dim, 1)), (z, y, x)


def _touched(
    starts: Int[Tensor, " n"], box: int, patch: int, length: int, bins: int
) -> tuple[Int[Tensor, "n bins s"], Float[Tensor, "n bins s"]]:
    """Patches that each part of a box intersects along one axis, and their weights in its mean."""
    edges = torch.linspace(0, box, bins + 1, device=starts.device)
    low, high = ((starts[:, None] + edge)[..., None] for edge in (edges[:-1], edges[1:]))
    first = torch.floor(low / patch).long()
    index = first + torch.arange(math.ceil(box / bins / patch) + 1, device=starts.device)
    patch_low = index * float(patch)
    weight = (torch.minimum(high, patch_low + patch) - torch.maximum(low, patch_low)).clamp_min(0)
    weight = weight * ((index >= 0) & (index < length))
    return index.clamp(0, length - 1), weight / weight.sum(-1, keepdim=True).clamp_min(1e-12)
