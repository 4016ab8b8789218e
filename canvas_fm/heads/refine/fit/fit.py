"""Fitting a refiner: volumes and labelled candidates to a folder with a report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from canvas_fm.errors import BadInput, CanvasError, counted
from canvas_fm.evaluation.metrics.classification import ceiling
from canvas_fm.files.atomic import new_folder, write_text_atomic
from canvas_fm.files.checksum import sha256
from canvas_fm.heads.features.candidate_score import candidate_scores, with_candidate_score
from canvas_fm.heads.features.extractor import DETECTOR, MAE, Extractor
from canvas_fm.heads.features.feature_cache import features_at, other_contrasts
from canvas_fm.heads.features.feature_set import CANDIDATE_SCORE, SHAPE, FeatureSet, stack
from canvas_fm.heads.labels.candidates import SKIP, Candidates
from canvas_fm.heads.labels.group_folds import grouped_folds, held_out_parts
from canvas_fm.heads.refine.columns import Columns
from canvas_fm.heads.refine.counts.candidate_recall import CandidateRecall, training_recalls
from canvas_fm.heads.refine.fit.training_set import TrainingSet
from canvas_fm.heads.refine.head.candidate_order import keep_candidate_order
from canvas_fm.heads.refine.refiner import Refiner
from canvas_fm.version import __version__

REPORT = "report.json"


@runtime_checkable
class EncoderTuning(Protocol):
    """Protocol: fine-tuning of the encoder's last blocks in place of `Refiner.fit`."""

    def check(self, refiner: Refiner, extractor: Extractor) -> None:
        """Raise BadInput for invalid settings before hours of work."""
        ...

    def fit(
        self, refiner: Refiner, data: TrainingSet, brains: Sequence[Candidates], extractor: Extractor,
        show: bool | None,
    ) -> None: ...  # fmt: skip


def training_set(
    brains: Sequence[Candidates],
    extractor: Extractor,
    *,
    candidate_score: bool = False,
    augment_contrast: Sequence[float] = (),
    feature_cache: Path | None = None,
    show: bool | None = None,
) -> TrainingSet:
    """Features of all brains, cached in the folder `feature_cache`.

    With `candidate_score` the score that the candidates came with is one more block (see `candidate_scores`),
    with `augment_contrast` the brains are seen once more at each of these (1 is as they are).
    Candidates without a label have features too. Memory: 4 bytes a number.
    """
    for brain in brains:
        extractor.check(brain.volume, brain.background)
    scores = candidate_scores(brains) if candidate_score else None

    def seen_at(contrast: float) -> FeatureSet:
        parts: list[FeatureSet] = []
        for brain in brains:
            part = features_at(
                contrast, extractor, brain.volume, brain.zyx, feature_cache, group=brain.brain,
                background=brain.background, show=show,
            )  # fmt: skip
            if scores is not None:
                part = with_candidate_score(part, scores[0][len(parts)], scores[1])
            parts.append(part)
        return stack(parts)

    return TrainingSet(
        seen_at(1.0),
        np.concatenate([brain.label for brain in brains]),
        _regions(brains),
        _missed(brains),
        tuple(seen_at(contrast) for contrast in other_contrasts(augment_contrast)),
    )


def fit_labelled(
    refiner: Refiner,
    brains: Sequence[Candidates],
    extractor: Extractor,
    out: str | Path,
    *,
    candidate_score: bool = False,
    keep_order: bool = False,
    augment_contrast: Sequence[float] = (),
    tuning: EncoderTuning | None = None,
    recalls: Sequence[CandidateRecall] = (),
    feature_cache: Path | None = None,
    overwrite: bool = False,
    show: bool | None = None,
) -> dict[str, Any]:
    """As `fit_refiner`, for candidates that carry their labels and models in an extractor.

    With `keep_order` the candidates' own score is blended in where it ranks held-out brains better. Features
    are of labelled candidates only, unless all are needed: by a per-brain correction, or in `feature_cache`
    for the next fit, whose labels may be others.
    """
    out = Path(out)
    if out.exists() and not overwrite and not (out.is_dir() and not any(out.iterdir())):
        raise CanvasError(f"{out} is there already; give another --out, or --overwrite to replace it")
    contrasts = other_contrasts(augment_contrast)
    if tuning is not None:
        if candidate_score or contrasts:
            other = "candidate_score" if candidate_score else "augment_contrast"
            raise CanvasError(
                f"{other} goes with the encoder as it is, not with unfrozen blocks: give one of the two"
            )
        tuning.check(refiner, extractor)
    _check_before_work(refiner, brains, extractor, candidate_score)
    every = feature_cache is not None or refiner.correction != "none" or refiner.unlabelled != SKIP
    learned = (
        list(brains)
        if every
        else [labelled for brain in brains if len(labelled := brain.rows(brain.label != SKIP))]
    )
    data = training_set(
        learned, extractor, candidate_score=candidate_score, augment_contrast=contrasts,
        feature_cache=feature_cache, show=show,
    )  # fmt: skip
    data = replace(data, missed=_missed(brains))
    order = None
    if tuning is None:
        refiner.fit(
            data.features, data.label, regions=data.regions, missed=data.missed,
            contrast_augmented=data.contrast_augmented,
        )  # fmt: skip
        if keep_order and not candidate_score:
            order = keep_candidate_order(refiner, data, learned)
    else:
        tuning.fit(refiner, data, learned, extractor, show)
    refiner.skipped_ += sum(map(len, brains)) - sum(map(len, learned))
    counts = {brain.name: brain.counts() for brain in brains}
    markers = {brain.name: brain.volume.marker for brain in brains}
    cubes = {brain.name: brain.volume.crop_of for brain in brains}
    trained_on = {
        name: count | ({} if cubes[name] is None else {"crop_of": cubes[name]})
        for name, count in counts.items()
    }
    provenance = {"trained_on": trained_on, "markers": markers, "canvas_fm": __version__}
    if contrasts:
        provenance["contrasts"] = [1.0, *contrasts]
    detector = None if extractor.detector is None else extractor.detector.config.provenance
    refiner.recalls_ = [*training_recalls(brains, detector), *recalls]
    with new_folder(out) as folder:  # with its report or not at all: a half would be taken for a whole
        identity = refiner.save(folder, provenance)
        report = _report(refiner, brains, out, identity, counts, order, contrasts)
        write_text_atomic(folder / REPORT, json.dumps(report, indent=2, allow_nan=False) + "\n")
    return report


def _report(
    refiner: Refiner, brains: Sequence[Candidates], out: Path, identity: str,
    counts: dict[str, dict[str, Any]], order: dict[str, Any] | None, contrasts: Sequence[float],
) -> dict[str, Any]:  # fmt: skip
    return {
        "refiner": str(out),
        "sha256": identity,
        "variant": refiner.variant,
        "cut": refiner.columns_.cut,
        "ratio": refiner.ratio,
        "columns": {name: part.stop - part.start for name, part in refiner.blocks_.items()},
        "columns_used": refiner.columns_.width,
        "models": {name: model.as_dict() for name, model in refiner.provenance_.items()},
        "tuned": None if refiner.tuned_ is None else refiner.tuned_.as_dict(),
        "candidates_order": order,
        "recalls": [recall.model_dump() for recall in refiner.recalls_],
        "threshold": refiner.threshold_,
        "C": refiner.C_,
        "contrasts": [1.0, *contrasts],
        "skipped": refiner.skipped_,
        "brains": {name: count | _ceiling(count) for name, count in counts.items()},
        "cross_validation": refiner.cross_validation_,
        "settings": {name: value for name, value in refiner.get_params().items() if name != "blocks"},
        "files": [{"path": str(path), "sha256": sha256(path)} for brain in brains for path in brain.files],
        "canvas_fm": __version__,
    }


def _check_before_work(
    refiner: Refiner, brains: Sequence[Candidates], extractor: Extractor, candidate_score: bool
) -> None:
    """Validate labels, folds and models before hours of embedding."""
    provenance = extractor.provenance
    for block, flag in ((MAE, "--encoder"), (DETECTOR, "--detector")):
        if refiner.variant in (block, "concat") and block not in provenance:
            raise BadInput(f"variant {refiner.variant} needs the {block} features: give {flag}")
    if refiner.variant == SHAPE and SHAPE not in provenance:
        raise BadInput("variant shape needs the shape features: give --shape")
    blocks = extractor.layout
    width = max(part.stop for part in blocks.values())
    if candidate_score:
        blocks, width = {**blocks, CANDIDATE_SCORE: slice(width, width + 1)}, width + 1
    columns = Columns.of(blocks, width, refiner.variant, refiner.cut, refiner.ratio, refiner.reduce)
    columns.check_correction(refiner.correction)
    label = np.concatenate([brain.label for brain in brains])
    name = np.repeat([brain.brain for brain in brains], [len(brain) for brain in brains])
    regions = _regions(brains)
    labelled = label >= 0
    if not labelled.any():
        raise BadInput(
            f"none of the {counted(len(label), 'candidate')} carries a label of 1 or 0 where it counts"
        )
    name, regions = held_out_parts(refiner.hold_out, name, regions)
    grouped_folds(
        name[labelled],
        label[labelled] == 1,
        folds=refiner.folds,
        regions=None if regions is None else regions[labelled],
        force_random=refiner.force_random,
    )


def _missed(brains: Sequence[Candidates]) -> dict[str, int]:
    """True cells without a candidate by brain, where they are known of all of it."""
    missed: dict[str, int] = {}
    for brain in brains:
        if brain.missed is not None:
            missed[brain.brain] = missed.get(brain.brain, 0) + brain.missed
    unknown = {brain.brain for brain in brains if brain.missed is None}
    return {name: count for name, count in missed.items() if name not in unknown}


def _ceiling(counts: dict[str, Any]) -> dict[str, float | None]:
    return {"f1_ceiling": None if counts["recall"] is None else ceiling(counts["recall"])}


def _regions(brains: Sequence[Candidates]) -> np.ndarray | None:
    """Box of every row, None unless all brains have boxes."""
    if any(brain.boxes is None for brain in brains):
        return None
    return np.concatenate([brain.region for brain in brains])
