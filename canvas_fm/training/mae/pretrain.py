"""Pretraining: a recipe and volumes in, a run with an encoder out; killed at any moment, it goes on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from canvas_fm.data.volume.resample import check_voxel_um
from canvas_fm.data.volume.volume import Volume, ZyxUm
from canvas_fm.errors import CanvasError, ModelMismatch
from canvas_fm.training.joint.task import JointPretraining
from canvas_fm.training.mae.crop_set import Source, draw_crops
from canvas_fm.training.mae.task import Pretraining
from canvas_fm.training.recipe.joint_recipe import JointRecipe
from canvas_fm.training.recipe.kinds import pretraining_class
from canvas_fm.training.recipe.recipe import AnyRecipe, R, Recipe, read_recipe_of
from canvas_fm.training.run.distributed import join
from canvas_fm.training.run.run_folder import Run, claim
from canvas_fm.training.run.trainer import Session


def pretrain(
    recipe: Recipe | JointRecipe | str | Path,
    volumes: Sequence[Volume | str | Path],
    *,
    out: str | Path,
    resume: bool = False,
    device: str | torch.device = "auto",
    seed: int | None = None,
    overrides: Sequence[str] = (),
    held_out: int | Sequence[str] = (),
    resample_to: ZyxUm | None = None,
    ignore_voxel_size: bool = False,
    show: bool | None = None,
) -> Run:
    """Train an encoder on unlabelled volumes; `canvas_fm.load` opens what `run.encoder` names.

    The recipe says how: as a masked autoencoder, or by joint embedding of two views of each place. It is a
    path or the name of a shipped one, `overrides` are `"training.steps=200"`. `held_out` names volumes that
    are only evaluated on, or says how many to split off by the seed. Volumes whose voxels differ by more than
    5 % are refused unless they are read at `resample_to` (µm, z, y, x) or mixed as they are with
    `ignore_voxel_size`; the encoder then names the voxel size of the first by name. With `resume` the run
    goes on from its last checkpoint, and on one CPU thread ends in the same bits as if it had never stopped.
    Under torchrun every process calls this. Raises CanvasError for a caller's mistake, StorageFull when the
    disk is full.
    """
    kind = pretraining_class(recipe)
    resolved = resolve(kind, recipe, overrides, seed, held_out, resample_to, ignore_voxel_size)
    run = Run(Path(out))
    training, kept = split_volumes(name_volumes(volumes), resolved)
    with join(device) as ranks:
        ranks.part(resolved.training.batch)
        with claim(run, resolved, resume=resume) if ranks.leads else nullcontext():
            # The leading process goes first: it finds the windows, which the others then only look up.
            if not ranks.leads:
                ranks.wait()
            task = _task(resolved, training, kept)
            if ranks.leads:
                ranks.wait()
            show = show if ranks.leads else False
            Session(resolved, run, ranks, task, show).go()
            ranks.wait()
    return run


def _task(
    recipe: Recipe | JointRecipe, training: list[Source], kept: list[Source]
) -> Pretraining | JointPretraining:
    if isinstance(recipe, JointRecipe):
        return JointPretraining(recipe, training, kept)
    crops = draw_crops(
        training,
        recipe.model.encoder.crop_zyx,
        recipe.data.crops,
        foreground=recipe.data.foreground,
        seed=recipe.seed,
        rule=recipe.data.window.rule,
    )
    return Pretraining(recipe, crops, kept)


def name_volumes(volumes: Iterable[Volume | str | Path]) -> list[Source]:
    """Volumes by name, sorted by it; two of equal name take the name of the folder above too."""
    opened = [v if isinstance(v, Volume) else Volume.open(v) for v in volumes]
    if not opened:
        raise CanvasError("no volume was given to train on")
    shared = Counter(volume.name for volume in opened)
    sources = [Source(_long_name(v) if shared[v.name] > 1 else v.name, v) for v in opened]
    for name, times in Counter(source.name for source in sources).items():
        if times > 1:
            raise CanvasError(f"{times} volumes are called {name!r}; give each once, or rename their folders")
    return sorted(sources, key=lambda source: source.name)


def _long_name(volume: Volume) -> str:
    path = volume.path.resolve()
    parent = path.parent.parent if path.parent.name == volume.name else path.parent
    return f"{parent.name}/{volume.name}"


def split_volumes(sources: Sequence[Source], recipe: AnyRecipe) -> tuple[list[Source], list[Source]]:
    """(to train on, held out), each with the voxel size that it is read at. The split is by volume."""
    sources = _at_one_voxel_size(sources, recipe)
    names = [source.name for source in sources]
    wanted = recipe.data.held_out
    if isinstance(wanted, int) and str(wanted) in names:
        wanted = [str(wanted)]  # a volume that is called like a number is meant by its name
    if isinstance(wanted, int):
        order = np.random.default_rng(recipe.seed).permutation(len(names))
        wanted = [names[index] for index in order[:wanted]]
    for name in wanted:
        if name not in names:
            raise CanvasError(f"held-out volume {name!r} is not among those given: {', '.join(names)}")
    training = [source for source in sources if source.name not in wanted]
    if not training:
        raise CanvasError(f"all {len(names)} volumes are held out; at least one has to be left to train on")
    if recipe.data.crops < len(training):
        raise CanvasError(
            f"data.crops is {recipe.data.crops} for {len(training)} volumes; give at least one each"
        )
    return training, [source for source in sources if source.name in wanted]


def _at_one_voxel_size(sources: Sequence[Source], recipe: AnyRecipe) -> list[Source]:
    target = recipe.data.resample_to
    if target is not None:
        if recipe.data.ignore_voxel_size:
            raise CanvasError("resampling and ignore_voxel_size exclude each other: give one of them")
        return [Source(s.name, s.volume, check_voxel_um(s.volume, target, resample=True)) for s in sources]
    first = sources[0]
    for source in sources:
        try:
            check_voxel_um(
                source.volume, first.volume.voxel_um, ignore_voxel_size=recipe.data.ignore_voxel_size
            )
        except ModelMismatch as problem:
            sizes = [" × ".join(f"{um:g}" for um in s.volume.voxel_um) for s in (first, source)]
            raise ModelMismatch(
                f"{first.name} has voxels of {sizes[0]} µm (z × y × x) and {source.name} of {sizes[1]}: give "
                "--resample Z Y X to read all at one size, or --ignore-voxel-size to mix them as they are"
            ) from problem
    return list(sources)


def resolve(
    kind: type[R],
    recipe: R | str | Path,
    overrides: Sequence[str],
    seed: int | None,
    held_out: int | Sequence[str],
    resample_to: ZyxUm | None,
    ignore_voxel_size: bool,
) -> R:
    """The recipe with what the caller said beside it, so that recipe.yaml tells all of a run."""
    settings = read_recipe_of(kind, recipe, overrides).model_dump(mode="json")
    if seed is not None:
        settings["seed"] = seed
    if held_out:
        settings["data"]["held_out"] = held_out if isinstance(held_out, int) else list(held_out)
    if resample_to is not None:
        settings["data"]["resample_to"] = list(resample_to)
    if ignore_voxel_size:
        settings["data"]["ignore_voxel_size"] = True
    return read_recipe_of(kind, settings)
