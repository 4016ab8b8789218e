"""`refine fit` as one function: labelled candidates, features, fine-tuning where asked for, the folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError
from canvas_fm.files.option_sets import takes
from canvas_fm.heads.features.extractor import Extractor
from canvas_fm.heads.features.shape import SHAPE_RULE
from canvas_fm.heads.labels.candidates import label_brains
from canvas_fm.heads.refine.counts.candidate_recall import CandidateRecall, read_recalls
from canvas_fm.heads.refine.fit.fit import fit_labelled
from canvas_fm.heads.refine.fit_flags import FitAndRunOptions
from canvas_fm.inference.run_flags import BatchedRun
from canvas_fm.models.load_model import Detector, Encoder, load


@takes(FitAndRunOptions)
def fit_refiner(
    volumes: Sequence[Volume | str | Path],
    candidates: Sequence[Points | str | Path],
    out: str | Path,
    *,
    encoder: Encoder | str | Path | None = None,
    detector: Detector | str | Path | None = None,
    labels: str | None = None,
    truth: Sequence[Points | str | Path] | None = None,
    tolerance_um: float | None = None,
    within: Sequence[Any] | None = None,
    background: Sequence[Volume] | None = None,
    recalls: Sequence[CandidateRecall] | str | Path = (),
    feature_cache: str | Path | None = None,
    overwrite: bool = False,
    show: bool | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Fit a refiner on labelled candidates, write its folder with `report.json`, return the report.

    Labels are the column `labels`, else come from matching with the true cells `truth` within `tolerance_um`;
    `candidates`, `truth`, `within` (boxes in which everything is labelled) and `background` are given one a
    volume. Features are of `encoder`, `detector` or both, opened or by path or shipped name. The folder
    `feature_cache` keeps features for the next fit. `recalls` (or a JSON file of them) are recorded for
    counts, see `CandidateRecall`. With `unfreeze` blocks of the encoder are fitted too.

    Every figure is of brains (or regions, where there is one brain) that the model had not seen, beside the
    F1 of keeping every candidate and the ceiling 2R / (1 + R) that no refiner of these candidates passes.
    Raises CanvasError where labels, models and options do not go together, before any work is done.
    """
    opts = FitAndRunOptions.of(**options)
    if opts.detector_score and detector is None:
        raise CanvasError("detector_score is what a detector says of a candidate; give --detector too")
    opened = [volume if isinstance(volume, Volume) else Volume.open(volume) for volume in volumes]
    brains = label_brains(
        opened, candidates, labels=labels, truth=truth, tolerance_um=tolerance_um, within=within,
        score=opts.score_column, background=background,
    )  # fmt: skip
    running = {name: getattr(opts, name) for name in BatchedRun.model_fields}
    extractor = Extractor(
        _loaded(encoder, "encoder"),
        _loaded(detector, "detector"),
        opts.pool,
        opts.layer,
        detector_score=opts.detector_score,
        brightness=opts.detector_brightness,
        shape=SHAPE_RULE if opts.shape else None,
        amplitude=opts.amplitude,
        **running,
    )
    tuning = None
    if opts.unfreeze:
        from canvas_fm.training.finetune.finetune import Tuning

        tuning = Tuning(opts.unfreeze, augment=opts.augment)
    return fit_labelled(
        opts.refiner(encoder=encoder is not None, detector=detector is not None), brains, extractor, out,
        candidate_score=opts.candidate_score, keep_order=not opts.ignore_candidate_score,
        recalls=read_recalls(recalls) if isinstance(recalls, str | Path) else recalls,
        augment_contrast=opts.augment_contrast,
        tuning=tuning, feature_cache=None if feature_cache is None else Path(feature_cache),
        overwrite=overwrite, show=show,
    )  # fmt: skip


def _loaded(model: Any, kind: Literal["encoder", "detector"]) -> Any:
    return load(model, kind=kind) if isinstance(model, str | Path) else model
