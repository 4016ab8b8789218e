"""Manifest of a cross-marker comparison: detectors, data sets, and the files of their cells."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from canvas_fm.data.points.boxes import as_boxes, read_boxes
from canvas_fm.data.points.points import Points
from canvas_fm.errors import CanvasError
from canvas_fm.evaluation.detection.score import Score, evaluate
from canvas_fm.files.strict_yaml import StrictModel

VoxelUm = Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=3, max_length=3)]


class Region(StrictModel):
    """One labelled region: its truth, its boxes, and each model's cells (null: not run)."""

    name: str
    truth: str
    split: Literal["train", "test"] | None = None
    within: str | list[list[int]] | None = None
    predictions: dict[str, str | None] = Field(default_factory=dict)


class DataSet(StrictModel):
    """Regions of one marker; its voxel size and tolerance override the manifest's."""

    name: str
    marker: str
    regions: Annotated[list[Region], Field(min_length=1)]
    voxel_um: VoxelUm | None = None
    tolerance_um: float | None = Field(None, gt=0)
    tolerance_voxels: float | None = Field(None, gt=0)


class Model(StrictModel):
    """A detector and the markers that it was trained on: those data sets are its matched ones."""

    name: str
    marker: str | list[str] | None = None
    predictions: str | None = None
    threshold: float | None = None


class Manifest(StrictModel):
    """A comparison. `predictions` is a path with {model}, {dataset} and {region} in it."""

    title: str = "Detectors and data sets"
    models: Annotated[list[Model], Field(min_length=1)]
    datasets: Annotated[list[DataSet], Field(min_length=1)]
    predictions: str | None = None
    voxel_um: VoxelUm | None = None
    tolerance_um: float | None = Field(None, gt=0)
    tolerance_voxels: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _names_are_one_and_known(self) -> Manifest:
        for kind, names in (
            ("models", [model.name for model in self.models]),
            ("datasets", [data.name for data in self.datasets]),
            *(
                (f"regions of {data.name}", [region.name for region in data.regions])
                for data in self.datasets
            ),
        ):
            if twice := [name for name in names if names.count(name) > 1]:
                raise ValueError(f"two {kind} are called {twice[0]!r}")
        known = {model.name for model in self.models}
        for data in self.datasets:
            for region in data.regions:
                if strange := set(region.predictions) - known:
                    raise ValueError(
                        f"{data.name}, {region.name}: predictions of {min(strange)!r}; "
                        f"the models here are {', '.join(sorted(known))}"
                    )
        return self


@dataclass(frozen=True)
class PlannedScore:
    """One region and one model, with every file needed to score it."""

    data: DataSet
    region: Region
    model: Model
    truth: Path
    predictions: Path
    within: Path | list[list[int]] | None
    settings: Manifest

    @property
    def files(self) -> list[Path]:
        return [self.truth, self.predictions, *([self.within] if isinstance(self.within, Path) else [])]

    def run(self) -> Score:
        data, settings = self.data, self.settings
        um, voxels = data.tolerance_um, data.tolerance_voxels
        if um is None and voxels is None:
            um, voxels = settings.tolerance_um, settings.tolerance_voxels
        boxes = read_boxes(self.within) if isinstance(self.within, Path) else self.within
        return evaluate(
            Points.read(self.predictions),
            Points.read(self.truth),
            voxel_um=data.voxel_um or settings.voxel_um,
            tolerance_um=um,
            tolerance_voxels=voxels,
            marker=data.marker if um is None and voxels is None else None,
            within=None if boxes is None else as_boxes(boxes, source=f"{data.name}, {self.region.name}"),
            threshold=self.model.threshold,
            chance=False,
        )


def planned_scores(settings: Manifest, home: Path) -> Iterator[PlannedScore]:
    """Every region with every model that was run on it; paths are relative to `home`."""
    for data in settings.datasets:
        for region in data.regions:
            within = home / region.within if isinstance(region.within, str) else region.within
            for model in settings.models:
                predictions = _predictions(settings, data, region, model)
                if predictions is not None:
                    yield PlannedScore(
                        data, region, model, home / region.truth, home / predictions, within, settings
                    )


def _predictions(settings: Manifest, data: DataSet, region: Region, model: Model) -> str | None:
    """Path of a model's cells of a region: by region, else by the model's pattern, else by the manifest's."""
    if model.name in region.predictions:
        return region.predictions[model.name]
    path = model.predictions or settings.predictions
    if path is None:
        raise CanvasError(
            f"{data.name}, {region.name}: no predictions of {model.name}; give them there (null for not run) "
            "or for all as a path with {model}, {dataset} and {region} in it"
        )
    names = {"model": model.name, "dataset": data.name, "region": region.name}
    return re.sub(r"\{(model|dataset|region)\}", lambda key: names[key[1]], path)
