"""The printable page of all brains: counts and densities on the atlas, groups, profiles, provenance."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from canvas_fm.analysis.regions.atlas import Atlas
from canvas_fm.files.checksum import sha256
from canvas_fm.models.folder.folder import read_kind
from canvas_fm.pipeline.study.settings import BrainReportSettings, as_yaml
from canvas_fm.pipeline.study.steps.regions import atlas_of
from canvas_fm.pipeline.study.steps.step import Task
from canvas_fm.shipped import find
from canvas_fm.viewing.brain_report.report import brain_report

_FIGURES = (("groups", "volcano"), ("groups", "heat_map"), ("profiles", "profiles"))


def brain_report_external(task: Task) -> dict[str, Any]:
    """Scores, models, and the settings as they are written."""
    scores = {path: sha256(Path(path)) for path in _scores(task)}
    models = {model: read_kind(find("model", model))[1].get("sha256") for model in _models(task)}
    return {"study": as_yaml(task.study.settings), "scores": scores, "models": models}


def run_brain_report(task: Task) -> dict[str, Any]:
    has, brains = task.study.has, task.study.settings.brains
    regions = [task.folder_of("regions", brain) for brain in task.brains()]
    figures = [task.folder_of(step, None) / f"{name}.png" for step, name in _FIGURES if has(step)]
    written = brain_report(
        [folder / "regions.csv" for folder in regions],
        task.out,
        title=task.study.settings.title,
        names=[f"{name}, {brain.group}" if brain.group else name for name, brain in brains.items()],
        atlases=_atlases(task),
        cells=[folder / "cells.csv" for folder in regions],
        scores=_scores(task),
        models=_models(task),
        groups=task.folder_of("groups", None) / "groups.csv" if has("groups") else None,
        figures=figures,
        settings=as_yaml(task.study.settings),
    )
    return {"bytes": written.stat().st_size}


def _atlases(task: Task) -> Iterator[Atlas]:
    """The atlas of each brain in turn."""
    for brain in task.brains():
        yield atlas_of(task, brain)


def _scores(task: Task) -> list[str]:
    settings = task.settings
    assert isinstance(settings, BrainReportSettings)
    return [task.study.path(path) for path in settings.scores]


def _models(task: Task) -> list[str]:
    settings = task.study.settings
    named = [settings.detect and settings.detect.detector, settings.refine and settings.refine.refiner]
    return [task.study.path(name) for name in named if name]
