"""Apply a refiner to a volume's candidates, batch by batch, resumable."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np

from canvas_fm.data.points.points import P_CELL, Points, repeated_rows
from canvas_fm.data.volume.volume import Volume
from canvas_fm.data.volume.window import WindowRule
from canvas_fm.errors import BadInput, CanvasError, ModelMismatch
from canvas_fm.files.shipped import shipped
from canvas_fm.heads.features.amplitude import SpotAmplitude
from canvas_fm.heads.features.candidate_score import recorded_score
from canvas_fm.heads.features.extractor import DETECTOR, MAE, Extractor
from canvas_fm.heads.features.feature_set import (
    AMPLITUDE,
    CANDIDATE_SCORE,
    DETECTOR_LOGIT,
    SHAPE,
    Provenance,
)
from canvas_fm.heads.labels.candidates import check_volume_name
from canvas_fm.heads.refine.apply.candidate_classifier import CandidateClassifier
from canvas_fm.heads.refine.counts.refined_count import count_refined, without_count
from canvas_fm.heads.refine.refiner import Refiner
from canvas_fm.inference.detect.tiles.resumable_tiles import ResumableTiles
from canvas_fm.inference.embed.store.embedding_store import points_sha256
from canvas_fm.models.folder.model_folder import read_kind
from canvas_fm.models.folder.training_volumes import volume_in_training
from canvas_fm.models.load_model import Detector, Encoder, load

_log = logging.getLogger(__name__)


def refine(
    refiner: Refiner,
    volume: Volume,
    points: Points,
    *,
    encoder: Encoder | None = None,
    detector: Detector | None = None,
    out: str | Path | None = None,
    background: Volume | None = None,
    batch: int = 64,
    device: str = "auto",
    precision: str = "auto",
    backend: str = "torch",
    resample: bool = False,
    ignore_voxel_size: bool = False,
    recall: tuple[int, int] | None = None,
    cells_only: bool = False,
    workers: int = 1,
    scheduler: str | None = None,
    show: bool | None = None,
) -> Points:
    """The candidates in the same order with all columns and `p_cell`, the calibrated P(cell).

    With `cells_only` those below the refiner's threshold are left out; the count is of all of them.

    Models that are not given are looked for among the shipped ones, by the sha256 that the refiner recorded.
    With `out` (.csv, .parquet) the rows are written; the same call again goes on where it stopped, or takes a
    finished file of the same inputs as it is. Memory grows by the file's rows, not by their features.
    `workers` processes, or a Dask `scheduler` such as tcp://host:8786, give the same rows.
    Duplicates are warned about and kept. A refiner that uses the candidate score takes it from
    the column of the name that it was fitted with. `meta` of the result holds the expected count with its
    interval (see `count_refined`): of all cells where the recall of the candidates is known, by `recall`
    (found, looked for) or as recorded with the refiner.

    Raises ModelMismatch for another encoder, detector or voxel size, CanvasError for points outside the
    volume or of another one, and for a score that is needed and not there.
    """
    check_volume_name(points, volume.name, "the candidates' metadata")
    points.check_inside(volume.shape_zyx)
    provenance = refiner.provenance_.get(CANDIDATE_SCORE)
    score = None if provenance is None else recorded_score(points, provenance)
    extractor = extractor_of(
        refiner, **models_of(refiner, encoder, detector), batch=batch, device=device, precision=precision,
        backend=backend, resample=resample, ignore_voxel_size=ignore_voxel_size,
    )  # fmt: skip
    extractor.check(volume, background)
    if repeated := repeated_rows(points.zyx):
        _log.warning(
            "%d of %d candidates repeat the position of another; they are kept", repeated, len(points)
        )
    if P_CELL in points.columns:
        _log.warning("the candidates have a column %s already; it is replaced", P_CELL)
    classifier = CandidateClassifier(refiner, extractor, volume, background, points.zyx, score)
    running: dict[str, Any] = {"workers": workers, "scheduler": scheduler, "show": show}

    def rows(p_cell: np.ndarray, **more: str) -> Points:
        return refined_rows(refiner, points, p_cell, volume, extractor, more, recall, cells_only=cells_only)

    if out is None:
        p_cell = np.empty(len(points))
        for _, scored in classifier.all(range(len(classifier.blocks)), **running):
            p_cell[scored.rows] = scored.p_cell
        return rows(p_cell)
    inputs = refinement_inputs(refiner, extractor, volume, background, recall, cells_only=cells_only)
    inputs |= {"points": points_sha256(points)}
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
    with ResumableTiles(Path(out), inputs, digest, len(classifier.blocks)) as work:
        if (finished := work.finished()) is not None:
            return finished
        return work.finish(rows(classifier.resumed(work, **running), inputs_sha256=digest))


def refinement_inputs(
    refiner: Refiner,
    extractor: Extractor,
    volume: Volume,
    background: Volume | None,
    recall: tuple[int, int] | None,
    *,
    cells_only: bool,
) -> dict[str, Any]:
    """All that determines refined rows beside the candidates."""
    inputs = extractor.identity(volume, background) | {"refiner": refiner_sha256(refiner)}
    inputs |= {} if recall is None else {"recall": list(recall)}
    return inputs | ({"cells_only": True} if cells_only else {})


def refined_rows(
    refiner: Refiner,
    points: Points,
    p_cell: np.ndarray,
    volume: Volume,
    extractor: Extractor,
    more: dict[str, str],
    recall: tuple[int, int] | None,
    *,
    cells_only: bool,
) -> Points:
    """The candidates with `p_cell`, and with models, threshold and the count of cells in their metadata."""
    meta = _meta(points, volume, refiner, extractor) | ({"cells_only": "yes"} if cells_only else {})
    count = count_refined(refiner, points, p_cell, recall=recall, volume=volume.name, crop_of=volume.crop_of)
    meta |= count.as_meta() | more
    return _with(points, p_cell, meta, refiner.threshold_ if cells_only else None)


def models_of(refiner: Refiner, encoder: Encoder | None, detector: Detector | None) -> dict[str, Any]:
    """Encoder and detector of a refiner: those given, else shipped ones of the recorded sha256.

    Fine-tuned blocks of the refiner stand on top of the encoder.

    Raises ModelMismatch for a given model that is another one, CanvasError where one is needed and not there.
    """
    models: dict[str, Any] = {"encoder": None, "detector": None}
    for kind, needed in models_needed(refiner).items():
        model_given = encoder if kind == "encoder" else detector
        model: Any = model_given if model_given is not None else _shipped(needed, kind)
        if model.sha256 != needed.sha256:
            raise ModelMismatch(
                f"the {kind} {model.name} has sha256 {model.sha256[:12]}; this refiner was fitted with "
                f"{needed.name}, {needed.sha256[:12]}: give that one, or fit a refiner with yours"
            )
        tuned = refiner.tuned_ if kind == "encoder" else None
        models[kind] = model if tuned is None else tuned.on(model)
    return models


def models_needed(refiner: Refiner) -> dict[str, Provenance]:
    """Name and sha256 of the `encoder` and `detector` that a refiner needs.

    Where it carries fine-tuned blocks the encoder is the one below them.
    """
    needed = {}
    for block in refiner.columns_.sizes:
        provenance = refiner.provenance_.get(block)
        if provenance is not None and block in (CANDIDATE_SCORE, SHAPE, AMPLITUDE):
            continue  # the candidates bring it; the voxels alone give it
        if provenance is None or block not in (MAE, DETECTOR, DETECTOR_LOGIT):
            raise BadInput(
                f"this refiner was fitted on features {block!r} that no encoder or detector is recorded for; "
                "work the features out yourself and call predict_proba"
            )
        if block == MAE and (tuned := refiner.tuned_) is not None:
            provenance = Provenance(tuned.base_name, tuned.base_sha256)
        needed["encoder" if block == MAE else "detector"] = provenance
    return needed


def refiner_sha256(refiner: Refiner) -> str:
    """Identity of a refiner: its folder's, or a hash of its numbers if it was not saved."""
    if hasattr(refiner, "sha256_"):
        return str(refiner.sha256_)
    digest = hashlib.sha256(repr(sorted(refiner.get_params().items(), key=str)).encode())
    for name, tensor in sorted(refiner.net_.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    if refiner.tuned_ is not None:
        digest.update(refiner.tuned_.sha256.encode())
    return digest.hexdigest()


def extractor_of(
    refiner: Refiner, *, encoder: Encoder | None, detector: Detector | None, **running: Any
) -> Extractor:
    """Feature extractor as recorded in a refiner, with the models of `models_of`."""
    settings: dict[str, Any] = {}
    for block in refiner.columns_.sizes:
        provenance = refiner.provenance_.get(block)
        settings |= dict(provenance.settings) if provenance is not None and block != CANDIDATE_SCORE else {}
        settings |= {"detector_score": True} if block == DETECTOR_LOGIT else {}
    if "crop_zyx" in settings:
        z, y, x = settings["crop_zyx"]
        settings["crop_zyx"] = (z, y, x)
    if SHAPE in settings:
        settings[SHAPE] = WindowRule(**settings[SHAPE])
    if AMPLITUDE in settings:
        settings[AMPLITUDE] = SpotAmplitude.of(settings[AMPLITUDE])
    return Extractor(encoder, detector, **settings, **running)


def _shipped(needed: Provenance, kind: str) -> Any:
    """Shipped model of the recorded sha256, the recorded name first."""
    known = shipped("model") | shipped("older model")
    names = sorted(known, key=lambda name: not name.startswith(needed.name))
    for name in names:
        kind_found, config = read_kind(known[name])
        if kind_found == kind and config.get("sha256") == needed.sha256:
            return (
                load(known[name], kind="encoder") if kind == "encoder" else load(known[name], kind="detector")
            )
    raise CanvasError(
        f"this refiner was fitted with the {kind} {needed.name} (sha256 {needed.sha256[:12]}), which is not "
        f"among the shipped models ({', '.join(known) or 'none'}); give its folder with --{kind}"
    )


def _meta(points: Points, volume: Volume, refiner: Refiner, extractor: Extractor) -> dict[str, str]:
    meta = without_count(points.meta) | {"volume": volume.name, "refiner_sha256": refiner_sha256(refiner)}
    for name, provenance in extractor.provenance.items():
        if name in (DETECTOR_LOGIT, SHAPE, AMPLITUDE):
            continue  # its detector is named with the pooled map; shape and amplitude need no model
        kind = "encoder" if name == MAE else "detector"
        meta |= {f"refiner_{kind}": provenance.name, f"refiner_{kind}_sha256": provenance.sha256}
    if (score := refiner.provenance_.get(CANDIDATE_SCORE)) is not None:
        meta["refiner_own_score"] = str(score.settings["column"])
    if volume_in_training(refiner.fit_provenance_, volume.name, volume.crop_of):
        meta["refiner_trained_on_volume"] = "yes"
    return meta | {"p_cell_threshold": f"{refiner.threshold_:.6g}"}


def _with(points: Points, p_cell: np.ndarray, meta: dict[str, str], least: float | None) -> Points:
    """The candidates with their P(cell); only those at or above `least` if it is given."""
    keep = slice(None) if least is None else p_cell.astype(np.float32).astype(np.float64) >= least
    columns = {name: values[keep] for name, values in points.columns.items() if name != P_CELL}
    return Points(points.zyx[keep], columns | {P_CELL: p_cell.astype(np.float32)[keep]}, meta)
