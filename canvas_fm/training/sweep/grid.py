"""The grid of a sweep: one recipe, the values of some of its keys, and the data sets of every combination."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

from pydantic import AliasChoices, Field, ValidationError, model_validator

from canvas_fm.errors import CanvasError
from canvas_fm.files.shipped import find
from canvas_fm.files.strict_yaml import StrictModel, explain, read_settings
from canvas_fm.training.recipe.read_recipe import override, read_recipe, read_yaml, section_of
from canvas_fm.training.recipe.recipe import Recipe

DATA_SET = "volumes"  # the parameter whose values are names of data sets
_MOST_FAULTS = 8


class Values(StrictModel):
    """The values of a parameter; a mapping is merged into the section of the recipe that the key names."""

    values: list[Any] = Field(min_length=1)


class DataSet(StrictModel):
    """Globs below the data folder: volumes to train on, and those that are only evaluated on."""

    train: list[str] = Field(min_length=1)
    held_out: list[str] = Field(default_factory=list)


class Metric(StrictModel):
    """The figure of the held-out crops that the best run of each data set is chosen by."""

    name: str = "psnr_masked"
    goal: Literal["minimize", "maximize"] = "maximize"


class EarlyTerminate(StrictModel):
    """Early stopping of the worse runs; the keys of a Weights & Biases sweep.

    After `min_iter` evaluations, and each time after `eta` times as many, a run goes on if it is among the
    best 1/`eta` of the runs of its data set that have come as far, by the sweep's metric.
    """

    type: Literal["hyperband"] = "hyperband"
    min_iter: int = Field(ge=1)
    eta: float = Field(default=3.0, gt=1)

    def decides_after(self, evaluations: int) -> bool:
        """Whether runs are compared after so many evaluations."""
        if evaluations < self.min_iter:
            return False
        exponent = round(math.log(evaluations / self.min_iter, self.eta))
        return evaluations == round(self.min_iter * self.eta**exponent)


class LabelledSet(StrictModel):
    """Cells on whose classes a linear read-out scores features: globs of volumes, each with its points.

    `labels` is the column of the class, none for the volume's marker; a volume's brain is the name of the
    folder `brain_level` levels above it.
    """

    volumes: list[str] = Field(min_length=2)
    points: str = "centroids.csv"
    labels: str | None = None
    brain_level: int = Field(default=1, ge=0)
    few: int = Field(default=100, gt=1)
    cells: int = Field(default=100, gt=1)


class SweepRecipe(StrictModel):
    """A sweep's file. Keys of a Weights & Biases sweep with `method: grid` are understood as they stand."""

    name: str = "sweep"
    description: str = ""
    recipe: str
    overrides: list[str] = Field(default_factory=list)
    method: Literal["grid"] = "grid"
    metric: Metric = Metric()
    early_terminate: EarlyTerminate | None = None
    parameters: dict[str, Values]
    volumes: dict[str, DataSet]
    linear_readout: LabelledSet | None = Field(
        default=None,
        validation_alias=AliasChoices("linear_readout", "worth"),  # as sweeps before 1.0 wrote it
    )
    run_cap: int | None = Field(default=None, gt=0)
    # What only Weights & Biases's own agent reads.
    project: str | None = None
    entity: str | None = None
    program: str | None = None
    command: list[str] | None = None

    @model_validator(mode="after")
    def _data_sets_are_known(self) -> SweepRecipe:
        chosen = self.parameters[DATA_SET].values if DATA_SET in self.parameters else []
        unknown = [str(name) for name in chosen if name not in self.volumes]
        if unknown:
            raise ValueError(
                f"parameters.{DATA_SET} names {', '.join(unknown)}; known: {', '.join(self.volumes)}"
            )
        return self


GridSource = str | Path | SweepRecipe | Mapping[str, Any]


@dataclass(frozen=True)
class SweepRun:
    """One point of the grid: its name, the label of each parameter's value, its data set and its recipe."""

    name: str
    labels: Mapping[str, str]
    data_set: DataSet
    recipe: Recipe


def read_sweep(source: GridSource, overrides: Sequence[str] = ()) -> SweepRecipe:
    """A checked sweep: a file, the name of a shipped one, or its settings; `overrides` go to every run."""
    if isinstance(source, SweepRecipe):
        read = source
    elif isinstance(source, Mapping):
        try:
            read = SweepRecipe.model_validate(source)
        except ValidationError as problem:
            raise CanvasError(f"the sweep: {explain(problem, SweepRecipe)[0][1]}") from problem
    else:
        read = read_settings(find("recipe", source), SweepRecipe)
    return read.model_copy(update={"overrides": [*read.overrides, *overrides]})


def expand(sweep: SweepRecipe) -> list[SweepRun]:
    """Every run of the grid, the last parameter changing fastest; CanvasError that names each wrong one."""
    axes = {key: list(parameter.values) for key, parameter in sweep.parameters.items()}
    axes.setdefault(DATA_SET, list(sweep.volumes))
    runs, faults = [], []
    base = _settings_of(sweep)
    for values in product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        labels = {key: label_of(value) for key, value in chosen.items()}
        name = ",".join(_file_name(label) for label in labels.values())
        data_set = sweep.volumes[chosen.pop(DATA_SET)]
        try:
            runs.append(SweepRun(name, labels, data_set, read_recipe(_merged(base, chosen))))
        except CanvasError as problem:
            faults.append(f"{name}: {str(problem).removeprefix('the recipe: ')}")
    if faults:
        more = f" (and {len(faults) - _MOST_FAULTS} more)" if len(faults) > _MOST_FAULTS else ""
        raise CanvasError(
            f"{len(faults)} of {len(runs) + len(faults)} runs have a wrong recipe: "
            f"{'; '.join(faults[:_MOST_FAULTS])}{more}"
        )
    _refuse_doubles([run.name for run in runs])
    _refuse_stops_that_never_come(sweep, runs)
    return runs[: sweep.run_cap]


def _refuse_stops_that_never_come(sweep: SweepRecipe, runs: Sequence[SweepRun]) -> None:
    """Early stopping needs an evaluation that decides before the last step of some run."""
    rule = sweep.early_terminate
    if rule is None or not runs:
        return
    before_end = [(run.recipe.steps - 1) // (run.recipe.evaluation.every or run.recipe.steps) for run in runs]
    if max(before_end) < rule.min_iter:
        raise CanvasError(
            f"early_terminate compares runs after {rule.min_iter} evaluations, but they have "
            f"{max(before_end)} before their last step: give a lower evaluation.every"
        )


def label_of(value: object) -> str:
    """A value in a few characters: 0.15, NeuN, 16×32×32; the parts of a mapping side by side."""
    if isinstance(value, Mapping):
        return " ".join(label_of(part) for part in value.values())
    if isinstance(value, list):
        return "×".join(label_of(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _settings_of(sweep: SweepRecipe) -> dict[str, Any]:
    settings = read_yaml(find("recipe", sweep.recipe))
    for setting in sweep.overrides:
        override(settings, setting)
    return settings


def _merged(base: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with each `a.b` set to its value; a mapping is merged into what stands there."""
    settings = dict(base)
    for key, value in chosen.items():
        section, last = section_of(settings, key)
        before = section.get(last)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            value = {**before, **value}
        section[last] = value
    return settings


def _file_name(label: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", label.replace("×", "x")) or "none"


def _refuse_doubles(names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise CanvasError(f"runs of the same name: {', '.join(twice)}; each value may stand once")


def volumes_of(data_set: DataSet, data: Path) -> tuple[list[Path], list[Path]]:
    """(to train on, held out) paths of a data set below a folder; CanvasError for a glob without a match."""
    train, held_out = (list(_matches(globs, data)) for globs in (data_set.train, data_set.held_out))
    return [path for path in train if path not in held_out], held_out


def _matches(globs: Sequence[str], data: Path) -> Iterator[Path]:
    seen = set()
    for glob in globs:
        paths = sorted(data.glob(glob))
        if not paths:
            raise CanvasError(f"no volume matches {glob!r} in {data}; give --data the folder of the volumes")
        for path in paths:
            if path not in seen:
                seen.add(path)
                yield path
