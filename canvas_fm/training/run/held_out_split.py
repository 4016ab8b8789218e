"""Split of volumes into training and held-out ones, and the recipe resolved with the caller's arguments."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from canvas_fm.data.dataset.unique_names import check_one_each, unique_names
from canvas_fm.data.volume.volume import Volume, ZyxUm
from canvas_fm.data.zyx import match_voxel_um
from canvas_fm.errors import CanvasError, ModelMismatch, counted
from canvas_fm.training.mae.training_crops import VolumeSource
from canvas_fm.training.recipe.read_recipe import R, read_recipe_of
from canvas_fm.training.recipe.recipe import AnyRecipe


def name_volumes(
    volumes: Iterable[Volume | str | Path], background: Sequence[Volume | str | Path] | None = None
) -> list[VolumeSource]:
    """Volumes by unique name, sorted; see `unique_names`. `background` are their second channels in turn."""
    opened = [v if isinstance(v, Volume) else Volume.open(v) for v in volumes]
    if not opened:
        raise CanvasError("no volume was given to train on")
    check_one_each(opened, {"background": background})
    sources = [
        VolumeSource(name, volume, background=open_companion(volume, background, index, "background"))
        for index, (name, volume) in enumerate(zip(unique_names(opened), opened, strict=True))
    ]
    return sorted(sources, key=lambda source: source.name)


def split_volumes(
    sources: Sequence[VolumeSource], recipe: AnyRecipe
) -> tuple[list[VolumeSource], list[VolumeSource]]:
    """(training, held-out) volumes with the voxel size to read them at; the split is by volume."""
    sources = _at_one_voxel_size(sources, recipe)
    names = [source.name for source in sources]
    held_out = recipe.data.held_out
    if isinstance(held_out, int) and str(held_out) in names:
        held_out = [str(held_out)]  # a volume that is called like a number is meant by its name
    if isinstance(held_out, int):
        order = np.random.default_rng(recipe.seed).permutation(len(names))
        held_out = [names[index] for index in order[:held_out]]
    for name in held_out:
        if name not in names:
            raise CanvasError(f"held-out volume {name!r} is not among those given: {', '.join(names)}")
    training = [source for source in sources if source.name not in held_out]
    _refuse_overlap(training, [source for source in sources if source.name in held_out])
    if not training:
        raise CanvasError(f"all {len(names)} volumes are held out; at least one has to be left to train on")
    if recipe.data.crops < len(training):
        raise CanvasError(
            f"data.crops is {recipe.data.crops} for {counted(len(training), 'volume')}; give one each or more"
        )
    return training, [source for source in sources if source.name in held_out]


def _refuse_overlap(training: Sequence[VolumeSource], held_out: Sequence[VolumeSource]) -> None:
    cubes = {source.volume.crop_of or source.name: source.name for source in training}
    for source in held_out:
        cube = source.volume.crop_of or source.name
        if cube in cubes:
            raise CanvasError(
                f"{source.name!r} is held out and {cubes[cube]!r}, which holds voxels of the same volume "
                f"{cube!r}, is trained on: scores would not be held out; hold out both, or leave one away"
            )


def _at_one_voxel_size(sources: Sequence[VolumeSource], recipe: AnyRecipe) -> list[VolumeSource]:
    target = recipe.data.resample_to
    if target is not None:
        if recipe.data.ignore_voxel_size:
            raise CanvasError("resampling and ignore_voxel_size exclude each other: give one of them")
        return [replace(s, resample_to=match_voxel_um(s.volume, target, resample=True)) for s in sources]
    first = sources[0]
    for source in sources:
        try:
            match_voxel_um(
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
    """The recipe with the caller's arguments, so that recipe.yaml describes the run completely."""
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


def check_companions(name: str, values: object, needed: bool, why: str) -> None:
    """Refuse masks or backgrounds that a recipe needs and does not get, or gets and does not use."""
    if needed and values is None:
        raise CanvasError(f"{why} in the recipe, and no {name} were given; give --{name}, one a volume")
    if values is not None and not needed:
        raise CanvasError(
            f"--{name} was given, which the recipe does not use: set {why.replace(' is ', '=')}"
        )


def open_companion(
    volume: Volume, companions: Sequence[Volume | str | Path] | None, index: int, role: str
) -> Volume | None:
    """Open the mask or background of a volume, which must have its shape; voxel size is the volume's."""
    if companions is None:
        return None
    other = companions[index]
    other = other if isinstance(other, Volume) else Volume.open(other, voxel_um=volume.voxel_um)
    if other.shape_zyx != volume.shape_zyx:
        raise CanvasError(
            f"the {role} {other.path} has shape {other.shape_zyx}, its volume {volume.path} "
            f"{volume.shape_zyx}"
        )
    return other
