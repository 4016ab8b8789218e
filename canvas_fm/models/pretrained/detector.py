"""A detector with its preprocessing, as a torch module."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from canvas_fm.models.detector.convmixer import HeatMapNet
from canvas_fm.models.folder.model_config import DetectorConfig
from canvas_fm.models.folder.model_folder import LoadedModel
from canvas_fm.models.pretrained.preprocessing import WindowLike, check_shape, eager, windowed

# Of a config what determines its maps, and how far around a point the hottest voxel is looked for.
_MAP = ("architecture", "weights", "voxel_um", "window_rule", "smooth_um", "min_distance_um")


class Detector(LoadedModel):
    """A detector with its preprocessing, as a torch module.

    Called on boxes of voxels it gives logits of a cell centre at every voxel; `cf.detect` finds cells in a
    whole volume. `net` maps (n, channels, z, y, x) to the same logits, without checks. It is loaded in
    evaluation mode and frozen: `train()` and `requires_grad_()` before a training.
    """

    config: DetectorConfig
    net: HeatMapNet
    num_classes = 1

    def __init__(self, config: DetectorConfig, net: HeatMapNet, path: Path | None = None) -> None:
        super().__init__(config, net, path)

    def forward(
        self, crops: Shaped[Tensor, n * sizes], window: WindowLike | None = None
    ) -> Float[Tensor, "n z y x"]:
        """Logits of a cell centre at every voxel, before smoothing; boxes are (n, channels, z, y, x).

        Floats went through their volume's window and lie in [0, 1]; with `window`, (low, high) or (n, 2), of
        two channels (2, 2) or (n, 2, 2), they are raw intensities. Sizes are whole patches. Near the border,
        within `config.architecture. halo_zyx`, the logits are those of a volume that ends there. Raises
        CanvasError as the encoder does.
        """
        logits: Tensor = self.net(self.preprocess(crops, window))
        return logits

    def preprocess(
        self, crops: Shaped[Tensor, n * sizes], window: WindowLike | None = None
    ) -> Float[Tensor, "n c z y x"]:
        """Boxes as `net` takes them: checked, (n, channels, z, y, x), in [0, 1]."""
        channels = self.config.architecture.channels
        crops = check_shape(crops, channels, None, "detector")
        return windowed(crops, window, channels, check=eager() and not self.training)

    def forward_features(
        self, crops: Shaped[Tensor, n * sizes], window: WindowLike | None = None
    ) -> Float[Tensor, "n d pz py px"]:
        """Feature map (n, num_features, z, y, x), one vector a patch, as timm's convolutional nets."""
        return self.net.features(self.preprocess(crops, window))

    def forward_head(
        self, features: Float[Tensor, "n d pz py px"], pre_logits: bool = False
    ) -> Float[Tensor, "n ..."]:
        """Logits of the voxels from `forward_features`; with `pre_logits` the features as they are."""
        return features if pre_logits else self.net.logits(features)

    @property
    def num_features(self) -> int:
        """Channels of the feature map, as timm calls them."""
        return self.config.architecture.dim

    def maps_as(self, other: Detector) -> bool:
        """Whether maps of any volume, and what is read from them at a point, are those of `other`.

        Score, threshold and provenance may differ: they are not in the map. Edited weights are like no
        others.
        """
        ours, theirs = ({name: getattr(one.config, name) for name in _MAP} for one in (self, other))
        return ours == theirs and not (self.edited or other.edited)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.net.head.weight.device

    def __repr__(self) -> str:
        config = self.config
        size = sum(parameter.numel() for parameter in self.net.parameters()) / 1e6
        channels, um = config.architecture.channels, " × ".join(f"{u:g}" for u in config.voxel_um)
        return (
            f"Detector({self.name!r}: {channels} channel{'s' * (channels > 1)} at {um} µm "
            f"(z, y, x) → logits of cell centres, {size:.2f} M parameters, threshold {config.threshold:g}, "
            f"window {config.window_rule}, sha256 {self.sha256[:12]}{', edited' if self.edited else ''})"
        )
