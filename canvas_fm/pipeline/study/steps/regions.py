"""Steps from cells to biology: counts per region, groups of brains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from canvas_fm.analysis.groups.compare import compare_groups
from canvas_fm.analysis.groups.figures import region_heat_map, volcano
from canvas_fm.analysis.groups.study import read_study
from canvas_fm.analysis.regions.atlas import Atlas, open_atlas
from canvas_fm.analysis.regions.cells_per_region import count_regions, write_counts
from canvas_fm.analysis.regions.sidecar import write_cells, write_sidecar
from canvas_fm.analysis.regions.transform import read_transform
from canvas_fm.data.points.points import Points
from canvas_fm.data.points.tables import write_csv
from canvas_fm.files.checksum import sha256
from canvas_fm.heads.refine.refiner import Refiner
from canvas_fm.pipeline.study.settings import GroupsSettings, RegionsSettings, merged
from canvas_fm.pipeline.study.steps.cells import volume_external
from canvas_fm.pipeline.study.steps.step import Task


def atlas_of(task: Task, brain: str | None) -> Atlas:
    """The atlas of a brain."""
    general, path = task.study.settings.regions, task.study.path
    assert general is not None
    assert brain is not None
    settings = merged(general, task.study.settings.brains[brain].regions)
    assert settings.atlas is not None
    return open_atlas(
        path(settings.atlas),
        table=None if settings.table is None else path(settings.table),
        atlas_voxel_um=settings.atlas_voxel_um,
        atlas_orientation=settings.atlas_orientation,
        hemispheres=None if settings.hemispheres is None else path(settings.hemispheres),
        brainglobe_folder=None if settings.brainglobe is None else path(settings.brainglobe),
    )


def _settings(task: Task) -> RegionsSettings:
    assert isinstance(task.settings, RegionsSettings)
    return task.settings


def regions_external(task: Task) -> dict[str, Any]:
    """The atlas' files and those of the transforms."""
    files = [Path(file) for file in atlas_of(task, task.brain).files]
    files += [Path(task.study.path(name)) for name in _settings(task).transform]
    found = {"atlas": {file.name: sha256(file) for file in files if file.is_file()}}
    return volume_external(task) | found


def run_regions(task: Task) -> dict[str, Any]:
    settings, atlas, volume = _settings(task), atlas_of(task, task.brain), task.volume()
    cells, path = Points.read(task.cells_path()), task.cells_path()
    refine = task.study.settings.refine
    spread = None if refine is None else Refiner.load(task.study.path(refine.refiner)).count_spread_
    transforms = [read_transform(task.study.path(one), settings.field_voxel_um) for one in settings.transform]
    counted = count_regions(
        cells, atlas, channel="cells", voxel_um=volume.voxel_um, spread=spread,
        orientation=settings.orientation, shape_zyx=settings.shape or volume.shape_zyx,
        transforms=transforms,
        allow_outside=settings.allow_outside,
    )  # fmt: skip
    table = write_counts([counted], task.out)
    write_cells([counted], [cells], task.folder / "cells.csv")
    about = write_sidecar([counted], atlas, [path], task.out)
    (channel,) = about["channels"].values()
    return {
        "rows": len(table["id"]), "regions": len(set(table["id"].tolist())), "atlas": atlas.name,
        "outside_atlas": channel["outside_atlas"], "in_no_region": channel["in_no_region"],
    }  # fmt: skip


def groups_external(task: Task) -> dict[str, Any]:
    """Which brain is in which group."""
    return {"groups": {name: brain.group for name, brain in task.study.settings.brains.items()}}


def write_group_table(task: Task, **paths: str) -> Path:
    """Write study.csv: the brains that have a group, with columns of paths in which {brain} is the name."""
    brains = {
        name: brain.group for name, brain in task.study.settings.brains.items() if brain.group is not None
    }
    columns = {"brain": list(brains), "group": list(brains.values())}
    columns |= {key: [path.format(brain=name) for name in brains] for key, path in paths.items()}
    listed = task.folder / "study.csv"
    write_csv(listed, {key: np.array(values) for key, values in columns.items()}, {})
    return listed


def run_groups(task: Task) -> dict[str, Any]:
    """Compare all groups with the reference; brains without a group are left out."""
    settings = task.settings
    assert isinstance(settings, GroupsSettings)
    listed = write_group_table(task, regions="../regions/{brain}/regions.csv")
    study = read_study(
        listed, hemisphere=settings.hemisphere, own=settings.own,
        repeats="hemisphere" if settings.model == "mixed" else None,
    )  # fmt: skip
    reference = settings.reference or study.groups[0]
    found = [
        compare_groups(
            study, reference, other, model=settings.model, min_count=settings.min_count,
            planned_fold=settings.planned_fold,
        )
        for other in dict.fromkeys(study.groups)
        if other != reference
    ]  # fmt: skip
    parts = [one.table() for one in found]
    write_csv(task.out, {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}, {})
    volcano(found[0], task.folder / "volcano.png")
    region_heat_map(study, found[0], task.folder / "heat_map.png")
    return {
        "brains": len(study.brains), "groups": list(dict.fromkeys(study.groups)), "reference": reference,
        "regions_tested": int(found[0].tested.sum()),
        "regions_q_below_5_percent": int(sum((one.q_value < 0.05).sum() for one in found)),
    }  # fmt: skip
