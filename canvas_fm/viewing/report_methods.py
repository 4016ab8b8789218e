"""The methods of a report by their names on the command line, and the features that they look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from canvas_fm.data.zyx import Zyx
from canvas_fm.errors import CanvasError
from canvas_fm.heads.baselines import Embedded, OwnScore, PcaCrops, ShapeTrees
from canvas_fm.heads.columns import CONCAT, Columns
from canvas_fm.heads.extract import DETECTOR, MAE, Extractor, features_of_rows, kept_features
from canvas_fm.heads.features import FeatureSet, Made, stack
from canvas_fm.heads.methods import Method
from canvas_fm.heads.own_score import beside_score, own_scores
from canvas_fm.heads.refine import Refiner
from canvas_fm.heads.task import Task
from canvas_fm.models.checkpoint import Detector, Encoder
from canvas_fm.models.random_encoder import random_encoder
from canvas_fm.models.resnet import ResNetConfig
from canvas_fm.models.tuned import unfrozen
from canvas_fm.training.classifier import ResNetClassifier
from canvas_fm.training.finetune import Tuning
from canvas_fm.training.finetune_method import FinetunedEncoder

METHODS = ("score", "shape", "pca", "random", "encoder", "finetune", "resnet")
RESNET = "3D ResNet"


@dataclass(frozen=True)
class Settings:
    """How the methods work: `pool` and `layer` of encoders, `correction` of every brain, sizes of the ResNet.

    With `own_score` the widest features are also judged beside the candidates' own score.
    With both kinds of features `ratios` are tried on each block of `cuts`, of which so large a share is used.
    `unfreeze` is how many blocks `finetune` fits, `augment` whether it turns and brightens crops by chance.
    `keep` is a folder in which features are kept for the next report on the same candidates.
    """

    pool: str | None = None
    layer: int | None = None
    correction: str = "none"
    head: str = "logistic"
    C: float | None = None
    own_score: bool = False
    ratios: tuple[float, ...] = ()
    cuts: tuple[str, ...] = (MAE,)
    unfreeze: int = 1
    augment: bool = False
    resnet_width: int = 16
    resnet_crop_zyx: Zyx = (16, 32, 32)
    resnet_steps: int = 2000
    device: str = "auto"
    precision: str = "fp32"
    resample: bool = False
    any_voxel: bool = False
    keep: Path | None = None


class Methods:
    """The methods of a task, by encoders and detectors of each fold; its features are worked out once."""

    def __init__(
        self,
        task: Task,
        encoders: Mapping[str, Encoder],
        detectors: Mapping[str, Detector],
        folds: Sequence[str],
        settings: Settings,
        show: bool | None,
    ) -> None:
        self._task, self._encoders, self._detectors = task, encoders, detectors
        self._folds, self._settings, self._show = folds, settings, show
        self._known: dict[str, FeatureSet] = {}

    def named(self, name: str) -> list[Method]:
        """What one of METHODS stands for: `encoder` for each block, and both beside each other.

        With `own_score` of the settings the last of these stands there once more, beside the own score.
        """
        simple: dict[str, Callable[[], Method]] = {
            "score": OwnScore,
            "shape": ShapeTrees,
            "pca": PcaCrops,
            "resnet": self._resnet,
        }
        if name in simple:
            return [simple[name]()]
        if name == "random":
            like = next(iter(self._encoders.values())).config if self._encoders else None
            other = self._extractor(random_encoder(like, voxel_um=self._task.voxel_um), None)
            return [self._method("random encoder", dict.fromkeys(self._folds, other), MAE)]
        if name == "encoder":
            scored = [self._scored(self._variants[-1])] if self._settings.own_score else []
            return [*(self._method(variant, self.extractors, variant) for variant in self._variants), *scored]
        return [self._finetuned(variant) for variant in self._variants if variant != DETECTOR]

    def check(self, names: Sequence[str]) -> None:
        """Raise CanvasError for what can be refused before hours of embedding: ratios, blocks to unfreeze."""
        settings = self._settings
        if settings.own_score:
            self._check_score(names)
        if settings.ratios and CONCAT not in self._variants:
            raise CanvasError("a contribution ratio is of two kinds of features: give encoders and detectors")
        for one in self.extractors.values() if names and (self._encoders or self._detectors) else ():
            blocks = one.layout
            width = max(part.stop for part in blocks.values())
            for cut in settings.cuts if settings.ratios else ():
                for ratio in settings.ratios:
                    Columns.of(blocks, width, CONCAT, cut, ratio, "columns")
            if "finetune" in names and one.encoder is not None:
                unfrozen(one.encoder, settings.unfreeze, settings.layer)

    def sweep(self) -> list[Method]:
        """Both blocks with a share of one, for each ratio and block to be cut (the paper's contribution)."""
        settings = self._settings
        return [
            self._method(f"concat, {ratio:.0%} of {cut}", self.extractors, CONCAT, cut=cut, ratio=ratio)
            for cut in settings.cuts
            for ratio in settings.ratios
        ]

    @property
    def extractors(self) -> dict[str, Extractor]:
        """By fold what makes the features of its models."""
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

    def _method(self, name: str, by_fold: Mapping[str, Extractor], variant: str, **cut: Any) -> Embedded:
        """Embeddings (or the detector's features, or both) under a refiner."""
        features = {fold: self._features(one) for fold, one in by_fold.items()}

        def embed(rows: np.ndarray, fold: str) -> np.ndarray:
            return features_of_rows(by_fold[fold], self._task, rows).x

        seeded = self._settings.head == "mlp"
        return Embedded(name, features, refiner=self._refiner(variant, **cut), embed=embed, seeded=seeded)

    def _scored(self, variant: str) -> Embedded:
        """The features of a variant with the candidates' own score as one more."""
        by_fold = self.extractors
        score, made = self._score()

        def beside(features: FeatureSet) -> FeatureSet:
            return beside_score(features, score, made)

        def embed(rows: np.ndarray, fold: str) -> np.ndarray:
            return beside_score(features_of_rows(by_fold[fold], self._task, rows), score[rows], made).x

        features = {fold: self._features(one) for fold, one in by_fold.items()}
        once = {id(one): beside(one) for one in features.values()}  # folds of one encoder share theirs
        return Embedded(
            f"{variant} + own score",
            {fold: once[id(one)] for fold, one in features.items()},
            refiner=self._refiner(variant),
            embed=embed,
            seeded=self._settings.head == "mlp",
        )

    def _score(self) -> tuple[np.ndarray, Made]:
        parts, made = own_scores(self._task.parts)
        return np.concatenate(parts), made

    def _check_score(self, names: Sequence[str]) -> None:
        """Raise CanvasError for an own score that is not there, or that no method of these looks at."""
        self._score()
        if "encoder" not in names or not self._variants:
            raise CanvasError("the own score is looked at beside features: give --encoder or --detector too")
        if (how := self._settings.correction) != "none":
            raise CanvasError(
                f"the correction {how} would take the level of the own score away; leave one of the two out"
            )

    def _finetuned(self, variant: str) -> FinetunedEncoder:
        """The same with the encoder's last blocks fitted too."""
        settings, by_fold = self._settings, self.extractors
        blocks = settings.unfreeze
        return FinetunedEncoder(
            by_fold,
            {fold: self._features(one) for fold, one in by_fold.items()},
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
            device=settings.device,
            precision=settings.precision,
            resample=settings.resample,
            any_voxel=settings.any_voxel,
        )

    def _refiner(self, variant: str, **cut: Any) -> Callable[[int], Refiner]:
        settings = self._settings

        def make(seed: int) -> Refiner:
            head: dict[str, Any] = {"model": settings.head, "C": settings.C}
            return Refiner(variant, **cut, **head, correction=settings.correction, random_state=seed)

        return make

    def _features(self, extractor: Extractor) -> FeatureSet:
        key = repr({name: made.as_dict() for name, made in extractor.made.items()})
        if key not in self._known:
            keep = self._settings.keep
            parts = []
            for part in self._task.parts:
                same: dict[str, Any] = {"group": part.name, "show": self._show}
                parts.append(
                    extractor.features(part.volume, part.zyx, **same)
                    if keep is None
                    else kept_features(extractor, part.volume, part.zyx, keep, **same)
                )
            self._known[key] = stack(parts)
        return self._known[key]
