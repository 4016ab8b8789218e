"""The printable page of all brains: counts and densities on the atlas, groups, profiles, provenance."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from canvas_fm.analysis.regions.atlas import Atlas
from canvas_fm.files.checksum import sha256
from canvas_fm.files.shipped import find
from canvas_fm.models.folder.model_folder import read_kind
from canvas_fm.pipeline.study.settings import BrainReportSettings, as_yaml
from canvas_fm.pipeline.study.steps.regions import atlas_of
from canvas_fm.pipeline.study.steps.study_step import StepRun
from canvas_fm.viewing.brain_report.report import brain_report

_FIGURES = (("groups", "volcano"), ("groups", "heat_map"), ("profiles", "profiles"))


def brain_report_external(step_run: StepRun) -> dict[str, Any]:
    """Scores, models, and the settings as they are written."""
    scores = {path: sha256(Path(path)) for path in _scores(step_run)}
    models = {model: read_kind(find("model", model))[1].get("sha256") for model in _models(step_run)}
    return {"study": as_yaml(step_run.study.settings), "scores": scores, "models": models}


def run_brain_report(step_run: StepRun) -> dict[str, Any]:
    has, brains = step_run.study.has, step_run.study.settings.brains
    regions = [step_run.folder_of("regions", brain) for brain in step_run.brains()]
    figures = [step_run.folder_of(step, None) / f"{name}.png" for step, name in _FIGURES if has(step)]
    written = brain_report(
        [folder / "regions.csv" for folder in regions],
        step_run.out,
        title=step_run.study.settings.title,
        names=[f"{name}, {brain.group}" if brain.group else name for name, brain in brains.items()],
        atlases=_atlases(step_run),
        cells=[folder / "cells.csv" for folder in regions],
        scores=_scores(step_run),
        models=_models(step_run),
        groups=step_run.folder_of("groups", None) / "groups.csv" if has("groups") else None,
        figures=figures,
        settings=as_yaml(step_run.study.settings),
    )
    return {"bytes": written.stat().st_size}


def _atlases(step_run: StepRun) -> Iterator[Atlas]:
    """The atlas of each brain in turn."""
    for brain in step_run.brains():
        yield atlas_of(step_run, brain)


def _scores(step_run: StepRun) -> list[str]:
    settings = step_run.settings
    assert isinstance(settings, BrainReportSettings)
    return [step_run.study.path(path) for path in settings.scores]


def _models(step_run: StepRun) -> list[str]:
    settings = step_run.study.settings
    named = [settings.detect and settings.detect.detector, settings.refine and settings.refine.refiner]
    return [step_run.study.path(name) for name in named if name]
