"""Fine-tuning as a method of the comparison: last blocks refitted for every fold and label draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from canvas_fm.heads.compare.methods import Fit, Training
from canvas_fm.heads.compare.pooled_candidates import features_of_rows
from canvas_fm.heads.features.extractor import Extractor
from canvas_fm.heads.features.feature_set import FeatureSet, Moments
from canvas_fm.heads.refine.refiner import Refiner
from canvas_fm.training.finetune.finetune import Tuning, tune
from canvas_fm.training.finetune.frozen_tokens import FrozenTokens


class FinetunedEncoder:
    """A refiner whose encoder's last blocks are fine-tuned in each fold.

    `extractors` and `features` (of the frozen encoder, as many rows as the task) are by fold, `refiner(seed)`
    makes the refiner. What enters the blocks is worked out once for each encoder.
    """

    seeded = True

    def __init__(
        self,
        extractors: Mapping[str, Extractor],
        features: Mapping[str, FeatureSet],
        tuning: Tuning,
        *,
        refiner: Callable[[int], Refiner],
        name: str = "fine-tuned",
    ) -> None:
        self.name, self.tuning = name, tuning
        self._extractors, self._features, self._refiner = extractors, features, refiner
        self._frozen_tokens: dict[str, FrozenTokens] = {}

    def identity(self, fold: str) -> Mapping[str, Any]:
        provenance = {name: model.as_dict() for name, model in self._extractors[fold].provenance.items()}
        inputs = {
            "made": provenance,
            "features": self._features[fold].fingerprint,
            "tuning": asdict(self.tuning),
        }
        return {"method": "fine-tuned", **inputs, "refiner": self._refiner(0).get_params()}

    def fit(self, data: Training) -> Fit:
        pooled, extractor, features = (
            data.pooled,
            self._extractors[data.fold],
            self._features[data.fold],
        )
        assert extractor.encoder is not None
        known = extractor.encoder.sha256
        refiner = self._refiner(data.seed)
        label = np.full(len(pooled), -1)
        label[data.rows] = pooled.is_cell[data.rows]
        fewest = int(np.bincount(label[data.rows], minlength=2).min())
        refiner.set_params(folds=max(2, min(data.folds.count, fewest)), force_random=True)
        work = tune(
            refiner,
            features,
            label,
            pooled.parts,
            extractor,
            self.tuning,
            regions=pooled.region.astype(np.str_),
            missed=pooled.missed_by_part(data.rows),
            frozen_tokens=self._frozen_tokens.get(known),
            show=False,
        )
        if work is None:  # no block is unfrozen

            def frozen(rows: np.ndarray) -> np.ndarray:
                return refiner.predict_proba(features.rows(rows))[:, 1]

            return Fit(frozen, refiner.threshold_, spread=refiner.count_spread_)
        self._frozen_tokens[known] = work.frozen_tokens
        assert refiner.tuned_ is not None
        whole = replace(extractor, encoder=refiner.tuned_.on(extractor.encoder))
        moments: dict[str, Moments] = {}

        def predict(rows: np.ndarray) -> np.ndarray:
            return work.predictions_of(lambda feature_set: refiner.predict_proba(feature_set)[:, 1], rows)

        def scratch(rows: np.ndarray) -> np.ndarray:
            fold_features = features_of_rows(whole, pooled, rows)
            if refiner.correction == "none":
                return refiner.predict_proba(fold_features)[:, 1]
            out = np.empty(len(rows))
            for name in np.unique(fold_features.groups):
                brain_rows = fold_features.groups == name
                if name not in moments:
                    brain = np.flatnonzero(pooled.group == name)
                    moments[name] = Moments.of(work.features_of(brain).x)
                out[brain_rows] = refiner.predict_proba(
                    fold_features.rows(brain_rows), moments=moments[name]
                )[:, 1]
            return out

        return Fit(predict, float(refiner.threshold_), scratch, spread=refiner.count_spread_)
