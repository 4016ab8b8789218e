"""Apply a refiner to a volume's candidates, batch by batch, resumable."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64

from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.data.volume.window import WindowRule
from canvas_fm.errors import BadInput, CanvasError, ModelMismatch
from canvas_fm.heads.features.amplitude import SpotAmplitude
from canvas_fm.heads.features.candidate_score import recorded_score, with_candidate_score
from canvas_fm.heads.features.extractor import DETECTOR, DETECTOR_LOGIT, MAE, Extractor
from canvas_fm.heads.features.feature_set import AMPLITUDE, CANDIDATE_SCORE, SHAPE, Moments, Provenance
from canvas_fm.heads.labels.candidates import check_volume_name, duplicates
from canvas_fm.heads.refine.counts.cell_count import count_cells
from canvas_fm.heads.refine.refiner import Refiner
from canvas_fm.inference.detect.resumable import ResumableTiles
from canvas_fm.inference.embed.embedding_store import points_sha256
from canvas_fm.models.checkpoint import Detector, Encoder, load
from canvas_fm.models.folder.folder import read_kind
from canvas_fm.models.folder.training_volumes import training_volumes
from canvas_fm.progress import bar
from canvas_fm.shipped import shipped

_log = logging.getLogger(__name__)
BLOCK = 4096  # candidates that a kill can cost
SAMPLE = 20_000  # candidates by which a brain is corrected, drawn with a fixed seed where there are more
P_CELL = "p_cell"


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
    precision: str = "fp32",
    backend: str = "torch",
    resample: bool = False,
    ignore_voxel_size: bool = False,
    recall: tuple[int, int] | None = None,
    cells_only: bool = False,
    show: bool | None = None,
) -> Points:
    """The candidates in the same order with all columns and `p_cell`, the calibrated P(cell).

    With `cells_only` those below the refiner's threshold are left out; the count is of all of them.

    Models that are not given are looked for among the shipped ones, by the sha256 that the refiner recorded.
    With `out` (.csv, .parquet) the rows are written; the same call again goes on where it stopped, or takes a
    finished file of the same inputs as it is. Memory grows by the file's rows, not by their features.
    Duplicates are warned about and kept. A refiner that uses the candidate score takes it from
    the column of the name that it was fitted with. `meta` of the result holds the expected count with its
    interval (see `count_cells`): of all cells where the recall of the candidates is known, by `recall`
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
    if repeated := duplicates(points):
        _log.warning(
            "%d of %d candidates repeat the position of another; they are kept", repeated, len(points)
        )
    if P_CELL in points.columns:
        _log.warning("the candidates have a column %s already; it is replaced", P_CELL)
    judge = _CandidateClassifier(refiner, extractor, volume, background, points.zyx, score)
    least = refiner.threshold_ if cells_only else None
    meta = _meta(points, volume, refiner, extractor) | ({"cells_only": "yes"} if cells_only else {})

    def counted(p_cell: np.ndarray) -> dict[str, str]:
        return count_cells(refiner, points, p_cell, recall=recall, volume=volume.name).as_meta()

    if out is None:
        p_cell = np.empty(len(points))
        for rows, p in judge.all(range(len(judge.blocks)), show):
            p_cell[rows] = p
        return _with(points, p_cell, meta | counted(p_cell), least)
    inputs = extractor.identity(volume, background)
    inputs |= {"refiner": refiner_sha256(refiner), "points": points_sha256(points)}
    inputs |= {} if recall is None else {"recall": list(recall)}
    inputs |= {"cells_only": True} if cells_only else {}
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
    with ResumableTiles(Path(out), inputs, digest, len(judge.blocks)) as work:
        if (finished := work.finished()) is not None:
            return finished
        p_cell, done = np.empty(len(points), np.float32), work.done()
        for part in done.values():
            p_cell[part.arrays["rows"]] = part.arrays["p_cell"]
        remaining = [number for number in range(len(judge.blocks)) if number not in done]
        judge.keep_moments(work)
        for number, (rows, p) in zip(remaining, judge.all(remaining, show), strict=True):
            p_cell[rows] = p
            work.keep(number, {"rows": rows, "p_cell": p_cell[rows]}, volume.bad_chunks)
        return work.finish(_with(points, p_cell, meta | counted(p_cell) | {"inputs_sha256": digest}, least))


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


class _CandidateClassifier:
    """P(cell) of a volume's candidates, batch by batch."""

    def __init__(
        self,
        refiner: Refiner,
        extractor: Extractor,
        volume: Volume,
        background: Volume | None,
        zyx: Float64[np.ndarray, "n 3"],
        score: Float32[np.ndarray, "n 1"] | None,
    ) -> None:
        self.refiner, self.extractor, self.volume = refiner, extractor, volume
        self.background, self.zyx, self.score = background, zyx, score
        self.blocks = extractor.blocks(volume, zyx, BLOCK)
        self._reader = extractor.reader(volume)
        self._moments: Moments | None = None

    def all(
        self, numbers: Any, show: bool | None
    ) -> Iterator[tuple[Int64[np.ndarray, " m"], Float64[np.ndarray, " m"]]]:
        """Row indices and P(cell) of successive batches."""
        done = len(self.zyx) - sum(len(self.blocks[number]) for number in numbers)
        if len(numbers) and self.refiner.correction != "none" and self._moments is None:
            self._moments = self._measure()
        with bar("refining", len(self.zyx), unit="candidates", done=done, show=show) as advance:
            for number in numbers:
                rows = self.blocks[number]
                p = self.refiner.predict_proba(self._features(rows), moments=self._moments)[:, 1]
                advance(len(rows))
                yield rows, p

    def keep_moments(self, work: ResumableTiles) -> None:
        """Load the brain's moments from earlier work, or store them."""
        if self.refiner.correction == "none" or not len(self.zyx):
            return
        if (part := work.read("moments")) is not None:
            self._moments = Moments(**part.arrays)
            return
        self._moments = self._measure()
        work.write("moments", {"mean": self._moments.mean, "covariance": self._moments.covariance})

    def _measure(self) -> Moments:
        rows = np.arange(len(self.zyx))
        if len(rows) > SAMPLE:
            rows = np.sort(np.random.default_rng(0).choice(len(rows), SAMPLE, replace=False))
        return Moments.of(self._features(rows).x)

    def _features(self, rows: Int64[np.ndarray, " m"]) -> Any:
        features = self.extractor.features(
            self.volume, self.zyx[rows], background=self.background, reader=self._reader, show=False
        )
        if self.score is None:
            return features
        return with_candidate_score(features, self.score[rows], self.refiner.provenance_[CANDIDATE_SCORE])


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
    meta = dict(points.meta) | {"volume": volume.name, "refiner_sha256": refiner_sha256(refiner)}
    for name, provenance in extractor.provenance.items():
        if name in (DETECTOR_LOGIT, SHAPE, AMPLITUDE):
            continue  # its detector is named with the pooled map; shape and amplitude need no model
        kind = "encoder" if name == MAE else "detector"
        meta |= {f"refiner_{kind}": provenance.name, f"refiner_{kind}_sha256": provenance.sha256}
    if (score := refiner.provenance_.get(CANDIDATE_SCORE)) is not None:
        meta["refiner_own_score"] = str(score.settings["column"])
    if volume.name in training_volumes(refiner.fit_provenance_):
        meta["refiner_trained_on_volume"] = "yes"
    return meta | {"p_cell_threshold": f"{refiner.threshold_:.6g}"}


def _with(points: Points, p_cell: np.ndarray, meta: dict[str, str], least: float | None) -> Points:
    """The candidates with their P(cell); only those at or above `least` if it is given."""
    keep = slice(None) if least is None else p_cell.astype(np.float32).astype(np.float64) >= least
    columns = {name: values[keep] for name, values in points.columns.items() if name != P_CELL}
    return Points(points.zyx[keep], columns | {P_CELL: p_cell.astype(np.float32)[keep]}, meta)
