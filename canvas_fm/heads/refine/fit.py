"""From volumes, candidates and their labels to a refiner's folder with its report."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from canvas_fm.errors import BadInput, CanvasError
from canvas_fm.evaluation.classification import ceiling
from canvas_fm.files.atomic import write_text_atomic
from canvas_fm.files.checksum import sha256
from canvas_fm.heads.features.candidate_score import candidate_scores, with_candidate_score
from canvas_fm.heads.features.extractor import DETECTOR, MAE, Extractor
from canvas_fm.heads.features.feature_cache import features_at, other_contrasts
from canvas_fm.heads.features.feature_set import CANDIDATE_SCORE, FeatureSet, stack
from canvas_fm.heads.labels.candidates import Candidates
from canvas_fm.heads.labels.group_folds import grouped_folds, held_out_parts
from canvas_fm.heads.refine.columns import Columns
from canvas_fm.heads.refine.refiner import Refiner
from canvas_fm.version import __version__

_log = logging.getLogger(__name__)
REPORT = "report.json"


@dataclass(frozen=True)
class TrainingSet:
    """Features of all brains below each other, with labels, regions and what was missed in each brain.

    `contrast_augmented` are the features of the same candidates with each brain seen at another contrast.
    """

    features: FeatureSet
    label: Int64[np.ndarray, " n"]
    regions: np.ndarray | None
    missed: dict[str, int]
    contrast_augmented: tuple[FeatureSet, ...] = ()


def training_set(
    brains: Sequence[Candidates],
    extractor: Extractor,
    *,
    own_score: bool = False,
    contrasts: Sequence[float] = (),
    keep: Path | None = None,
    show: bool | None = None,
) -> TrainingSet:
    """The features of all brains. With the folder `keep` they are worked out once for all later calls.

    With `own_score` the score that the candidates came with is one more block (see `candidate_scores`), with
    `contrasts` the brains are seen once more at each of these (1 is as they are).
    With a per-brain correction in mind, unlabelled candidates have features too. Memory: 4 bytes a number.
    """
    for brain in brains:
        extractor.check(brain.volume, brain.background)
    scores = candidate_scores(brains) if own_score else None

    def seen_at(contrast: float) -> FeatureSet:
        parts: list[FeatureSet] = []
        for brain in brains:
            part = features_at(
                contrast, extractor, brain.volume, brain.zyx, keep, group=brain.name,
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
        {brain.name: brain.missed for brain in brains if brain.missed is not None},
        tuple(seen_at(contrast) for contrast in other_contrasts(contrasts)),
    )


def fit_refiner(
    refiner: Refiner,
    brains: Sequence[Candidates],
    extractor: Extractor,
    out: str | Path,
    *,
    own_score: bool = False,
    contrasts: Sequence[float] = (),
    overwrite: bool = False,
    keep: Path | None = None,
    show: bool | None = None,
    fit: Callable[[TrainingSet], None] | None = None,
) -> dict[str, Any]:
    """Fit a refiner, write its folder with `report.json` in it, and return that report.

    Every figure is of brains (or regions, where there is one brain) that the model had not seen, beside the
    F1 of keeping every candidate and the ceiling 2R / (1 + R) that no judgement of these candidates passes.
    With `own_score` the refiner also looks at the score that the candidates came with, beside any variant.
    With `contrasts` it also learns from the brains as if stained so many times as strongly, so that model and
    threshold hold for a dimmer or brighter one.
    `fit` fits the refiner in another way than `Refiner.fit` does.
    """
    out = Path(out)
    if out.exists() and not overwrite and not (out.is_dir() and not any(out.iterdir())):
        raise CanvasError(f"{out} is there already; give another --out, or --overwrite to replace it")
    other_contrasts(contrasts)
    _check_before_work(refiner, brains, extractor, own_score)
    data = training_set(brains, extractor, own_score=own_score, contrasts=contrasts, keep=keep, show=show)
    if fit is None:
        refiner.fit(
            data.features,
            data.label,
            regions=data.regions,
            missed=data.missed,
            contrast_augmented=data.contrast_augmented,
        )
    else:
        fit(data)
    counts = {brain.name: brain.counts() for brain in brains}
    markers = {brain.name: brain.volume.marker for brain in brains}
    provenance = {"trained_on": counts, "markers": markers, "canvas_fm": __version__}
    if contrast_augmented := other_contrasts(contrasts):
        provenance["contrasts"] = [1.0, *contrast_augmented]
    identity = refiner.save(out, provenance)
    report = {
        "refiner": str(out),
        "sha256": identity,
        "variant": refiner.variant,
        "cut": refiner.columns_.cut,
        "ratio": refiner.ratio,
        "columns": {name: part.stop - part.start for name, part in refiner.blocks_.items()},
        "columns_used": refiner.columns_.width,
        "models": {name: model.as_dict() for name, model in refiner.provenance_.items()},
        "tuned": None if refiner.tuned_ is None else refiner.tuned_.as_dict(),
        "threshold": refiner.threshold_,
        "C": refiner.C_,
        "contrasts": [1.0, *contrast_augmented],
        "skipped": refiner.skipped_,
        "brains": {name: found | _ceiling(found) for name, found in counts.items()},
        "cross_validation": refiner.cross_validation_,
        "settings": {name: value for name, value in refiner.get_params().items() if name != "blocks"},
        "files": [{"path": str(path), "sha256": sha256(path)} for brain in brains for path in brain.files],
        "canvas_fm": __version__,
    }
    write_text_atomic(out / REPORT, json.dumps(report, indent=2, allow_nan=False) + "\n")
    return report


def _check_before_work(
    refiner: Refiner, brains: Sequence[Candidates], extractor: Extractor, own_score: bool
) -> None:
    """What can be refused before hours of embedding: labels, folds, and a model that the variant needs."""
    provenance = extractor.provenance
    for block, flag in ((MAE, "--encoder"), (DETECTOR, "--detector")):
        if refiner.variant in (block, "concat") and block not in provenance:
            raise BadInput(f"variant {refiner.variant} needs the {block} features: give {flag}")
    blocks = extractor.layout
    width = max(part.stop for part in blocks.values())
    if own_score:
        blocks, width = {**blocks, CANDIDATE_SCORE: slice(width, width + 1)}, width + 1
    columns = Columns.of(blocks, width, refiner.variant, refiner.cut, refiner.ratio, refiner.reduce)
    columns.check_correction(refiner.correction)
    label = np.concatenate([brain.label for brain in brains])
    name = np.repeat([brain.name for brain in brains], [len(brain) for brain in brains])
    regions = _regions(brains)
    kept = label >= 0
    if not kept.any():
        raise BadInput(f"none of the {len(label)} candidates carries a label of 1 or 0 where it counts")
    name, regions = held_out_parts(refiner.hold_out, name, regions)
    grouped_folds(
        name[kept],
        label[kept] == 1,
        folds=refiner.folds,
        regions=None if regions is None else regions[kept],
        force_random=refiner.force_random,
    )


def _ceiling(counts: dict[str, Any]) -> dict[str, float | None]:
    return {"f1_ceiling": None if counts["recall"] is None else ceiling(counts["recall"])}


def _regions(brains: Sequence[Candidates]) -> np.ndarray | None:
    """The box of every row, None unless all brains have boxes."""
    if any(brain.boxes is None for brain in brains):
        return None
    return np.concatenate([brain.region for brain in brains])
