"""Comparison of methods on held-out volumes: from files to a report."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError
from canvas_fm.files.option_sets import takes
from canvas_fm.files.resumable import check_own_folder
from canvas_fm.heads.compare.compare import compare
from canvas_fm.heads.compare.label_curve import COUNTS
from canvas_fm.heads.compare.pooled_candidates import PooledCandidates
from canvas_fm.heads.features.extractor import Extractor
from canvas_fm.heads.features.feature_cache import other_contrasts
from canvas_fm.heads.labels.candidates import label_brains
from canvas_fm.models.folder.training_volumes import volume_in_training
from canvas_fm.models.load_model import Detector, Encoder, load
from canvas_fm.viewing.report.methods import METHODS, RESNET, Methods
from canvas_fm.viewing.report.report_flags import ReportOptions
from canvas_fm.viewing.report.write import write_report

_log = logging.getLogger(__name__)
FITS = "fits"  # in the folder of a report: its finished fits


@takes(ReportOptions)
def report(
    volumes: Sequence[Volume],
    candidates: Sequence[Points | str | Path],
    truth: Sequence[Points | str | Path],
    out: str | Path,
    *,
    tolerance_um: float,
    labels: str | None = None,
    score: str | None = None,
    within: Sequence[str | Path] | None = None,
    background: Sequence[Volume] | None = None,
    encoders: Sequence[str | Path] = (),
    detectors: Sequence[str | Path] = (),
    methods: Sequence[str] | None = None,
    folds: Sequence[Sequence[str]] | None = None,
    seeds: int = 3,
    counts: Sequence[int] = COUNTS,
    candidate_threshold: float | None = None,
    title: str = "Telling cells from other candidates",
    show: bool | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Compare methods by cross-validation over volumes and write the report folder `out`.

    `labels` is a column of the candidates (1, 0, −1), else they come from matching them to `truth`.
    `background` are the second channels of detectors that take one, one a volume. `folds`
    name the volumes held out together, by default each by itself; `encoders` and `detectors` are one for all
    folds, or one a fold in their order, trained without its volumes. `methods` are among METHODS, by default
    all but `finetune` that what is given allows. `candidate_threshold` is the candidate score from which on
    candidates count as cells before any judge; by default the operating threshold of the fold's detector
    where they are its, else all of them count. One volume is divided by its boxes, and the report says so.

    Finished fits lie in `out`/fits: the same call after a kill, or with a method more, makes only the others.
    Returns what report.json holds. Raises CanvasError for what does not fit together.
    """
    settings = ReportOptions.of(**options)
    check_own_folder(Path(out), FITS)
    brains = label_brains(
        volumes,
        candidates,
        labels=labels,
        truth=truth,
        tolerance_um=tolerance_um,
        within=within,
        background=background,
        score=score,
    )
    pooled = PooledCandidates(
        brains, resample=settings.resample, ignore_voxel_size=settings.ignore_voxel_size
    )
    held_out = _held_out(pooled, folds)
    names = _asked(methods, pooled, bool(encoders or detectors), bool(encoders))
    encoder_of = _one_a_fold(encoders, held_out, "encoder")
    detector_of = _one_a_fold(detectors, held_out, "detector")
    builder = Methods(pooled, encoder_of, detector_of, list(held_out), settings, show)
    builder.check(names)
    plain = [method for name in names for method in builder.named(name)]
    swept = builder.sweep()
    result = compare(
        pooled,
        [*plain, *swept],
        folds=held_out,
        seeds=seeds,
        counts=counts,
        curve_of=[method.name for method in plain],
        own_thresholds=_recorded_thresholds(pooled, held_out, detector_of, candidate_threshold),
        keep=Path(out) / FITS,
        show=show,
    )
    result.notes.extend(_leaks(pooled, held_out, encoder_of, detector_of))
    reference = RESNET if RESNET in result.methods else None
    about = _models(builder.extractors) | _heads(settings, names) if encoder_of or detector_of else {}
    return write_report(result, out, title=title, reference=reference, about=about)


def _held_out(pooled: PooledCandidates, folds: Sequence[Sequence[str]] | None) -> dict[str, tuple[str, ...]]:
    if folds is None:
        if pooled.by == "region":
            return {part.name: (part.name,) for part in pooled.parts}
        by_brain: dict[str, tuple[str, ...]] = {}
        for part in pooled.parts:
            by_brain[part.brain] = (*by_brain.get(part.brain, ()), part.name)
        return by_brain
    if pooled.by == "region":
        raise CanvasError("there is one volume, whose regions are held out in turn; leave out the folds")
    return {" + ".join(names): tuple(names) for names in folds}


def _asked(
    methods: Sequence[str] | None, pooled: PooledCandidates, models: bool, encoders: bool
) -> list[str]:
    """The methods in the order of METHODS; by default those that need nothing which was not given."""
    if methods is None:
        lacking = {"finetune"} | ({"score"} if pooled.own is None else set())
        return [name for name in METHODS if name not in lacking | (set() if models else {"encoder"})]
    if unknown := [name for name in methods if name not in METHODS]:
        raise CanvasError(f"there is no method {unknown[0]!r}; give some of {', '.join(METHODS)}")
    if "encoder" in methods and not models:
        raise CanvasError("the method 'encoder' needs --encoder, --detector or both")
    if "finetune" in methods and not encoders:
        raise CanvasError("the method 'finetune' needs --encoder: a detector has no blocks to unfreeze")
    return [name for name in METHODS if name in methods]


def _one_a_fold(models: Sequence[str | Path], folds: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """A model for each fold: the same for all, or one each."""
    if not models:
        return {}
    if len(models) not in (1, len(folds)):
        raise CanvasError(
            f"{len(models)} {kind}s for {len(folds)} folds ({', '.join(folds)}); give one, or one a fold"
        )
    opened = [load(path, kind="encoder" if kind == "encoder" else "detector") for path in models]
    return {fold: opened[number % len(opened)] for number, fold in enumerate(folds)}


def _recorded_thresholds(
    pooled: PooledCandidates,
    held_out: Mapping[str, tuple[str, ...]],
    detectors: Mapping[str, Detector],
    threshold: float | None,
) -> dict[str, float]:
    """Recorded threshold of the candidate score, by volume where it is known."""
    if threshold is not None:
        return {part.name: threshold for part in pooled.parts}
    by_volume = {}
    for fold, names in held_out.items():
        detector = detectors.get(fold)
        for part in pooled.parts:
            if part.name in names and detector is not None:
                detector_sha256 = part.points.meta.get("detector_sha256")
                if detector_sha256 == detector.sha256 and part.own is not None:
                    by_volume[part.name] = detector.config.threshold
    return by_volume


def _models(by_fold: Mapping[str, Extractor]) -> dict[str, Any]:
    """The model used for each fold."""
    descriptions: dict[str, Any] = {}
    for fold, extractor in by_fold.items():
        for block, provenance in extractor.provenance.items():
            descriptions[f"{block}, {fold} held out"] = (
                f"{provenance.name}, sha256 {provenance.sha256}, {dict(provenance.settings)}"
            )
    return descriptions


def _heads(settings: ReportOptions, names: Sequence[str]) -> dict[str, Any]:
    """Settings of the heads."""
    penalty = "C chosen on training volumes" if settings.C is None else f"C {settings.C:g}"
    descriptions = {"heads on features": f"{settings.head}, {penalty}, correction {settings.correction}"}
    if others := other_contrasts(settings.augment_contrast):
        but = "; the fine-tuned at 1 alone" if "finetune" in names else ""
        descriptions["fitted at contrasts"] = ", ".join(f"{contrast:g}" for contrast in (1.0, *others)) + but
    return descriptions


def _leaks(
    pooled: PooledCandidates,
    held_out: Mapping[str, tuple[str, ...]],
    encoders: Mapping[str, Encoder],
    detectors: Mapping[str, Detector],
) -> list[str]:
    """A warning for each model that was trained on a volume it is scored on as held out.

    One that shares tissue with it counts too, and so does what the methods themselves learn from.
    """
    warnings = []
    parts = {part.name: part for part in pooled.parts}
    for fold, names in held_out.items() if pooled.by == "brain" else ():
        shared = {parts[name].brain for name in names}
        learned = [part.name for part in pooled.parts if part.name not in names and part.brain in shared]
        if learned:
            warnings.append(
                f"{fold} is held out, while {', '.join(learned)} with voxels of the same volume is used to "
                "learn from"
            )
    for kind, models in (("encoder", encoders), ("detector", detectors)):
        scored: dict[str, list[str]] = {}
        for fold, model in models.items():
            provenance = model.config.provenance
            seen = (
                volume_in_training(provenance, parts[name].volume.name, parts[name].volume.crop_of)
                or volume_in_training(provenance, name)
                for name in held_out[fold]
            )
            known = scored.setdefault(model.name, [])
            known += [volume for volume in seen if volume is not None and volume not in known]
        for name, volumes in scored.items():
            if volumes:
                warnings.append(
                    f"the {kind} {name} was trained on {', '.join(volumes)}, and is scored on it here"
                )
    for sentence in warnings:
        _log.warning("%s", sentence)
    return warnings
