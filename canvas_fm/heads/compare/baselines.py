"""Baselines without a trained encoder: candidate score, PCA of the crop, shape features with boosted trees.

And embeddings as a method, so that a trained encoder, a random one and a refiner stand in the same table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from canvas_fm.data.zyx import Zyx
from canvas_fm.errors import CanvasError
from canvas_fm.heads.compare.methods import Fit, Predict, Training, fit_by, held_out_by
from canvas_fm.heads.compare.pooled_candidates import PooledCandidates
from canvas_fm.heads.features.feature_set import FeatureSet, Moments
from canvas_fm.heads.features.shape import shape_crop, shape_features
from canvas_fm.heads.refine.fit.cross_fit import fit_head
from canvas_fm.heads.refine.head.logistic_path import fit_path
from canvas_fm.heads.refine.refiner import Refiner

CROP_ZYX: Zyx = (16, 32, 32)
_AT_ONCE = 512
_PCA_CROPS = 2000


class CandidateScoreMethod:
    """Candidate score as a probability, by a rising logistic curve."""

    name, seeded = "candidate score", False

    def identity(self, fold: str) -> Mapping[str, Any]:
        return {"method": self.name}

    def fit(self, data: Training) -> Fit:
        own = data.pooled.own
        if own is None:
            raise CanvasError("not all candidates came with a score; leave out the method 'score'")
        score = own

        def fit_one(rows: np.ndarray) -> Predict:
            return _rising(score, rows, data.pooled)

        fit = fit_by(data, fit_one(data.rows), held_out_by(data, fit_one))
        return fit._replace(whole=False)  # whoever made the score looked at the voxels


class PcaCrops:
    """PCA of raw crops, fitted on unlabelled crops of training brains, with a logistic regression."""

    seeded = False

    def __init__(self, components: int = 64, crop_zyx: Zyx = CROP_ZYX) -> None:
        self.name, self.components, self.crop_zyx = f"PCA-{components}", components, crop_zyx
        self._last: tuple[bytes, Any, dict[int, np.ndarray]] | None = None

    def identity(self, fold: str) -> Mapping[str, Any]:
        return {"method": "PCA", "components": self.components, "crop_zyx": self.crop_zyx}

    def fit(self, data: Training) -> Fit:
        pca, known = self._pca(data.pooled, data.pool)

        def project(rows: np.ndarray) -> np.ndarray:
            return _batched(lambda part: pca.transform(_flat(data.pooled, part, self.crop_zyx)), rows)

        return _logistic(data, _cached(known, project), project)

    def _pca(self, pooled: PooledCandidates, pool: np.ndarray) -> tuple[Any, dict[int, np.ndarray]]:
        """PCA fitted once for each pool, so that every label draw shares its components."""
        from sklearn.decomposition import PCA

        key = pool.tobytes()
        if self._last is None or self._last[0] != key:
            sample = np.random.default_rng(0).permutation(pool)[:_PCA_CROPS]
            flat = _flat(pooled, np.sort(sample), self.crop_zyx)
            pca = PCA(min(self.components, *flat.shape), svd_solver="randomized", random_state=0)
            self._last = (key, pca.fit(flat), {})
        return self._last[1], self._last[2]


class ShapeTrees:
    """Gradient-boosted trees on intensity at scales in µm, contrast and moments of each candidate."""

    name, seeded = "shape + trees", True

    def __init__(self, iterations: int = 200) -> None:
        self.iterations = iterations
        self._last: tuple[PooledCandidates, dict[int, np.ndarray]] | None = None

    def identity(self, fold: str) -> Mapping[str, Any]:
        return {"method": self.name, "iterations": self.iterations}

    def fit(self, data: Training) -> Fit:
        from sklearn.ensemble import HistGradientBoostingClassifier

        pooled = data.pooled
        if self._last is None or self._last[0] is not pooled:
            self._last = (pooled, {})
        known = self._last[1]
        crop = shape_crop(pooled.voxel_um)

        def described(rows: np.ndarray) -> np.ndarray:
            return _batched(lambda part: shape_features(pooled.crops(part, crop), pooled.voxel_um), rows)

        kept = _cached(known, described)

        def trees(rows: np.ndarray) -> Any:
            model = HistGradientBoostingClassifier(
                learning_rate=0.06,
                max_iter=self.iterations,
                max_leaf_nodes=15,
                min_samples_leaf=int(np.clip(len(rows) // 10, 2, 20)),
                l2_regularization=1.0,
                max_features=0.5,
                early_stopping=False,
                random_state=data.seed,
            )
            return model.fit(kept(rows), pooled.is_cell[rows])

        def fit_one(rows: np.ndarray) -> Predict:
            model = trees(rows)
            return lambda test_rows: model.predict_proba(kept(test_rows))[:, 1]

        model = trees(data.rows)
        return fit_by(
            data,
            lambda rows: model.predict_proba(kept(rows))[:, 1],
            held_out_by(data, fit_one),
            lambda rows: model.predict_proba(described(rows))[:, 1],
        )


class Embedded:
    """Features of all rows of the task under a logistic regression, or under a refiner.

    `features` are one FeatureSet, or one for each fold where encoders were trained without it; their rows are
    the task's. `contrast_augmented` are features of the same rows at other contrasts, which the refiner is
    fitted on too. `refiner(seed)` makes the refiner; `seeded` says that the seed matters to it.
    `embed(rows, fold)` makes the features of some rows anew, for measuring speed from the voxels on.
    """

    def __init__(
        self,
        name: str,
        features: FeatureSet | Mapping[str, FeatureSet],
        *,
        contrast_augmented: Sequence[Mapping[str, FeatureSet]] = (),
        refiner: Callable[[int], Refiner] | None = None,
        embed: Callable[[np.ndarray, str], np.ndarray] | None = None,
        seeded: bool = False,
    ) -> None:
        self.name, self.seeded = name, seeded
        self._features, self._copies = features, contrast_augmented
        self._refiner, self._embed = refiner, embed
        self._corrected: dict[str, list[FeatureSet]] = {}

    def identity(self, fold: str) -> Mapping[str, Any]:
        refiner = None if self._refiner is None else self._refiner(0).get_params()
        inputs = {"method": "embedded", "refiner": refiner, "features": self._of(fold).fingerprint}
        contrast_augmented = [by_fold[fold].fingerprint for by_fold in self._copies]
        return inputs | ({"contrast_augmented": contrast_augmented} if contrast_augmented else {})

    def fit(self, data: Training) -> Fit:
        features = self._of(data.fold)
        if len(features) != len(data.pooled):
            raise CanvasError(
                f"{self.name} has features of {len(features):,} rows; "
                f"there are {len(data.pooled):,} candidates"
            )
        embed = self._embed
        again = None if embed is None else lambda rows: embed(rows, data.fold)
        if self._refiner is None:
            fitted = _logistic(data, lambda rows: features.x[rows], again)
        else:
            fitted = self._refined(data, features, again)
        return fitted._replace(whole=embed is not None)

    def _of(self, fold: str) -> FeatureSet:
        if isinstance(self._features, FeatureSet):
            return self._features
        if fold not in self._features:
            raise CanvasError(
                f"{self.name} has no features for the fold {fold!r}; it has {', '.join(self._features)}"
            )
        return self._features[fold]

    def _refined(
        self, data: Training, features: FeatureSet, again: Callable[[np.ndarray], np.ndarray] | None
    ) -> Fit:
        pooled, rows = data.pooled, data.rows
        assert self._refiner is not None
        refiner = self._refiner(data.seed)
        # Every brain is corrected by all its candidates, however few of them are labelled.
        how = str(refiner.correction)
        refiner.set_params(correction="none")
        if data.fold not in self._corrected:
            both = [features, *(feature_set[data.fold] for feature_set in self._copies)]
            self._corrected = {data.fold: [feature_set.corrected(how) for feature_set in both]}
        ready, *contrast_augmented = self._corrected[data.fold]
        labels = pooled.is_cell[rows].astype(np.int64)
        fewest = min(int(labels.sum()), int((1 - labels).sum()))
        refiner.set_params(folds=max(2, min(refiner.folds, fewest)), force_random=True)
        regions, missed = pooled.region[rows].astype(np.str_), pooled.missed_by_part(rows)
        copies = [feature_set.rows(rows) for feature_set in contrast_augmented]
        prepared = refiner.prepare(
            ready.rows(rows), labels, regions=regions, missed=missed, contrast_augmented=copies
        )
        refiner.take(fit_head(refiner.head_settings, prepared))

        def scratch(test_rows: np.ndarray) -> np.ndarray:
            assert again is not None
            x = again(test_rows)
            for name in np.unique(features.groups[test_rows]) if how != "none" else ():
                brain_rows = features.groups[test_rows] == name
                brain = features.x[features.groups == name]
                x[brain_rows] = Moments.of(brain).corrected(x[brain_rows], how)
            part = FeatureSet(x, features.blocks, features.groups[test_rows], features.provenance)
            return refiner.predict_proba(part)[:, 1]

        return Fit(
            lambda test_rows: refiner.predict_proba(ready.rows(test_rows))[:, 1],
            float(refiner.threshold_),
            None if again is None else scratch,
            spread=refiner.count_spread_,
        )


def _logistic(
    data: Training,
    features: Callable[[np.ndarray], np.ndarray],
    again: Callable[[np.ndarray], np.ndarray] | None,
) -> Fit:
    code = data.pooled.is_cell[data.rows].astype(np.int64)
    path = fit_path(features(data.rows), code, 2, data.folds)
    scratch = None if again is None else lambda rows: path.model.proba(again(rows))[:, 1]
    return fit_by(data, lambda rows: path.model.proba(features(rows))[:, 1], path.held_out[:, 1], scratch)


def _rising(score: Float64[np.ndarray, " n"], rows: np.ndarray, pooled: PooledCandidates) -> Predict:
    """Logistic regression on the score with a non-negative slope; ranks as the score does."""
    path = fit_path(score[rows, None], pooled.is_cell[rows].astype(np.int64), 2, path=(1.0,))
    model = path.model
    slope = max(float(model.coef[0, 0]), 1e-6)
    mean, scale, intercept = float(model.mean[0]), float(model.scale[0]), float(model.intercept[0])

    def predict(test_rows: np.ndarray) -> np.ndarray:
        from scipy.special import expit

        return expit(slope * (score[test_rows] - mean) / (scale if np.isfinite(scale) else 1.0) + intercept)

    return predict


def _flat(pooled: PooledCandidates, rows: np.ndarray, crop_zyx: Zyx) -> Float32[np.ndarray, "n v"]:
    return pooled.crops(rows, crop_zyx).reshape(len(rows), -1)


def _cached(known: dict[int, np.ndarray], compute: Callable[[np.ndarray], np.ndarray]) -> Predict:
    """`compute` of rows, each computed once and kept in `known`."""

    def kept(rows: np.ndarray) -> np.ndarray:
        lacking = rows[[int(row) not in known for row in rows]]
        if len(lacking):
            known.update(zip(lacking.tolist(), compute(lacking), strict=True))
        return np.stack([known[int(row)] for row in rows])

    return kept


def _batched(of: Callable[[np.ndarray], np.ndarray], rows: np.ndarray) -> np.ndarray:
    parts = [of(rows[first : first + _AT_ONCE]) for first in range(0, len(rows), _AT_ONCE)]
    return np.concatenate(parts)
