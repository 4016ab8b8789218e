"""A start for a detector from an encoder: knowledge distillation of its tokens into the detector's net.

An encoder takes 20 to 40 times as long a voxel as the detector's net. So the net does not read the encoder's
tokens: it learns, without labels, to predict them (Hinton et al., "Distilling the Knowledge in a Neural
Network", for features), and starts its training on cells from there. Afterwards it costs what it always does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from canvas_fm.data.volume.volume import Zyx
from canvas_fm.data.zyx import VOXEL_TOLERANCE
from canvas_fm.errors import CanvasError, ModelMismatch
from canvas_fm.models.detector.convmixer import HeatMapNet
from canvas_fm.models.device import pick_device
from canvas_fm.models.encoder.vit import ViTEncoder
from canvas_fm.models.load_model import Encoder, load, save_detector
from canvas_fm.progress import bar
from canvas_fm.training.detector.optimizer_step import Brightness, new_net
from canvas_fm.training.mae.augment import to_unit
from canvas_fm.training.mae.training_crops import CropSet, VolumeSource, draw_crops
from canvas_fm.training.recipe.detector_recipe import DetectorRecipe

_WINDOWS = 64  # crops that go through the encoder together


class Distilled(NamedTuple):
    """A net that predicts an encoder's tokens, and the share of their variance that it explains."""

    net: HeatMapNet
    explained: float


def write_start(
    folder: Path,
    recipe: DetectorRecipe,
    sources: Sequence[VolumeSource],
    *,
    device: str | torch.device,
    show: bool | None,
) -> None:
    """Write the distilled net as a detector folder, for `start`; its threshold has no meaning yet.

    Raises CanvasError where the encoder's voxel size or patches do not fit the recipe.
    """
    assert recipe.init is not None
    if not sources:
        raise CanvasError("init needs volumes, on which the net learns an encoder's tokens; none were given")
    encoder = load(recipe.init.encoder, kind="encoder")
    crop_zyx = _crop_zyx(recipe, encoder, sources)
    net, explained = distil(recipe, encoder.to(pick_device(device)), sources, crop_zyx, show)
    about = recipe.init.model_dump(mode="json")
    about |= {"encoder": encoder.sha256, "explained": round(explained, 4)}
    seen = [*(encoder.config.provenance.get("trained_on") or []), *({"name": s.name} for s in sources)]
    save_detector(
        folder,
        net,
        voxel_um=sources[0].resample_to or sources[0].volume.voxel_um,
        threshold=0.5,
        min_distance_um=recipe.detection.min_distance_um,
        smooth_um=recipe.detection.smooth_um,
        window_rule=recipe.data.window.rule,
        provenance={"distilled_from": about, "trained_on": seen},
    )


def distil(
    recipe: DetectorRecipe,
    encoder: Encoder,
    sources: Sequence[VolumeSource],
    crop_zyx: Zyx,
    show: bool | None = None,
) -> Distilled:
    """The recipe's net after it has learned an encoder's tokens on random crops, half of them on signal.

    The encoder sees crops in its own window; the net sees them in the recipe's, with the recipe's changes of
    brightness, to which it so becomes indifferent as far as they do not change what a token says.
    """
    options = recipe.init
    assert options is not None
    crops = draw_crops(
        sources, crop_zyx, options.crops, foreground=0.5, seed=recipe.seed, rule=recipe.data.window.rule
    )
    raw, windows = crops.read(label="reading crops", show=show), torch.from_numpy(crops.windows)
    own = CropSet(crops.sources, crops.starts_zyx, crop_zyx, encoder.config.window_rule)
    targets = _standardised(encoder.net, raw, torch.from_numpy(own.windows), encoder.device, show)
    net = new_net(recipe).to(encoder.device).train()
    kernel = _patches_a_token(recipe, encoder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        readout = nn.Linear(recipe.model.dim, encoder.config.architecture.dim).to(encoder.device)
    parameters = [*net.body.parameters(), *readout.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=options.learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.learning_rate, options.steps)
    generator = torch.Generator().manual_seed(recipe.seed)
    errors = []
    with bar("distilling the encoder", options.steps, unit="steps", show=show) as advance:
        for _ in range(options.steps):
            rows = torch.randint(len(raw), (options.batch,), generator=generator)
            brightness = Brightness(recipe.augment, options.batch, generator)
            voxels = brightness.apply(raw[rows], windows[rows], slice(None))[:, None].to(encoder.device)
            tokens = F.avg_pool3d(net.features(voxels), kernel)
            predicted = readout(tokens.movedim(1, -1)).movedim(-1, 1)
            error = F.mse_loss(predicted, targets[rows].to(predicted))
            error.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
            errors.append(float(error.detach()))
            advance(1)
    return Distilled(net.eval(), 1 - float(np.mean(errors[-20:])))


@torch.inference_mode()
def token_map(net: ViTEncoder, crops: Float[Tensor, "b 1 z y x"]) -> Float[Tensor, "b d tz ty tx"]:
    """Tokens of crops of any whole number of the encoder's crops, each of which is read by itself."""
    cz, cy, cx = net.config.crop_zyx
    nz, ny, nx = (n // c for n, c in zip(crops.shape[2:], (cz, cy, cx), strict=True))
    windows = rearrange(crops, "b 1 (nz z) (ny y) (nx x) -> (b nz ny nx) 1 z y x", z=cz, y=cy, x=cx)
    tokens = torch.cat([net(part, "grid") for part in windows.split(_WINDOWS)])
    return rearrange(tokens, "(b nz ny nx) d z y x -> b d (nz z) (ny y) (nx x)", nz=nz, ny=ny, nx=nx)


def _standardised(
    net: ViTEncoder, raw: Tensor, windows: Tensor, device: torch.device, show: bool | None
) -> Float[Tensor, "n d tz ty tx"]:
    """Token maps of all crops in float16, on the CPU: mean 0 and variance 1 in each feature.

    The mean is taken at each place in the encoder's crop: what a token says of its place alone is not to be
    predicted from voxels.
    """
    maps = []
    with bar("tokens of the encoder", len(raw), unit="crops", show=show) as advance:
        for crop, window in zip(raw, windows, strict=True):
            voxels = to_unit(crop[None], window[None]).to(device)
            maps.append(token_map(net, voxels).cpu())
            advance(1)
    tokens = torch.cat(maps)
    z, y, x = net.config.grid_zyx
    places = rearrange(tokens, "n d (nz z) (ny y) (nx x) -> d (n nz ny nx) z y x", z=z, y=y, x=x)
    places -= places.mean(dim=1, keepdim=True)
    places /= places.std(dim=(1, 2, 3, 4), keepdim=True) + 1e-6
    nz, ny, nx = (n // c for n, c in zip(tokens.shape[2:], (z, y, x), strict=True))
    return rearrange(places.half(), "d (n nz ny nx) z y x -> n d (nz z) (ny y) (nx x)", nz=nz, ny=ny, nx=nx)


def _patches_a_token(recipe: DetectorRecipe, encoder: Encoder) -> Zyx:
    """Patches of the net in one of the encoder's, on each axis."""
    token, patch = encoder.config.architecture.patch_zyx, recipe.model.patch_zyx
    if any(t % p for t, p in zip(token, patch, strict=True)):
        raise CanvasError(
            f"the encoder {encoder.name} has patches of {token} voxels, which are no whole patches of the "
            f"detector's net, {patch}: set model.patch_zyx so that they are"
        )
    z, y, x = (t // p for t, p in zip(token, patch, strict=True))
    return z, y, x


def _crop_zyx(recipe: DetectorRecipe, encoder: Encoder, sources: Sequence[VolumeSource]) -> Zyx:
    """The recipe's crop, or the largest in it of whole crops of the encoder; checks that both fit."""
    _patches_a_token(recipe, encoder)
    if recipe.model.channels != 1:
        raise CanvasError(f"model.channels is {recipe.model.channels}; init needs a net of one channel")
    if encoder.config.architecture.channels != 1:
        raise CanvasError(
            f"the encoder {encoder.name} takes two channels; init needs one of a single channel"
        )
    um = np.asarray(sources[0].resample_to or sources[0].volume.voxel_um)
    off = np.abs(um / encoder.config.voxel_um - 1).max()
    if off > VOXEL_TOLERANCE * (1 + 1e-9) and not recipe.data.ignore_voxel_size:
        sizes = [" × ".join(f"{n:g}" for n in size) for size in (um, encoder.config.voxel_um)]
        raise ModelMismatch(
            f"{sources[0].name} is read at {sizes[0]} µm (z × y × x), the encoder {encoder.name} was trained "
            f"at {sizes[1]} µm: give --resample with the encoder's, or --ignore-voxel-size"
        )
    unit = encoder.config.architecture.crop_zyx
    z, y, x = (max(n // c, 1) * c for n, c in zip(recipe.data.crop_zyx, unit, strict=True))
    return z, y, x
