"""Cell profiles of each region, compared between the study's groups."""

from __future__ import annotations

from typing import Any

import numpy as np

from canvas_fm.analysis.profiles.cells import read_profile_study
from canvas_fm.analysis.profiles.compare import compare_with_reference
from canvas_fm.analysis.profiles.examples import write_examples
from canvas_fm.analysis.profiles.figure import profile_figure
from canvas_fm.analysis.profiles.profile_flags import ProfileOptions
from canvas_fm.data.points.tables import joined, write_csv
from canvas_fm.pipeline.study.steps.regions import write_group_table
from canvas_fm.pipeline.study.steps.study_step import StepRun


def profiles_external(step_run: StepRun) -> dict[str, Any]:
    """Which brain is in which group, and which of these is the reference."""
    brains = step_run.study.settings.brains
    return {
        "groups": {name: brain.group for name, brain in brains.items()},
        "reference": _reference(step_run),
    }


def _reference(step_run: StepRun) -> str | None:
    settings, groups = step_run.settings, step_run.study.settings.groups
    assert isinstance(settings, ProfileOptions)
    return settings.reference or (None if groups is None else groups.reference)


def run_profiles(step_run: StepRun) -> dict[str, Any]:
    """Compare all groups with the reference; cells are those that were embedded."""
    settings = step_run.settings.model_copy(update={"reference": _reference(step_run)})
    listed = write_group_table(
        step_run, embeddings="../embed/{brain}/cells.emb.zarr", cells="../regions/{brain}/cells.csv"
    )
    study = read_profile_study(listed, max_cells=settings.max_cells, seed=settings.seed)
    comparisons = compare_with_reference(study, settings)
    tables = [comparison.table() for comparison in comparisons]
    write_csv(step_run.out, joined(tables), {})
    write_examples(comparisons[0], step_run.folder / "examples.csv")
    profile_figure(comparisons[0], step_run.folder / "profiles.png")
    novel = [study.regions[at] for comparison in comparisons for at in np.flatnonzero(comparison.more_novel)]
    return {"regions_tested": int(comparisons[0].tested.sum()), "regions_with_more_novel_cells": novel}
