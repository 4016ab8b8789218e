"""Description of a run, and of a folder of an encoder, detector or refiner."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_EVALUATION = (
    *("volume", "crops", "given", "loss", "psnr_masked", "ssim_masked"),
    *("f1", "best_f1", "found_again", "chance", "effective_rank"),
)
_log = logging.getLogger(__name__)
_MAX_FILES = 200_000  # counting more would keep a person waiting for a size


def describe_run(path: str | Path) -> dict[str, Any]:
    """Progress of a training run, its last losses and evaluations."""
    from canvas_fm.training.run.folder.run_folder import Run

    run = Run(Path(path))
    recipe, rows = run.recipe(), run.metrics()
    if run.is_truncated():
        _log.warning(
            "%s: the last line of its metrics.jsonl is cut, as by a kill or a full disk; what was to follow "
            "is not shown",
            path,
        )
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
    from canvas_fm.models.folder.model_folder import read_kind
    from canvas_fm.models.load_model import Detector, load

    if read_kind(Path(path))[0] == "refiner":
        return describe_refiner(path)
    return describe_detector(path) if isinstance(load(path), Detector) else describe_encoder(path)


def describe_detector(path: str | Path) -> dict[str, Any]:
    """Architecture, operating threshold, voxel size, sha256 and training data."""
    from canvas_fm.models.load_model import load

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
        **disk_size(Path(path)),
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
        **disk_size(Path(path)),
    }


def describe_encoder(path: str | Path) -> dict[str, Any]:
    """Architecture, size, voxel size, sha256 and training data; every file is verified."""
    from canvas_fm.models.load_model import load

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
        "dim": config.architecture.embedding_dim,
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
        **disk_size(Path(path)),
    }


def _evaluation(row: dict[str, Any]) -> dict[str, Any]:
    """Summary of one evaluation: masked patches, next to the trivial predictors."""
    short: dict[str, Any] = {key: row[key] for key in _EVALUATION if key in row}
    for predictor in ("crop_mean", "neighbours_mean"):
        if predictor in row:
            short[f"{predictor}_psnr_masked"] = row[predictor]["psnr_masked"]
    return {key: round(value, 5) if isinstance(value, float) else value for key, value in short.items()}


def _names(volumes: Any) -> list[str]:
    """Volume names in a provenance, at any level of detail."""
    listed = volumes if isinstance(volumes, list) else []
    return [
        str(volume["name"] if isinstance(volume, dict) and "name" in volume else volume) for volume in listed
    ]


def disk_size(path: Path) -> dict[str, Any]:
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
