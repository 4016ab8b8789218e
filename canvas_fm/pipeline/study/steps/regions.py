"""Steps from cells to biology: counts per region, groups of brains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from canvas_fm.analysis.groups.compare import compare_with_reference
from canvas_fm.analysis.groups.figures import region_heat_map, volcano
from canvas_fm.analysis.groups.group_flags import GroupOptions
from canvas_fm.analysis.groups.study import read_study
from canvas_fm.analysis.regions.atlas import Atlas
from canvas_fm.analysis.regions.cells_per_region import count_regions, write_counts
from canvas_fm.analysis.regions.sidecar import write_cells, write_sidecar
from canvas_fm.data.points.points import Points
from canvas_fm.data.points.tables import joined, write_table
from canvas_fm.files.checksum import sha256
from canvas_fm.heads.refine.refiner import Refiner
from canvas_fm.pipeline.study.settings import RegionsSettings, merged
from canvas_fm.pipeline.study.steps.cells import volume_external
from canvas_fm.pipeline.study.steps.study_step import StepRun


def atlas_of(step_run: StepRun, brain: str | None) -> Atlas:
    """The atlas of a brain."""
    general, path = step_run.study.settings.regions, step_run.study.path
    assert general is not None
    assert brain is not None
    settings = merged(general, step_run.study.settings.brains[brain].regions)
    assert settings.atlas is not None
    return settings.open(settings.atlas, path)


def _settings(step_run: StepRun) -> RegionsSettings:
    assert isinstance(step_run.settings, RegionsSettings)
    return step_run.settings


def regions_external(step_run: StepRun) -> dict[str, Any]:
    """The atlas' files and those of the transforms."""
    files = [Path(file) for file in atlas_of(step_run, step_run.brain).files]
    files += [Path(step_run.study.path(name)) for name in _settings(step_run).transform]
    checksums = {"atlas": {file.name: sha256(file) for file in files if file.is_file()}}
    return volume_external(step_run) | checksums


def run_regions(step_run: StepRun) -> dict[str, Any]:
    settings, atlas, volume = _settings(step_run), atlas_of(step_run, step_run.brain), step_run.volume()
    cells, path = Points.read(step_run.cells_path()), step_run.cells_path()
    refine = step_run.study.settings.refine
    spread = None if refine is None else Refiner.load(step_run.study.path(refine.refiner)).count_spread_
    placing = settings.placing(step_run.study.path)
    placing["shape_zyx"] = placing["shape_zyx"] or volume.shape_zyx
    counted = count_regions(cells, atlas, channel="cells", voxel_um=volume.voxel_um, spread=spread, **placing)
    table = write_counts([counted], step_run.out)
    write_cells([counted], [cells], step_run.folder / "cells.csv")
    about = write_sidecar([counted], atlas, [path], step_run.out)
    (channel,) = about["channels"].values()
    return {
        "rows": len(table["id"]), "regions": len(set(table["id"].tolist())), "atlas": atlas.name,
        "outside_atlas": channel["outside_atlas"], "in_no_region": channel["in_no_region"],
    }  # fmt: skip


def groups_external(step_run: StepRun) -> dict[str, Any]:
    """Which brain is in which group."""
    return {"groups": {name: brain.group for name, brain in step_run.study.settings.brains.items()}}


def write_group_table(step_run: StepRun, **paths: str) -> Path:
    """Write study.csv: the brains that have a group, with columns of paths in which {brain} is the name."""
    brains = {
        name: brain.group for name, brain in step_run.study.settings.brains.items() if brain.group is not None
    }
    columns = {"brain": list(brains), "group": list(brains.values())}
    columns |= {key: [path.format(brain=name) for name in brains] for key, path in paths.items()}
    listed = step_run.folder / "study.csv"
    write_table(listed, {key: np.array(values) for key, values in columns.items()}, {})
    return listed


def run_groups(step_run: StepRun) -> dict[str, Any]:
    """Compare all groups with the reference; brains without a group are left out."""
    settings = step_run.settings
    assert isinstance(settings, GroupOptions)
    listed = write_group_table(step_run, regions="../regions/{brain}/regions.csv")
    study = read_study(
        listed, hemisphere=settings.hemisphere, without_children=settings.without_children,
        repeats="hemisphere" if settings.model == "mixed" else None,
    )  # fmt: skip
    comparisons = compare_with_reference(study, settings)
    parts = [comparison.table() for comparison in comparisons]
    write_table(step_run.out, joined(parts), {})
    volcano(comparisons[0], step_run.folder / "volcano.png")
    region_heat_map(study, comparisons[0], step_run.folder / "heat_map.png")
    return {
        "brains": len(study.brains), "groups": list(dict.fromkeys(study.groups)),
        "reference": comparisons[0].first,
        "regions_tested": int(comparisons[0].tested.sum()),
        "regions_q_below_5_percent": int(sum((each.q_value < 0.05).sum() for each in comparisons)),
    }  # fmt: skip
