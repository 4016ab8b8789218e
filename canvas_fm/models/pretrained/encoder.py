"""An encoder with its preprocessing, as a torch module."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from canvas_fm.errors import CanvasError
from canvas_fm.models.encoder.mae import MaskedAutoencoder
from canvas_fm.models.encoder.vit import ViTEncoder
from canvas_fm.models.folder.model_config import ModelConfig
from canvas_fm.models.folder.model_folder import LoadedModel
from canvas_fm.models.pretrained.preprocessing import WindowLike, check_shape, eager, windowed

DECODER_FILE = "decoder.safetensors"

T = TypeVar("T")


class Encoder(LoadedModel):
    """An encoder with its preprocessing and identity, as a torch module.

    Called on crops it gives one embedding a crop, by its own pooling. `net` maps float32 crops
    (n, c, z, y, x) in [0, 1] to embeddings, without checks; `mae` also reconstructs, where the folder carries
    a decoder, whose weights are no parameters of this module. It is loaded in evaluation mode and frozen:
    `train()` and `requires_grad_()` before a training. Copies and pickles give the same numbers.
    """

    config: ModelConfig
    net: ViTEncoder
    _mae: MaskedAutoencoder | None
    num_classes = 0  # as timm has it for a model without a classifier

    def __init__(
        self,
        config: ModelConfig,
        net: ViTEncoder,
        mae: MaskedAutoencoder | None,
        path: Path | None = None,
        *,
        name: str | None = None,
    ) -> None:
        super().__init__(config, net, path)
        self._name = name
        # Not registered: an optimizer over `parameters()` is not to see a decoder that no embedding passes.
        object.__setattr__(self, "_mae", mae)
        net.pool = config.pool
        self._kept: dict[Hashable, Any] = {}
        self._making = threading.Lock()

    def forward(
        self,
        crops: Shaped[Tensor, n * sizes],
        window: WindowLike | None = None,
        *,
        pool: str | None = None,
        layer: int | None = None,
    ) -> Float[Tensor, "n ..."]:
        """Embeddings (n, d) of crops (n, c, z, y, x), of one channel also (n, z, y, x), one a crop.

        Floats went through their volume's window and lie in [0, 1]; with `window` crops are raw intensities:
        (low, high), or (n, 2) for crops of several volumes; of two channels (2, 2) or (n, 2, 2). `pool` and
        `layer` are those of `ViTEncoder`. Raises CanvasError for another shape and, in evaluation mode, for
        values outside [0, 1].
        """
        embeddings: Tensor = self.net(self.preprocess(crops, window), pool, layer)
        return embeddings

    def preprocess(
        self, crops: Shaped[Tensor, n * sizes], window: WindowLike | None = None
    ) -> Float[Tensor, "n c z y x"]:
        """Crops as `net` takes them: checked, (n, c, z, y, x), in [0, 1]."""
        architecture = self.config.architecture
        crops = check_shape(crops, architecture.channels, architecture.crop_zyx, "encoder")
        return windowed(crops, window, architecture.channels, check=eager() and not self.training)

    def forward_features(
        self, crops: Shaped[Tensor, n * sizes], window: WindowLike | None = None
    ) -> Float[Tensor, "n sequence d"]:
        """Tokens (n, 1 + patches, d) after the final norm, class token first, as timm's transformers."""
        return self.net.tokens(self.preprocess(crops, window))

    def forward_head(
        self, features: Float[Tensor, "n sequence d"], pre_logits: bool = False
    ) -> Float[Tensor, "n d"]:
        """Embeddings from `forward_features`, by the model's pooling.

        Raises CanvasError for a model with descriptors, which are of the crop and not of its tokens.
        """
        if self.net.descriptors is not None:
            width = self.config.architecture.dim
            raise CanvasError(
                f"an embedding of {self.name} is {width} numbers of its tokens and {self.dim - width} of the "
                "crop itself, which tokens do not tell: call the model on crops, or net.pooled on the tokens"
            )
        return self.net.pooled(features, self.net.pool)

    @property
    def num_features(self) -> int:
        """Dimension of an embedding, as timm calls it."""
        return self.dim

    @property
    def name(self) -> str:
        """Folder name; for `runs/NAME/encoder` the run's."""
        return self._name or super().name

    @property
    def dim(self) -> int:
        """Dimension of an embedding."""
        return self.config.architecture.embedding_dim

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.net.cls_token.device

    @property
    def mae(self) -> MaskedAutoencoder:
        """Encoder with decoder; CanvasError if the folder has no decoder."""
        if self._mae is None:
            raise CanvasError(
                f"{self.path or 'this encoder'} has no {DECODER_FILE}, so it cannot reconstruct; "
                "embeddings do not need it"
            )
        return self._mae

    def kept(self, key: Hashable, make: Callable[[], T]) -> T:
        """Memoised result of `make` under a key, such as a compiled form; lives as long as this object."""
        with self._making:
            if key not in self._kept:
                self._kept[key] = make()
            cached: T = self._kept[key]
            return cached

    def forget(self) -> None:
        """Drop all memoised results, because a file on disk changed."""
        with self._making:
            self._kept.clear()

    def train(self, mode: bool = True) -> Encoder:
        """Training or evaluation mode, of the decoder too; returns itself."""
        self.forget()  # compiled forms hold the weights of before
        if self._mae is not None:
            self._mae.train(mode)
        switched: Encoder = super().train(mode)
        return switched

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Encoder:
        token = self.net.cls_token
        before = (token.device, token.dtype)
        super()._apply(fn, recurse)
        if self._mae is not None:
            self._mae.decoder._apply(fn, recurse)
        token = self.net.cls_token
        if (token.device, token.dtype) != before:
            self.forget()
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {
            key: value for key, value in super().__getstate__().items() if key not in ("_kept", "_making")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._kept, self._making = {}, threading.Lock()

    def __repr__(self) -> str:
        architecture, um = self.config.architecture, self.config.voxel_um
        crop = "×".join(map(str, architecture.crop_zyx))
        size = sum(parameter.numel() for parameter in self.net.parameters()) / 1e6
        both = " of 2 channels" if architecture.channels == 2 else ""
        return (
            f"Encoder({self.name!r}: crops {crop}{both} at {' × '.join(f'{u:g}' for u in um)} µm (z, y, x) → "
            f"{self.dim} numbers by pooling {self.net.pool!r}, {size:.1f} M parameters, "
            f"window {self.config.window_rule}, sha256 {self.sha256[:12]}{', edited' if self.edited else ''})"
        )
