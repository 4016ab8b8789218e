"""Heat maps: the trained net or the Laplacian of a Gaussian, with their receptive fields."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32
from scipy.ndimage import gaussian_filter

from canvas_fm.data.volume.volume import Zyx, ZyxUm
from canvas_fm.inference.detect.maxima.laplacian import log_reach, log_response
from canvas_fm.inference.detect.tiles.tiles import pad_to

if TYPE_CHECKING:  # torch is imported by the net's heat map alone: the Laplacian needs none
    import torch

    from canvas_fm.models.load_model import Detector

SMOOTH_REACH = 3.0  # in σ


@runtime_checkable
class HeatMapper(Protocol):
    """Protocol: windowed voxels to a heat map.

    Nothing farther than `halo_zyx` counts; boxes start at multiples of `align_zyx`.
    """

    halo_zyx: Zyx
    align_zyx: Zyx
    channels: int

    def __call__(self, voxels: Float32[np.ndarray, "c z y x"]) -> Float32[np.ndarray, "z y x"]: ...


class NetHeatMapper:
    """Probability map of cell centres by the trained net, before smoothing."""

    def __init__(
        self, detector: Detector, device: str | torch.device = "auto", precision: str = "auto"
    ) -> None:
        from canvas_fm.models.device import pick_device, resolved_precision

        detector.check_unedited()
        self.detector, self.device = detector, str(device)
        self.precision = resolved_precision(precision, pick_device(device))  # of every worker too
        architecture = detector.config.architecture
        self.halo_zyx, self.align_zyx = architecture.halo_zyx, architecture.patch_zyx
        self.channels = architecture.channels

    def __call__(self, voxels: Float32[np.ndarray, "c z y x"]) -> Float32[np.ndarray, "z y x"]:
        import torch

        with torch.inference_mode():
            return self._heat(voxels)

    def _heat(self, voxels: Float32[np.ndarray, "c z y x"]) -> Float32[np.ndarray, "z y x"]:
        import torch

        from canvas_fm.models.detector.convmixer_planes import heat_by_planes
        from canvas_fm.models.device import pick_device, pick_precision

        device = pick_device(self.device)
        if self.detector.device != device:
            self.detector.to(device)
        dtype = pick_precision(self.precision, device)
        box = torch.from_numpy(np.ascontiguousarray(pad_to(voxels, self.align_zyx)))
        if device.type == "cpu":
            heat = heat_by_planes(self.detector.net, box, dtype).numpy()
        else:
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                logits = self.detector.net(box[None].to(device))[0]
            heat = torch.sigmoid(logits.float()).cpu().numpy()
        z, y, x = voxels.shape[1:]
        return heat[:z, :y, :x]


class LaplacianHeatMapper:
    """Response of the Laplacian of a Gaussian, not a probability."""

    def __init__(self, sigma_um: float, voxel_um: ZyxUm) -> None:
        self.sigma_um, self.voxel_um = sigma_um, voxel_um
        self.halo_zyx: Zyx = log_reach(sigma_um, voxel_um)
        self.align_zyx: Zyx = (1, 1, 1)
        self.channels = 1

    def __call__(self, voxels: Float32[np.ndarray, "c z y x"]) -> Float32[np.ndarray, "z y x"]:
        return log_response(voxels[0], self.sigma_um, self.voxel_um)


def smooth_reach(smooth_um: float, voxel_um: ZyxUm) -> Zyx:
    """Receptive field of the smoothing, in voxels."""
    z, y, x = (int(SMOOTH_REACH * smooth_um / um + 0.5) for um in voxel_um)
    return z, y, x


def smooth(
    heat: Float32[np.ndarray, "z y x"], smooth_um: float, voxel_um: ZyxUm
) -> Float32[np.ndarray, "z y x"]:
    """Heat map smoothed by a Gaussian of `smooth_um`, which suppresses single hot voxels."""
    if smooth_um == 0:
        return heat
    return gaussian_filter(heat, [smooth_um / um for um in voxel_um], mode="nearest", truncate=SMOOTH_REACH)
