"""Description of a path for `info`: volume, run, model, embeddings or points."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from canvas_fm.data.dataset.names import volume_path
from canvas_fm.data.store.tar_index import in_tar, on_disk
from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError
from canvas_fm.hub import is_address
from canvas_fm.shipped import find, shipped

_POINTS = (".csv", ".tsv", ".txt", ".parquet", ".pq", ".xml", ".nml")
_EVALUATION = (
    *("volume", "crops", "given", "loss", "psnr_masked", "ssim_masked"),
    *("f1", "best_f1", "found_again", "chance", "effective_rank"),
)
_MAX_FILES = 200_000  # counting more would keep a person waiting for a size


def describe(path: str | Path, **volume_options: Any) -> dict[str, Any]:
    """Describe a path as a JSON-ready dictionary, `kind` first; `volume_options` go to `Volume.open`.

    Everything that is described is checked as its own reader does, so damage is an error here too. Raises
    CanvasError for what is not there, damaged, or none of the known artefacts.
    """
    if is_address(path):
        return describe_model(find("model", path))
    path = volume_path(path)
    if not path.exists() and in_tar(path) is None:
        if str(path) in shipped("model"):
            from canvas_fm.evaluation.card import figures_of

            return describe_model(find("model", path)) | figures_of(str(path))
        raise CanvasError(f"{path} does not exist, and no shipped model has that name")
    if path.is_file() and path.suffix.lower() in _POINTS:
        return _describe_points(path)
    if path.is_file() and path.suffix.lower() in (".yaml", ".yml"):
        return _describe_recipe(path)
    if path.is_dir() and _is_run(path):
        return describe_run(path)
    if path.is_dir() and (path / "config.json").is_file():
        return describe_model(path)
    if path.name.endswith(".emb.zarr") or _is_embeddings(path):
        return describe_embeddings(path)
    return describe_volume(Volume.open(path, **volume_options))


def describe_volume(volume: Volume) -> dict[str, Any]:
    """Shape, voxel size, dtype, chunks, window, and whether checksums protect the store."""
    window = volume.window
    described: dict[str, Any] = {
        "kind": "volume",
        "path": str(volume.path),
        "name": volume.name,
        "marker": volume.marker,
        "shape_zyx": list(volume.shape_zyx),
        "voxel_um": list(volume.voxel_um),
        "extent_mm": [
            round(n * um / 1000, 4) for n, um in zip(volume.shape_zyx, volume.voxel_um, strict=True)
        ],
        "dtype": str(volume.dtype),
        "chunk_zyx": list(volume.chunk_zyx),
        "window": [window.low, window.high],
        "checksums": "every file" if volume.checksums else "no checksums",
        **_size(on_disk(volume.path)),
        "bytes_decoded": math.prod(volume.shape_zyx) * volume.dtype.itemsize,
    }
    if volume.bad_chunks:
        described["bad_chunks"] = volume.bad_chunks
    return described


def describe_run(path: str | Path) -> dict[str, Any]:
    """Progress of a training run, its last losses and evaluations."""
    from canvas_fm.training.run.folder.run_folder import Run

    run = Run(Path(path))
    recipe, rows = run.recipe(), run.metrics()
    train = [row for row in rows if row["kind"] == "train"]
    evaluations = [row for row in rows if row["kind"] == "eval"]
    return {
        "kind": "run",
        "path": str(path),
        "step": train[-1]["step"] if train else 0,
        "steps": recipe.steps,
        "last_losses": [row["loss"] for row in train[-3:]],
        "checkpoint": str(run.checkpoint) if run.checkpoint.is_file() else None,
        **{folder.name: str(folder) for folder in (run.encoder, run.detector) if folder.is_dir()},
        "evaluation": [_evaluation(row) for row in evaluations if row["step"] == evaluations[-1]["step"]],
    }


def describe_model(path: str | Path) -> dict[str, Any]:
    """Description of an encoder, detector or refiner folder."""
    from canvas_fm.models.checkpoint import Detector, load
    from canvas_fm.models.folder.folder import read_kind

    if read_kind(Path(path))[0] == "refiner":
        return describe_refiner(path)
    return describe_detector(path) if isinstance(load(path), Detector) else describe_encoder(path)


def describe_detector(path: str | Path) -> dict[str, Any]:
    """Architecture, operating threshold, voxel size, sha256 and training data."""
    from canvas_fm.models.checkpoint import load

    detector = load(path, kind="detector")
    config = detector.config
    return {
        "kind": "detector",
        "path": str(path),
        "sha256": detector.sha256,
        **config.architecture.model_dump(mode="json"),
        "parameters": sum(p.numel() for p in detector.net.parameters()),
        "voxel_um": list(config.voxel_um),
        "window_rule": str(config.window_rule),
        "threshold": config.threshold,
        "min_distance_um": config.min_distance_um,
        "smooth_um": config.smooth_um,
        "step": config.provenance.get("step"),
        "trained_on": _names(config.provenance.get("trained_on")),
        "provenance": config.provenance,
        **_size(Path(path)),
    }


def describe_refiner(path: str | Path) -> dict[str, Any]:
    """Features, their models, threshold, sha256 and training brains."""
    from canvas_fm.heads.refine.refiner import Refiner
    from canvas_fm.heads.refine.refiner_folder import read_config

    used = Refiner.load(path).columns_.sizes
    config = read_config(Path(path))
    blocks = [block for block in config.blocks if block.name in used]
    pooled = config.cross_validation["pooled"]
    return {
        "kind": "refiner",
        "path": str(path),
        "sha256": config.sha256,
        "variant": config.settings["variant"],
        "features": {block.name: block.stop - block.start for block in blocks},
        "models": {b.name: f"{b.made.name} {b.made.sha256}".rstrip() for b in blocks if b.made is not None},
        "tuned": None if config.tuned is None else config.tuned.model_dump(),
        "threshold": config.threshold,
        "C": config.C,
        "calibration": config.calibration,
        "split": config.split,
        "contrasts": config.provenance.get("contrasts", [1.0]),
        "left_out": {name: pooled[name] for name in ("f1", "f1_ceiling", "auc", "calibration_error")},
        "trained_on": list(config.provenance.get("trained_on", {})),
        "provenance": config.provenance,
        **_size(Path(path)),
    }


def describe_encoder(path: str | Path) -> dict[str, Any]:
    """Architecture, size, voxel size, sha256 and training data; every file is verified."""
    from canvas_fm.models.checkpoint import load

    encoder = load(path, kind="encoder")
    config = encoder.config
    decoder = None
    if "decoder.safetensors" in config.weights and (Path(path) / "decoder.safetensors").is_file():
        decoder = sum(p.numel() for p in encoder.mae.decoder.parameters())
    return {
        "kind": "encoder",
        "path": str(path),
        "sha256": encoder.sha256,
        "crop_zyx": list(config.architecture.crop_zyx),
        "patch_zyx": list(config.architecture.patch_zyx),
        "dim": config.architecture.dim,
        "depth": config.architecture.depth,
        "heads": config.architecture.heads,
        "parameters": sum(p.numel() for p in encoder.net.parameters()),
        "decoder_parameters": decoder,
        "decoder_targets": None if config.decoder is None else config.decoder.targets,
        "voxel_um": list(config.voxel_um),
        "window_rule": str(config.window_rule),
        "pool": config.pool,
        "step": config.provenance.get("step"),
        "trained_on": _names(config.provenance.get("trained_on")),
        "held_out": _names(config.provenance.get("held_out")),
        "provenance": config.provenance,
        **_size(Path(path)),
    }


def describe_embeddings(path: str | Path) -> dict[str, Any]:
    """Rows, dimension, encoder, pooling and columns; every file is verified."""
    from canvas_fm.inference.embed.store.embedding_store import Embeddings

    embeddings = Embeddings.open(path)
    embeddings.verify()
    rows, *sizes = embeddings.whole_shape
    return {
        "kind": "embeddings",
        "path": str(path),
        "rows": rows,
        "dim": sizes[0] if len(sizes) == 1 else sizes,
        "volume": embeddings.volume,
        "marker": embeddings.marker,
        "voxel_um": list(embeddings.voxel_um),
        "pool": embeddings.pool,
        "precision": embeddings.precision,
        "encoder_sha256": embeddings.encoder_sha256,
        "columns": list(embeddings.columns),
        "checksums": "every file",
        **_size(Path(path)),
    }


def _describe_points(path: Path) -> dict[str, Any]:
    from canvas_fm.data.points.points import Points

    points = Points.read(path)
    bounds = (
        {"from_zyx": points.zyx.min(0).tolist(), "to_zyx": points.zyx.max(0).tolist()} if len(points) else {}
    )
    return {
        "kind": "points",
        "path": str(path),
        "rows": len(points),
        "columns": list(points.columns),
        **bounds,
        "meta": points.meta,
    }


def _describe_recipe(path: Path) -> dict[str, Any]:
    from canvas_fm.training.recipe.detector_recipe import DetectorRecipe
    from canvas_fm.training.recipe.joint_recipe import JointRecipe
    from canvas_fm.training.recipe.kinds import recipe_class
    from canvas_fm.training.recipe.recipe import read_recipe, read_recipe_of

    if recipe_class(path) is JointRecipe:
        joint = read_recipe_of(JointRecipe, path)
        return {
            "kind": "recipe of a joint embedding",
            "path": str(path),
            "steps": joint.steps,
            "batch": joint.training.batch,
            "loss": joint.loss.kind,
            "visible": joint.model.visible,
            **joint.model.encoder.model_dump(mode="json"),
            "seed": joint.seed,
        }
    if recipe_class(path) is DetectorRecipe:
        detector = read_recipe_of(DetectorRecipe, path)
        return {
            "kind": "recipe of a detector",
            "path": str(path),
            "steps": detector.steps,
            "batch": detector.training.batch,
            "crop_zyx": list(detector.data.crop_zyx),
            **detector.model.model_dump(mode="json"),
            "seed": detector.seed,
        }
    recipe = read_recipe(path)
    encoder = recipe.model.encoder
    return {
        "kind": "recipe",
        "path": str(path),
        "steps": recipe.steps,
        "batch": recipe.training.batch,
        "mask_ratio": recipe.model.mask_ratio,
        "crop_zyx": list(encoder.crop_zyx),
        "patch_zyx": list(encoder.patch_zyx),
        "dim": encoder.dim,
        "depth": encoder.depth,
        "seed": recipe.seed,
    }


def _evaluation(row: dict[str, Any]) -> dict[str, Any]:
    """Summary of one evaluation: masked patches, next to the trivial predictors."""
    short: dict[str, Any] = {key: row[key] for key in _EVALUATION if key in row}
    for predictor in ("crop_mean", "neighbours_mean"):
        if predictor in row:
            short[f"{predictor}_psnr_masked"] = row[predictor]["psnr_masked"]
    return {key: round(value, 5) if isinstance(value, float) else value for key, value in short.items()}


def _is_run(path: Path) -> bool:
    return (path / "recipe.yaml").is_file()


def _is_embeddings(path: Path) -> bool:
    return path.is_dir() and (path / "embeddings").is_dir() and (path / "points").is_dir()


def _names(volumes: Any) -> list[str]:
    """Volume names in a provenance, at any level of detail."""
    listed = volumes if isinstance(volumes, list) else []
    return [
        str(volume["name"] if isinstance(volume, dict) and "name" in volume else volume) for volume in listed
    ]


def _size(path: Path) -> dict[str, Any]:
    """Number and bytes of files, without following links; omitted if there are too many."""
    files = total = 0
    for entry in _walk(path):
        files, total = files + 1, total + entry.stat(follow_symlinks=False).st_size
        if files > _MAX_FILES:
            return {"files": f"more than {_MAX_FILES:,}"}
    return (
        {"files": files, "bytes_on_disk": total} if path.is_dir() else {"bytes_on_disk": path.stat().st_size}
    )


def _walk(path: Path) -> Iterable[os.DirEntry[str]]:
    waiting = [path] if path.is_dir() else []
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))
                else:
                    yield entry
