"""What a study would run, how long and how large: measured on a few planes and in a box of one brain."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError
from canvas_fm.heads.refine.apply.apply import refine
from canvas_fm.heads.refine.refiner import Refiner
from canvas_fm.inference.detect.detect import detect
from canvas_fm.inference.embed.embed import embed
from canvas_fm.models.checkpoint import load
from canvas_fm.pipeline.study.settings import merged, read_study_settings
from canvas_fm.pipeline.study.steps.cells import convert_options, own_models
from canvas_fm.pipeline.study.steps.step import Study, Task
from canvas_fm.pipeline.study.steps.table import STEPS
from canvas_fm.pipeline.study.study import Status, chosen_tasks, status_of
from canvas_fm.prepare.convert.preview import preview_conversion

_BOX = (48, 192, 192)  # voxels of the box that is tried, in the middle of a brain
_NAMED = 3  # causes that a row names
_ROWS = 64  # cells of it that are refined and embedded
_BYTES = {"detect": 40, "refine": 60}  # of a row of a table


@dataclass(frozen=True)
class Rates:
    """Cells a voxel; seconds a voxel of detection, a row of refinement and of embedding; bytes a vector."""

    cells: float
    seconds: dict[str, float | None]
    vector_bytes: int


def preview_study(
    settings: Any,
    out: str | Path,
    *,
    data: str | Path = ".",
    only: Sequence[str] = (),
    start: str | None = None,
    brains: Sequence[str] = (),
    **running: Any,
) -> list[dict[str, Any]]:
    """A row for each task: its state, why it would run, minutes and bytes; nothing is written.

    Minutes are those of one process; they are None where nothing could be tried.
    """
    plan = Study(read_study_settings(settings), Path(data), Path(out), {"workers": 1, "scheduler": None})
    rows: list[dict[str, Any]] = []
    rates: Rates | None = None
    tried = False
    known: dict[str, Status] = {}
    for task in chosen_tasks(plan, only, start, brains):
        status = status_of(task, known)
        row: dict[str, Any] = {"task": str(task), "state": status.state}
        if status.differs:
            more = len(status.differs) - _NAMED
            row["because"] = ", ".join(status.differs[:_NAMED]) + (f" and {more} more" if more > 0 else "")
        if status.state != "done":
            if task.step.of_brain and task.step.name != "convert" and not tried:
                rates, tried = _try(task), True
            row |= _estimate(task, rates)
        rows.append(row)
    return rows


def _estimate(task: Task, rates: Rates | None) -> dict[str, Any]:
    """Minutes and bytes of a task; None where they are not known."""
    if task.step.name == "convert":
        source = task.study.path(task.brain_settings.source)
        found = preview_conversion(source, task.out, **convert_options(task).given)
        return {"minutes": round(found["minutes"], 2), "bytes": found["bytes_out"]}
    volume = _volume(task) if task.brain is not None else None
    if rates is None or volume is None or task.step.name not in rates.seconds:
        return {"minutes": None, "bytes": None}
    voxels = math.prod(volume.shape_zyx)
    rows = rates.cells * voxels
    each = rates.seconds[task.step.name]
    count = voxels if task.step.name == "detect" else rows
    size = rates.vector_bytes if task.step.name == "embed" else _BYTES[task.step.name]
    minutes = None if each is None else round(each * count / 60, 2)
    return {"minutes": minutes, "bytes": int(rows * size)}


def _volume(task: Task) -> Volume | None:
    """The brain's volume, or its source where it is not converted yet and opens as a volume."""
    convert = next(step for step in STEPS if step.name == "convert")
    if not task.study.has("convert") or task.study.task(convert, task.brain).out.exists():
        return task.volume()
    options = merged(task.study.settings.volume, task.brain_settings.volume).given
    stated = convert_options(task.study.task(convert, task.brain)).voxel_um
    try:
        return Volume.open(
            task.study.path(task.brain_settings.source), **options | ({"voxel_um": stated} if stated else {})
        )
    except CanvasError:
        return None


def _try(task: Task) -> Rates | None:
    """Detect, refine and embed in a box in the middle of a brain, by the clock."""
    volume, settings = _volume(task), task.study.settings
    if volume is None or settings.detect is None:
        return None
    size = [min(a, b) for a, b in zip(_BOX, volume.shape_zyx, strict=True)]
    low = [(n - s) // 2 for n, s in zip(volume.shape_zyx, size, strict=True)]
    box = (low[0], low[1], low[2], low[0] + size[0], low[1] + size[1], low[2] + size[2])
    steps = {step.name: task.study.task(step, task.brain) for step in STEPS if step.of_brain}
    detector = load(task.study.path(settings.detect.detector), kind="detector")
    options = steps["detect"].options("detector", "box")
    began = time.perf_counter()
    points = detect(detector, volume, box=box, **options, show=False)
    voxels = math.prod(size)
    seconds: dict[str, float | None] = {"detect": (time.perf_counter() - began) / voxels}
    few = Points(
        points.zyx[:_ROWS], {name: column[:_ROWS] for name, column in points.columns.items()}, points.meta
    )
    vector = 0
    if settings.refine is not None:
        refiner = Refiner.load(task.study.path(settings.refine.refiner))
        own = own_models(steps["refine"], refiner)
        began = time.perf_counter()
        if len(few):
            refine(
                refiner,
                volume,
                few,
                **own,
                **steps["refine"].options("refiner", "encoder", "detector"),
                show=False,
            )
        seconds["refine"] = (time.perf_counter() - began) / len(few) if len(few) else None
    if settings.embed is not None:
        encoder = load(task.study.path(settings.embed.encoder), kind="encoder")
        zyx = few.zyx if len(few) else np.asarray([low], np.float64) + np.asarray(size) / 2
        began = time.perf_counter()
        vectors = embed(encoder, volume, zyx, **steps["embed"].options("encoder", "points"), show=False)
        seconds["embed"] = (time.perf_counter() - began) / len(zyx)
        vector = vectors[0].nbytes
    return Rates(len(points) / voxels, seconds, vector)
