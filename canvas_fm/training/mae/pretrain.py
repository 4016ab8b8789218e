"""Pretraining: recipe and volumes to a run with an encoder; resumes after a kill."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from canvas_fm.data.volume.volume import Volume, ZyxUm
from canvas_fm.training.joint.joint_task import JointPretraining
from canvas_fm.training.mae.mae_task import Pretraining
from canvas_fm.training.recipe.joint_recipe import JointRecipe
from canvas_fm.training.recipe.read_recipe import pretraining_class
from canvas_fm.training.recipe.recipe import Recipe
from canvas_fm.training.run.folder.run_folder import Run
from canvas_fm.training.run.held_out_split import check_companions, name_volumes, resolve, split_volumes
from canvas_fm.training.run.trainer import train


def pretrain(
    recipe: Recipe | JointRecipe | str | Path,
    volumes: Sequence[Volume | str | Path],
    *,
    out: str | Path,
    background: Sequence[Volume | str | Path] | None = None,
    resume: bool = False,
    device: str | torch.device = "auto",
    seed: int | None = None,
    overrides: Sequence[str] = (),
    held_out: int | Sequence[str] = (),
    resample_to: ZyxUm | None = None,
    ignore_voxel_size: bool = False,
    show: bool | None = None,
    early_stop: Callable[[Run], bool] | None = None,
) -> Run:
    """Train an encoder on unlabelled volumes; `canvas_fm.load` opens what `run.encoder` names.

    The recipe says how: as a masked autoencoder, or by joint embedding of two views of each place. With
    `model.encoder.channels` 2 `background` are the second channels of the volumes, in their order. It is a
    path or the name of a shipped one, `overrides` are `"training.steps=200"`. `held_out` names volumes that
    are only evaluated on, or says how many to split off by the seed. Volumes whose voxels differ by more than
    5 % are refused unless they are read at `resample_to` (µm, z, y, x) or mixed as they are with
    `ignore_voxel_size`; the encoder then names the voxel size of the first by name. With `resume` the run
    goes on from its last checkpoint, and on one CPU thread ends in the same bits as if it had never stopped.
    `early_stop` is asked after each evaluation and ends the training where it says so; the encoder is then
    that of this step. Under torchrun every process calls this. Raises CanvasError for a caller's mistake,
    StorageFull when the disk is full.
    """
    kind = pretraining_class(recipe)
    resolved = resolve(kind, recipe, overrides, seed, held_out, resample_to, ignore_voxel_size)
    channels = resolved.model.encoder.channels
    check_companions("background", background, channels == 2, "model.encoder.channels is 2")
    volumes_of_run = split_volumes(name_volumes(volumes, background), resolved)
    if isinstance(resolved, JointRecipe):
        joint = partial(JointPretraining, resolved, *volumes_of_run)
        return train(resolved, out, joint, device, resume, show, early_stop)
    masked = partial(Pretraining, resolved, *volumes_of_run)
    return train(resolved, out, masked, device, resume, show, early_stop)
