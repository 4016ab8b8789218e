"""Evaluation during training: fixed crops and masks, the model next to trivial predictors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from canvas_fm.errors import counted
from canvas_fm.evaluation.metrics.reconstruction import Batch, Tally
from canvas_fm.evaluation.page.figures import reconstruction_figure
from canvas_fm.models.encoder.mae import (
    LossTarget,
    MaskedAutoencoder,
    content_aware_loss,
    loss_target,
    random_mask,
)
from canvas_fm.models.encoder.vit import patchify, unpatchify
from canvas_fm.training.mae.augment import to_unit
from canvas_fm.training.mae.training_crops import CropSet, VolumeSource, draw_crops
from canvas_fm.training.recipe.recipe import Recipe

KINDS = {"random": 0.0, "foreground": 1.0}  # share of crops on signal


@dataclass
class FixedCrops:
    """Evaluation crops with fixed masks; of two channels `raw` and `windows` hold both."""

    volume: str
    kind: str
    held_out: bool
    crops: CropSet
    raw: Tensor
    windows: Tensor
    visible: Tensor
    mean_variance: float = 0.0  # of all their patches, in the unit of the recipe's error
    voxel_variance: float = 0.0  # mean of all their patches', in windowed voxels
    trivial: dict[str, Tally] = field(default_factory=dict)  # the same at every step, so computed once

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(windowed crops (b, c, z, y, x), visible tokens (b, k)) on the CPU."""
        for start in range(0, len(self.raw), size):
            yield self._rows(slice(start, start + size))

    def highest_variance(self) -> tuple[Tensor, Tensor]:
        """The crop of highest variance with its visible tokens, as a batch of one."""
        variance = torch.cat([crops[:, 0].var(dim=(1, 2, 3)) for crops, _ in self.batches(64)])
        row = int(variance.argmax())
        return self._rows(slice(row, row + 1))

    def _rows(self, rows: slice) -> tuple[Tensor, Tensor]:
        return to_unit(self.raw[rows], self.windows[rows]), self.visible[rows]


def held_out_crops(recipe: Recipe, held_out: Sequence[VolumeSource], show: bool | None) -> list[FixedCrops]:
    """`evaluation.crops` random and as many foreground crops of each held-out volume."""
    return [
        _fixed(recipe, source.name, kind, True, [source], recipe.evaluation.crops, share, show)
        for source in held_out
        for kind, share in KINDS.items()
    ]


def training_crops(recipe: Recipe, training: Sequence[VolumeSource], show: bool | None) -> list[FixedCrops]:
    """`evaluation.crops` crops of all training volumes together, used if nothing is held out."""
    share = recipe.data.foreground
    return [_fixed(recipe, "training", "training", False, training, recipe.evaluation.crops, share, show)]


def _fixed(
    recipe: Recipe,
    volume: str,
    kind: str,
    held_out: bool,
    sources: Sequence[VolumeSource],
    n: int,
    foreground: float,
    show: bool | None,
) -> FixedCrops:
    encoder, seed = recipe.model.encoder, recipe.evaluation.seed
    crops = draw_crops(
        sources, encoder.crop_zyx, n, foreground=foreground, seed=seed, rule=recipe.data.window.rule
    )
    generator = torch.Generator().manual_seed(seed)
    visible, _ = random_mask(n, encoder.tokens, recipe.model.mask_ratio, generator=generator)
    raw, windows = crops.read_channels(label=f"reading {volume}, {kind}", show=show)
    fixed = FixedCrops(volume, kind, held_out, crops, raw, windows, visible)
    targets = (_target(recipe, *batch) for batch in fixed.batches(recipe.evaluation.batch))
    fixed.mean_variance = float(torch.cat([target.variance for target in targets]).mean())
    patches = (
        patchify(crops[:, :1], encoder.patch_zyx) for crops, _ in fixed.batches(recipe.evaluation.batch)
    )
    fixed.voxel_variance = float(torch.cat([part.var(dim=-1, unbiased=False) for part in patches]).mean())
    return fixed


def _target(recipe: Recipe, crops: Float[Tensor, "b c z y x"], visible: Int[Tensor, "b k"]) -> LossTarget:
    encoder = recipe.model.encoder
    return loss_target(patchify(crops, encoder.patch_zyx), visible, recipe.loss.error, encoder.channels)


def evaluate(
    recipe: Recipe,
    mae: MaskedAutoencoder,
    fixed: FixedCrops,
    step: int,
    mean_variance: float | None = None,
) -> dict[str, Any]:
    """One row of metrics: loss, PSNR and SSIM of the model and each trivial predictor.

    The loss is the training's, in the recipe's unit; its scale is `mean_variance` where the training has a
    fixed one, else that of all these crops. PSNR and SSIM are those of the signal, whatever other channel
    there is; they are split into patches of high variance, above the
    mean of these crops' patches, and of low one. In fp32 and batch by batch; how many crops a batch holds
    does not change the row. Where the model was given something of what it predicts, `given` says what: only
    `patch_mean` was given as much.
    """
    patch_zyx, size = recipe.model.encoder.patch_zyx, recipe.evaluation.batch
    statistics = recipe.model.decoder.masked_statistics
    model, error, weight = Tally(), 0.0, 0.0
    trivial: dict[str, Tally] = {}
    for crops, visible in fixed.batches(size):
        patches, masked = predict(mae, crops, visible)
        sums = content_aware_loss(
            patches,
            _target(recipe, crops, visible),
            alpha=recipe.loss.alpha,
            gamma=recipe.loss.gamma,
            mean_variance=fixed.mean_variance if mean_variance is None else mean_variance,
        )
        error, weight = error + sums[0].item(), weight + sums[1].item()
        batch = Batch(crops[:, 0].numpy(), masked.numpy(), patch_zyx, fixed.voxel_variance)
        model += batch.tally(_voxels(mae, patches))
        if not fixed.trivial:
            for name, tally in batch.trivial_tallies().items():
                trivial[name] = trivial.get(name, Tally()) + tally
    fixed.trivial = fixed.trivial or trivial
    return {
        "kind": "eval",
        "step": step,
        "volume": fixed.volume,
        "crops": fixed.kind,
        "held_out": fixed.held_out,
        "n": len(fixed.raw),
        "mask_ratio": recipe.model.mask_ratio,
        **({} if statistics is None else {"given": statistics}),
        "loss": error / weight,
        **model.scores(),
        **{name: tally.scores() for name, tally in fixed.trivial.items()},
    }


def draw_figure(mae: MaskedAutoencoder, fixed: FixedCrops, row: dict[str, Any], folder: Path) -> None:
    """Four-row figure of a set's crop of highest variance, named by volume and step."""
    crops, visible = fixed.highest_variance()
    patches, masked = predict(mae, crops, visible)
    voxels, hidden = _voxels(mae, patches), masked.numpy()
    patch_zyx = mae.encoder.config.patch_zyx
    crop_psnr = Batch(crops[:, 0].numpy(), hidden, patch_zyx).tally(voxels).scores()["psnr_masked"]
    title = (
        f"{fixed.volume}{'' if fixed.held_out else ' crops'} ({fixed.kind}), step {row['step']}, "
        f"mask ratio {row['mask_ratio']:g}; masked PSNR {crop_psnr:.2f} dB here, "
        f"{row['psnr_masked']:.2f} dB over {counted(row['n'], 'crop')}"
        f"{'; given: ' + row['given'] if 'given' in row else ''}"
    )
    name = f"{fixed.volume.replace('/', '_')}_{row['step']:07d}.png"
    reconstruction_figure(
        crops[0, 0].numpy(), hidden[0], voxels[0], folder / name, patch_zyx=patch_zyx, title=title
    )


@torch.no_grad()
def predict(
    mae: MaskedAutoencoder, crops: Float[Tensor, "b c z y x"], visible: Int[Tensor, "b k"]
) -> tuple[Float[Tensor, "b tokens voxels"], Bool[Tensor, "b tokens"]]:
    """(predictions of all patches, mask), computed on the model's device, returned on the CPU."""
    device = next(mae.parameters()).device
    mae.eval()
    reconstruction = mae(crops.to(device), visible=visible.to(device))
    mae.train()
    return reconstruction.patches.float().cpu(), reconstruction.masked.cpu()


def _voxels(
    mae: MaskedAutoencoder, patches: Float[Tensor, "b tokens voxels"]
) -> Float[np.ndarray, "b z y x"]:
    config = mae.encoder.config
    return unpatchify(patches, config.grid_zyx, config.patch_zyx)[:, 0].numpy()
