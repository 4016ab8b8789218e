"""Methods of a report by name, and their features."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np

from canvas_fm.errors import CanvasError
from canvas_fm.heads.compare.baselines import CandidateScoreMethod, Embedded, PcaCrops, ShapeTrees
from canvas_fm.heads.compare.methods import Method
from canvas_fm.heads.compare.pooled_candidates import PooledCandidates, features_of_rows
from canvas_fm.heads.features.candidate_score import candidate_scores, with_candidate_score
from canvas_fm.heads.features.extractor import DETECTOR, MAE, Extractor
from canvas_fm.heads.features.feature_cache import features_at, other_contrasts
from canvas_fm.heads.features.feature_set import (
    CANDIDATE_SCORE,
    DETECTOR_LOGIT,
    UNPENALISED,
    FeatureSet,
    Provenance,
    stack,
)
from canvas_fm.heads.refine.columns import CONCAT, Columns
from canvas_fm.heads.refine.refiner import Refiner
from canvas_fm.models.encoder.random_encoder import random_encoder
from canvas_fm.models.heads.resnet import ResNetConfig
from canvas_fm.models.heads.tuned_blocks import unfrozen
from canvas_fm.models.load_model import Detector, Encoder
from canvas_fm.training.finetune.finetune import Tuning
from canvas_fm.training.finetune.method import FinetunedEncoder
from canvas_fm.training.finetune.resnet_method import ResNetClassifier
from canvas_fm.viewing.report.report_flags import Method as Named
from canvas_fm.viewing.report.report_flags import ReportOptions

METHODS = get_args(Named)
RESNET = "3D ResNet"


class Methods:
    """Methods of a task, with encoders and detectors of each fold; features are computed once."""

    def __init__(
        self,
        pooled: PooledCandidates,
        encoders: Mapping[str, Encoder],
        detectors: Mapping[str, Detector],
        folds: Sequence[str],
        settings: ReportOptions,
        show: bool | None,
    ) -> None:
        self._pooled, self._encoders, self._detectors = pooled, encoders, detectors
        self._folds, self._settings, self._show = folds, settings, show
        self._known: dict[str, FeatureSet] = {}
        self._chosen: dict[tuple[int, ...], FeatureSet] = {}

    def named(self, name: str) -> list[Method]:
        """The methods behind one of METHODS: `encoder` stands for each block and both together.

        With `own_score` of the settings the last of these stands there once more, with the candidate score.
        """
        simple: dict[str, Callable[[], Method]] = {
            "score": CandidateScoreMethod,
            "shape": ShapeTrees,
            "pca": PcaCrops,
            "resnet": self._resnet,
        }
        if name in simple:
            return [simple[name]()]
        if name == "random":
            like = next(iter(self._encoders.values())).config if self._encoders else None
            other = self._extractor(random_encoder(like, voxel_um=self._pooled.voxel_um), None)
            return [self._method("random encoder", dict.fromkeys(self._folds, other), MAE)]
        if name == "encoder":
            return [
                *(self._method(variant, self.extractors, variant) for variant in self._variants),
                *self._with_scores(),
            ]
        return [self._finetuned(variant) for variant in self._variants if variant != DETECTOR]

    def check(self, names: Sequence[str]) -> None:
        """Validate before hours of embedding: ratios, blocks to unfreeze."""
        settings = self._settings
        if settings.detector_score and ("encoder" not in names or not self._detectors):
            raise CanvasError(
                "the detector score is a feature next to others: give --detector, and encoder as method"
            )
        if settings.candidate_score:
            self._check_score(names)
        if (settings.candidate_score or settings.detector_score) and (how := settings.correction) != "none":
            raise CanvasError(
                f"the correction {how} would take the level of the "
                f"{'detector score' if settings.detector_score else 'candidate score'} away; "
                "leave one of the two out"
            )
        if other_contrasts(settings.augment_contrast) and not {"encoder", "random"} & set(names):
            raise CanvasError(
                "other contrasts are for heads on features: leave them out, or ask for the method encoder or "
                "random"
            )
        if settings.ratios and CONCAT not in self._variants:
            raise CanvasError("a contribution ratio is of two kinds of features: give encoders and detectors")
        for extractor in self.extractors.values() if names and (self._encoders or self._detectors) else ():
            blocks = extractor.layout
            width = max(part.stop for part in blocks.values())
            for cut in settings.cut if settings.ratios else ():
                for ratio in settings.ratios:
                    Columns.of(blocks, width, CONCAT, cut, ratio, "columns")
            if "finetune" in names and extractor.encoder is not None:
                unfrozen(extractor.encoder, settings.unfreeze, settings.layer)

    def sweep(self) -> list[Method]:
        """Both blocks, one of them reduced, for each ratio and block to be cut (the paper's contribution)."""
        settings = self._settings
        return [
            self._method(f"concat, {ratio:.0%} of {cut}", self.extractors, CONCAT, cut=cut, ratio=ratio)
            for cut in settings.cut
            for ratio in settings.ratios
        ]

    @property
    def extractors(self) -> dict[str, Extractor]:
        """Feature extractors by fold."""
        return {
            fold: self._extractor(self._encoders.get(fold), self._detectors.get(fold)) for fold in self._folds
        }

    @property
    def _variants(self) -> list[str]:
        both = bool(self._encoders) and bool(self._detectors)
        alone = [DETECTOR] * bool(self._detectors) + [MAE] * bool(self._encoders)
        return [*alone, CONCAT] if both else alone

    def _resnet(self) -> ResNetClassifier:
        settings = self._settings
        return ResNetClassifier(
            ResNetConfig(width=settings.resnet_width, crop_zyx=settings.resnet_crop_zyx),
            most_steps=settings.resnet_steps,
            least_steps=min(150, settings.resnet_steps),
            device=settings.device,
            precision=settings.precision,
            name=RESNET,
        )

    def _method(
        self,
        name: str,
        by_fold: Mapping[str, Extractor],
        variant: str,
        *,
        unpenalised: Sequence[str] = (),
        **cut: Any,
    ) -> Embedded:
        """A refiner on embeddings, detector features or both, with the unpenalised blocks."""

        def embed(rows: np.ndarray, fold: str) -> np.ndarray:
            return self._beside(features_of_rows(by_fold[fold], self._pooled, rows), unpenalised, rows).x

        def at(contrast: float) -> dict[str, FeatureSet]:
            return {
                fold: self._features(extractor, contrast, unpenalised) for fold, extractor in by_fold.items()
            }

        return Embedded(
            name,
            at(1.0),
            contrast_augmented=[
                at(contrast) for contrast in other_contrasts(self._settings.augment_contrast)
            ],
            refiner=self._refiner(variant, **cut),
            embed=embed,
            seeded=self._settings.head == "mlp",
        )

    def _with_scores(self) -> list[Method]:
        """The detector score alone and with each kind of features; the candidate score with all of them."""
        methods: list[Method] = []
        by_fold = self.extractors
        if self._settings.detector_score:
            methods.append(
                self._method("detector score", by_fold, DETECTOR_LOGIT, unpenalised=[DETECTOR_LOGIT])
            )
            methods += [
                self._method(f"{variant} + detector score", by_fold, variant, unpenalised=[DETECTOR_LOGIT])
                for variant in self._variants
            ]
        if self._settings.candidate_score:
            unpenalised = [DETECTOR_LOGIT] * self._settings.detector_score + [CANDIDATE_SCORE]
            widest = " + ".join(
                [self._variants[-1], *["detector score"] * self._settings.detector_score, "candidate score"]
            )
            methods.append(self._method(widest, by_fold, self._variants[-1], unpenalised=unpenalised))
        return methods

    def _score(self) -> tuple[np.ndarray, Provenance]:
        parts, provenance = candidate_scores(self._pooled.parts)
        return np.concatenate(parts), provenance

    def _check_score(self, names: Sequence[str]) -> None:
        """Raise CanvasError for a candidate score that is missing or that no method uses."""
        self._score()
        if "encoder" not in names or not self._variants:
            raise CanvasError(
                "the candidate score is a feature next to others: give --encoder or --detector too"
            )

    def _finetuned(self, variant: str) -> FinetunedEncoder:
        """The method with the encoder's last blocks fine-tuned, without unpenalised blocks."""
        settings = self._settings
        blocks = settings.unfreeze
        by_fold = self.extractors
        return FinetunedEncoder(
            {fold: replace(extractor, detector_score=False) for fold, extractor in by_fold.items()},
            {fold: self._features(extractor) for fold, extractor in by_fold.items()},
            Tuning(blocks, augment=settings.augment),
            refiner=self._refiner(variant),
            name=f"{variant}, {blocks} block{'s' * (blocks != 1)} tuned",
        )

    def _extractor(self, encoder: Encoder | None, detector: Detector | None) -> Extractor:
        settings = self._settings
        return Extractor(
            encoder,
            detector,
            pool=settings.pool,
            layer=settings.layer,
            detector_score=settings.detector_score and detector is not None,
            device=settings.device,
            precision=settings.precision,
            resample=settings.resample,
            ignore_voxel_size=settings.ignore_voxel_size,
        )

    def _refiner(self, variant: str, **cut: Any) -> Callable[[int], Refiner]:
        settings = self._settings

        def make(seed: int) -> Refiner:
            head: dict[str, Any] = {"model": settings.head, "C": settings.C}
            return Refiner(variant, **cut, **head, correction=settings.correction, random_state=seed)

        return make

    def _features(
        self, extractor: Extractor, contrast: float = 1.0, unpenalised: Sequence[str] = ()
    ) -> FeatureSet:
        """Features of all candidates with the requested unpenalised blocks, cached by blocks."""
        whole = self._made(extractor, contrast)
        key = (id(whole), *(UNPENALISED.index(block) for block in unpenalised))
        if key not in self._chosen:
            self._chosen[key] = self._beside(whole, unpenalised)
        return self._chosen[key]

    def _beside(
        self, features: FeatureSet, unpenalised: Sequence[str], rows: np.ndarray | None = None
    ) -> FeatureSet:
        """Features of the task's rows (None: all) with the requested unpenalised blocks only."""
        features = features.only(
            *(block for block in features.blocks if block not in UNPENALISED or block in unpenalised)
        )
        if CANDIDATE_SCORE not in unpenalised:
            return features
        score, provenance = self._score()
        return with_candidate_score(features, score if rows is None else score[rows], provenance)

    def _made(self, extractor: Extractor, contrast: float) -> FeatureSet:
        key = repr(
            ({name: provenance.as_dict() for name, provenance in extractor.provenance.items()}, contrast)
        )
        if key not in self._known:
            keep = self._settings.features
            self._known[key] = stack(
                [
                    features_at(
                        contrast,
                        extractor,
                        part.volume,
                        part.zyx,
                        keep,
                        group=part.name,
                        background=part.background,
                        show=self._show,
                    )
                    for part in self._pooled.parts
                ]
            )
        return self._known[key]
