"""Preview of a study: steps, duration and size, measured on a few planes and in a box of one brain."""

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
from canvas_fm.models.load_model import load
from canvas_fm.pipeline.study.settings import merged, read_study_settings
from canvas_fm.pipeline.study.steps.cells import convert_options, own_models
from canvas_fm.pipeline.study.steps.step_order import STEPS
from canvas_fm.pipeline.study.steps.study_step import StepRun, Study
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
    for step_run in chosen_tasks(plan, only, start, brains):
        status = status_of(step_run, known)
        row: dict[str, Any] = {"task": str(step_run), "state": status.state}
        if status.differs:
            more = len(status.differs) - _NAMED
            row["because"] = ", ".join(status.differs[:_NAMED]) + (f" and {more} more" if more > 0 else "")
        if status.state != "done":
            if step_run.step.of_brain and step_run.step.name != "convert" and not tried:
                rates, tried = _try(step_run), True
            row |= _estimate(step_run, rates)
        rows.append(row)
    return rows


def _estimate(step_run: StepRun, rates: Rates | None) -> dict[str, Any]:
    """Minutes and bytes of a task; None where they are not known."""
    if step_run.step.name == "convert":
        source = step_run.study.path(step_run.brain_settings.source)
        preview = preview_conversion(source, step_run.out, **convert_options(step_run).explicit)
        return {"minutes": round(preview["minutes"], 2), "bytes": preview["bytes_out"]}
    volume = _volume(step_run) if step_run.brain is not None else None
    if rates is None or volume is None or step_run.step.name not in rates.seconds:
        return {"minutes": None, "bytes": None}
    voxels = math.prod(volume.shape_zyx)
    rows = rates.cells * voxels
    each = rates.seconds[step_run.step.name]
    count = voxels if step_run.step.name == "detect" else rows
    size = rates.vector_bytes if step_run.step.name == "embed" else _BYTES[step_run.step.name]
    minutes = None if each is None else round(each * count / 60, 2)
    return {"minutes": minutes, "bytes": int(rows * size)}


def _volume(step_run: StepRun) -> Volume | None:
    """The brain's volume, or its source where it is not converted yet and opens as a volume."""
    convert = next(step for step in STEPS if step.name == "convert")
    if not step_run.study.has("convert") or step_run.study.step_run(convert, step_run.brain).out.exists():
        return step_run.volume()
    options = merged(step_run.study.settings.volume, step_run.brain_settings.volume).explicit
    stated = convert_options(step_run.study.step_run(convert, step_run.brain)).voxel_um
    try:
        return Volume.open(
            step_run.study.path(step_run.brain_settings.source),
            **options | ({"voxel_um": stated} if stated else {}),
        )
    except CanvasError:
        return None


def _try(step_run: StepRun) -> Rates | None:
    """Detect, refine and embed in a box in the middle of a brain, by the clock."""
    volume, settings = _volume(step_run), step_run.study.settings
    if volume is None or settings.detect is None:
        return None
    size = [min(a, b) for a, b in zip(_BOX, volume.shape_zyx, strict=True)]
    low = [(n - s) // 2 for n, s in zip(volume.shape_zyx, size, strict=True)]
    box = (low[0], low[1], low[2], low[0] + size[0], low[1] + size[1], low[2] + size[2])
    steps = {step.name: step_run.study.step_run(step, step_run.brain) for step in STEPS if step.of_brain}
    detector = load(step_run.study.path(settings.detect.detector), kind="detector")
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
        refiner = Refiner.load(step_run.study.path(settings.refine.refiner))
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
        encoder = load(step_run.study.path(settings.embed.encoder), kind="encoder")
        zyx = few.zyx if len(few) else np.asarray([low], np.float64) + np.asarray(size) / 2
        began = time.perf_counter()
        vectors = embed(encoder, volume, zyx, **steps["embed"].options("encoder", "points"), show=False)
        seconds["embed"] = (time.perf_counter() - began) / len(zyx)
        vector = vectors[0].nbytes
    return Rates(len(points) / voxels, seconds, vector)
