"""Steps from volumes to cells: convert, detect, refine, embed, index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from canvas_fm.data.points.points import P_CELL, Points
from canvas_fm.files.checksum import sha256
from canvas_fm.files.shipped import find
from canvas_fm.heads.refine.apply.apply import models_needed, refine
from canvas_fm.heads.refine.counts.refined_count import mark_counted
from canvas_fm.heads.refine.refiner import Refiner
from canvas_fm.inference.detect.detect import detect
from canvas_fm.inference.detect.tiles.tiled_detection import bad_chunks_of
from canvas_fm.inference.embed.embed import embed_to_store
from canvas_fm.inference.embed.point_crops import volume_identity
from canvas_fm.inference.search.index.index import Index
from canvas_fm.models.folder.model_folder import read_kind
from canvas_fm.models.load_model import Detector, Encoder, load
from canvas_fm.pipeline.study.steps.study_step import StepRun
from canvas_fm.prepare.convert.convert import convert
from canvas_fm.prepare.convert_flags import ConvertOptions
from canvas_fm.prepare.sources.source import open_source


def convert_options(step_run: StepRun) -> ConvertOptions:
    """The options of the conversion; paths of flat and dark images start from the study's data."""
    images = {
        name: Path(step_run.study.path(path))
        for name in ("flat", "dark")
        if (path := getattr(step_run.settings, name)) is not None
    }
    return ConvertOptions.of(**step_run.options() | images)


def run_convert(step_run: StepRun) -> dict[str, Any]:
    options = convert_options(step_run).explicit
    done = convert(step_run.study.path(step_run.brain_settings.source), step_run.out, **options)
    return {
        "shape_zyx": done.shape_zyx, "voxel_um": done.voxel_um, "channels": done.channels,
        "levels": done.levels, "bytes_in": done.bytes_in, "bytes": done.bytes_out,
        "bad_chunks": len(done.bad_chunks),
    }  # fmt: skip


def convert_external(step_run: StepRun) -> dict[str, Any]:
    options = convert_options(step_run)
    opened = open_source(step_run.study.path(step_run.brain_settings.source), options)
    images = {name: getattr(options, name) for name in ("flat", "dark")}
    return {"source": opened.identity()} | {
        name: sha256(path) for name, path in images.items() if path is not None
    }


def volume_external(step_run: StepRun) -> dict[str, Any]:
    """Options for opening the volume, and its identity where the study did not convert it."""
    options = merged_volume(step_run)
    return (
        options if step_run.study.has("convert") else options | {"source": volume_identity(step_run.volume())}
    )


def merged_volume(step_run: StepRun) -> dict[str, Any]:
    own = step_run.brain_settings.volume.explicit
    return {"volume": (step_run.study.settings.volume.explicit | own)}


def model_sha256(step_run: StepRun, kind: str) -> str:
    """Identity of a model that the settings name."""
    return str(
        read_kind(find("model", step_run.study.path(getattr(step_run.settings, kind))))[1].get("sha256")
    )


def detect_external(step_run: StepRun) -> dict[str, Any]:
    return volume_external(step_run) | {"detector": model_sha256(step_run, "detector")}


def run_detect(step_run: StepRun) -> dict[str, Any]:
    volume, options = step_run.volume(), step_run.options("detector")
    detector = load(step_run.study.path(step_run.settings.detector), kind="detector")
    points = detect(
        detector, volume, out=step_run.out, mark=mark_counted, **step_run.study.running, **options
    )
    return {
        "rows": len(points), "shape_zyx": volume.shape_zyx, "voxel_um": volume.voxel_um,
        "bad_chunks": len(bad_chunks_of(points)),
    }  # fmt: skip


def refine_external(step_run: StepRun) -> dict[str, Any]:
    return volume_external(step_run) | {"refiner": model_sha256(step_run, "refiner")}


def own_models(step_run: StepRun, refiner: Refiner) -> dict[str, Any]:
    """Models of the study that the refiner was fitted with; others are looked for among the shipped ones."""
    settings, models = step_run.study.settings, {}
    others = {
        "detector": None if settings.detect is None else settings.detect.detector,
        "encoder": None if settings.embed is None else settings.embed.encoder,
    }
    for kind, needed in models_needed(refiner).items():
        named = getattr(step_run.settings, kind)
        if (name := named or others[kind]) is not None:
            folder = find("model", step_run.study.path(name))
            if named is not None or read_kind(folder)[1].get("sha256") == needed.sha256:
                models[kind] = _load(folder, kind)
    return models


def _load(folder: Path, kind: str) -> Detector | Encoder:
    return load(folder, kind="detector") if kind == "detector" else load(folder, kind="encoder")


def run_refine(step_run: StepRun) -> dict[str, Any]:
    refiner = Refiner.load(step_run.study.path(step_run.settings.refiner))
    points = Points.read(step_run.folder_of("detect", step_run.brain) / "cells.csv")
    cells = refine(
        refiner, step_run.volume(), points, out=step_run.out, **own_models(step_run, refiner),
        **step_run.study.running,
        **step_run.options("refiner", "encoder", "detector"),
    )  # fmt: skip
    low, high = (float(part) for part in cells.meta["expected_cells_90"].split())
    return {
        "rows": len(cells), "cells": float(cells.meta["expected_cells"]), "cells_90": [low, high],
        "count_of": cells.meta["count_of"], "notes": cells.meta.get("count_notes", ""),
        "above_threshold": int(is_cell(cells).sum()),
    }  # fmt: skip


def is_cell(cells: Points) -> np.ndarray:
    """Mask of the rows at or above the refiner's threshold; of unrefined ones all."""
    if P_CELL not in cells.columns:
        return np.ones(len(cells), bool)
    return np.asarray(cells.columns[P_CELL] >= np.float32(cells.meta["p_cell_threshold"]))


def embed_external(step_run: StepRun) -> dict[str, Any]:
    return volume_external(step_run) | {"encoder": model_sha256(step_run, "encoder")}


def run_embed(step_run: StepRun) -> dict[str, Any]:
    points = Points.read(step_run.cells_path())
    if step_run.settings.points == "cells":
        keep = is_cell(points)
        columns = {name: values[keep] for name, values in points.columns.items()}
        points = Points(points.zyx[keep], columns, points.meta)
    encoder = load(step_run.study.path(step_run.settings.encoder), kind="encoder")
    options = step_run.options("encoder", "points")
    stored = embed_to_store(
        encoder, step_run.volume(), points, step_run.out, **step_run.study.running, **options
    )
    return {"rows": len(points), "dim": list(stored.whole_shape[1:]), "pool": stored.pool}


def run_index(step_run: StepRun) -> dict[str, Any]:
    """Index the brains' embeddings; those without a cell are left out."""
    stores = [
        step_run.folder_of("embed", brain) / "cells.emb.zarr"
        for brain in step_run.brains()
        if step_run.result_of("embed", brain)["rows"]
    ]
    index = Index.build(stores, step_run.out, metric=step_run.settings.metric)
    return {
        "rows": len(index),
        "dim": index.dim,
        "structure": index.structure,
        "recall@10": index.recall["value"],
    }


def nothing(step_run: StepRun) -> dict[str, Any]:
    return {}
