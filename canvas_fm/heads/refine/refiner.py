"""The refiner: classifier from candidate features to P(cell)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from canvas_fm.errors import BadInput
from canvas_fm.files.shipped import find
from canvas_fm.heads.features.feature_set import (
    CORRECTIONS,
    MAE,
    FeatureSet,
    Moments,
    correct_by_group,
)
from canvas_fm.heads.refine import input_checks
from canvas_fm.heads.refine.columns import CONCAT, Columns
from canvas_fm.heads.refine.counts.candidate_recall import CandidateRecall
from canvas_fm.heads.refine.counts.count_interval import Count, CountSpread, Recall, expected_count
from canvas_fm.heads.refine.fit.cross_fit import Fitted, fit_head
from canvas_fm.heads.refine.fit.training_set import LabelledFeatures
from canvas_fm.heads.refine.head.calibration import Calibration
from canvas_fm.heads.refine.head.head_models import HeadOptions, parts_of
from canvas_fm.heads.refine.refiner_folder import RefinerState, read_refiner, write_refiner
from canvas_fm.models.device import pick_device
from canvas_fm.models.heads.boosted_trees import BlendNet
from canvas_fm.models.heads.nets import HeadNet, logits_of
from canvas_fm.models.heads.tuned_blocks import TunedBlocks

_log = logging.getLogger(__name__)

Missed = Mapping[str, int]
"""By brain, the true cells for which there is no candidate."""


class Refiner(ClassifierMixin, BaseEstimator):
    """Classifies detections as true or false by their features; a scikit-learn classifier.

    variant: `concat` uses all blocks, `scores` those of one column, else the name of one (`detector`, `mae`).
    blocks: the columns of each by name; a FeatureSet has its own. The blocks `heat` (the detector's at the
    candidate), `score` (the candidates' own) and `amplitude` stand beside any variant and are hardly
    penalised. cut, ratio, reduce: of the block `cut` only the first round(ratio·d)
    columns are used, or with reduce `pca` as many of its principal components. correction: every brain is
    first corrected by its own candidates (none, centre, standardise, whiten). whiten: decorrelate columns, by
    the training brains. model: `logistic` (C chosen by cross-validation where None), `mlp`, `trees`
    (boosted), `sum` (the first of two scores and a share C of the second) or `blend`: a logistic model on
    what encoder and detector made and boosted trees on the block `shape`, weighed by held-out brains.
    balanced: both classes weigh the same to linear models and MLP.
    calibration: `temperature`, `isotonic` or `none`, on held-out brains. threshold:
    what P(cell) has to reach; None takes the one of the highest F1 on held-out training brains. hold_out:
    `regions` divides all brains by their regions for that, as one brain alone is divided. unlabelled: rows of
    this label are left out and counted (None: none are). force_random: allow a random split inside one brain,
    which is then marked.

    After `fit`: `threshold_`, `calibration_`, `count_spread_`, `cross_validation_` (figures on held-out
    brains), `skipped_` (rows without a label), `split_`, and `split_warning_` where it is one to worry about.
    """

    def __init__(
        self,
        variant: str = CONCAT,
        *,
        blocks: Mapping[str, slice] | None = None,
        cut: str | None = None,
        ratio: float = 1.0,
        reduce: str = "columns",
        correction: str = "none",
        whiten: bool = False,
        model: str = "logistic",
        C: float | None = None,
        hidden: int = 64,
        epochs: int = 30,
        weight_decay: float = 0.05,
        balanced: bool = True,
        calibration: str = "temperature",
        threshold: float | None = None,
        folds: int = 5,
        hold_out: str = "brains",
        unlabelled: int | None = -1,
        force_random: bool = False,
        random_state: int = 0,
        device: str = "cpu",
    ) -> None:
        self.variant = variant
        self.blocks = blocks
        self.cut = cut
        self.ratio = ratio
        self.reduce = reduce
        self.correction = correction
        self.whiten = whiten
        self.model = model
        self.C = C
        self.hidden = hidden
        self.epochs = epochs
        self.weight_decay = weight_decay
        self.balanced = balanced
        self.calibration = calibration
        self.threshold = threshold
        self.folds = folds
        self.hold_out = hold_out
        self.unlabelled = unlabelled
        self.force_random = force_random
        self.random_state = random_state
        self.device = device

    def fit(
        self,
        X: Any,
        y: Any,
        *,
        groups: Any = None,
        regions: Any = None,
        missed: Missed | None = None,
        contrast_augmented: Sequence[Any] = (),
    ) -> Refiner:
        """Fit on features (n, d), array or FeatureSet, and labels: 1 cell, 0 no cell, −1 left out.

        `groups` is the brain of each row (a FeatureSet brings it): calibration and threshold come from brains
        that the model has not seen. With one brain alone its `regions` are held out instead, a name for each
        row; without them a split at random is refused unless `force_random`. An array that comes without
        groups is split at random, and `split_` says so. `missed` counts, by brain, the true cells for which
        there is no candidate: they lower F1, and so move the threshold. `contrast_augmented` are
        the same rows as they would look in a brain stained otherwise (`Volume.at_contrast`): the model is
        fitted on them too, and the threshold has to do for them.

        Raises BadInput for one class only, fewer labels than folds, NaN, and settings that contradict.
        """
        rows = self.prepare(
            X, y, groups=groups, regions=regions, missed=missed, contrast_augmented=contrast_augmented
        )
        self.take(fit_head(self.head_settings, rows))
        self.warn()
        return self

    def prepare(
        self,
        X: Any,
        y: Any,
        *,
        groups: Any = None,
        regions: Any = None,
        missed: Missed | None = None,
        contrast_augmented: Sequence[Any] = (),
    ) -> LabelledFeatures:
        """Labelled rows of `fit` as the model's input: corrected, used columns only."""
        if self.correction not in CORRECTIONS:
            raise BadInput(f"correction is {self.correction!r}; give one of {', '.join(CORRECTIONS)}")
        x, names, known = input_checks.training_rows(self, X, y, groups)
        labels, keep = input_checks.labels_of(y, len(x), self.unlabelled)
        self.classes_ = np.unique(labels[keep])
        self.blocks_ = dict(input_checks.blocks_of(self, X, x.shape[1]))
        self.provenance_ = dict(X.provenance) if isinstance(X, FeatureSet) else {}
        self.columns_ = Columns.of(self.blocks_, x.shape[1], self.variant, self.cut, self.ratio, self.reduce)
        self.columns_.check_correction(self.correction)
        used = self._used(x, names)
        self.skipped_ = int((~keep).sum())
        return LabelledFeatures(
            x=used[keep],
            contrast_augmented=tuple(
                self._used(input_checks.augmented_rows(self, X, copy, len(x)), names)[keep]
                for copy in contrast_augmented
            ),
            is_cell=labels[keep] == self.classes_[-1],
            groups=names[keep],
            regions=None if regions is None else input_checks.aligned(regions, "regions", len(x))[keep],
            missed=dict(missed or {}),
            grouped=known,
        )

    @property
    def head_settings(self) -> HeadOptions:
        """Settings for fitting the head, once `prepare` has chosen the columns."""
        names = [field.name for field in fields(HeadOptions) if field.name != "columns"]
        return HeadOptions(self.columns_, **{name: getattr(self, name) for name in names})

    def _used(self, x: np.ndarray, names: np.ndarray) -> np.ndarray:
        """Columns of the model's input.

        A brain is corrected by all its candidates, labelled or not, as it will be when it is judged.
        """
        x = correct_by_group(x, names, self.correction)
        return self.columns_.take({name: x[:, part] for name, part in self.blocks_.items()})

    def take(self, fitted: Fitted, tuned: TunedBlocks | None = None) -> None:
        """Store the result of a fit; `tuned` are the encoder's last blocks where they were fitted too."""
        self.net_: HeadNet | BlendNet = fitted.net
        self.calibration_: Calibration = fitted.calibration
        self.count_spread_: CountSpread = fitted.spread
        self.threshold_ = fitted.threshold
        self.C_ = fitted.C
        self.split_, self.split_warning_ = fitted.split, fitted.warning
        self.cross_validation_ = fitted.figures
        self.tuned_ = tuned
        self.recalls_: Sequence[CandidateRecall] = ()
        self.fit_provenance_: Mapping[str, Any] = {}
        if tuned is not None:
            self.provenance_[MAE] = replace(self.provenance_[MAE], name=tuned.name, sha256=tuned.sha256)
        self.__dict__.pop("sha256_", None)  # that of a folder which this may have been loaded from

    def warn(self) -> None:
        """Emit warnings about the figures of a fit."""
        if self.split_warning_:
            _log.warning("the refiner was calibrated on %s", self.split_warning_)
        ranking = self.cross_validation_["pooled"]["auc"]
        if ranking is not None and ranking < 0.5:
            _log.warning("on brains left out the refiner ranks worse than chance (AUC %.2f)", ranking)

    def predict_proba(self, X: Any, *, groups: Any = None, moments: Moments | None = None) -> Any:
        """Calibrated P(not a cell) and P(cell), (n, 2).

        With a per-brain correction, rows are corrected by the brain (`groups`, a FeatureSet's own, else all
        rows are one brain) that they come with, or by given `moments` where they are a part of one.
        """
        check_is_fitted(self)
        p = self.calibration_(self.logits(X, groups=groups, moments=moments))
        return np.stack([1 - p, p], axis=1)

    def predict(self, X: Any) -> Any:
        """Class of every row: 1 where P(cell) reaches the threshold."""
        is_cell = self.predict_proba(X)[:, 1] >= self.threshold_
        return self.classes_[is_cell.astype(np.int64)]

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Accuracy on the labelled rows, as in scikit-learn."""
        labels = np.asarray(y)
        keep = np.ones(len(labels), bool) if self.unlabelled is None else labels != self.unlabelled
        right = (self.predict(X) == labels)[keep]
        weight = None if sample_weight is None else np.asarray(sample_weight)[keep]
        return float(np.average(right, weights=weight))

    def logits(self, X: Any, *, groups: Any = None, moments: Moments | None = None) -> Any:
        """Uncalibrated logits, float32 (n,), which rank rows without ties."""
        check_is_fitted(self)
        x, names = input_checks.rows_to_classify(self, X, groups)
        if self.correction != "none":
            corrected = None if moments is None else moments.corrected(x, self.correction)
            x = correct_by_group(x, names, self.correction) if corrected is None else corrected
        blocks = input_checks.layout_of(self, X)
        used = self.columns_.take({name: x[:, blocks[name]] for name in self.columns_.sizes})
        return logits_of(self.net_, used, pick_device(self.device))

    def count(self, p_cell: Float64[np.ndarray, " n"], recall: Recall | None = None) -> Count:
        """Expected number of cells among rows of these probabilities, with a 90 % interval."""
        check_is_fitted(self)
        return expected_count(p_cell, self.count_spread_, recall)

    def save(self, folder: str | Path, provenance: dict[str, Any] | None = None) -> str:
        """Write the folder `refiner/` (config.json, model.safetensors) atomically; returns its sha256."""
        check_is_fitted(self)
        state = RefinerState(
            settings={name: value for name, value in self.get_params().items() if name != "blocks"},
            blocks=self.blocks_,
            dim=self.n_features_in_,
            columns=self.columns_,
            parts=parts_of(self.head_settings),
            provenance=self.provenance_,
            classes=self.classes_,
            fitted=Fitted(
                self.net_, self.calibration_, self.count_spread_, self.threshold_, self.C_, self.split_,
                self.split_warning_, self.cross_validation_,
            ),
            skipped=self.skipped_,
            tuned=self.tuned_,
            recalls=self.recalls_,
        )  # fmt: skip
        self.fit_provenance_ = provenance or {}
        return write_refiner(state, Path(folder), provenance or {})

    @staticmethod
    def load(folder: str | Path) -> Refiner:
        """Open a refiner's folder, or a shipped one by name, verified."""
        path = find("model", folder)
        state, sha256 = read_refiner(path)
        refiner = Refiner(**state.settings, blocks=state.blocks)
        refiner.n_features_in_, refiner.blocks_, refiner.columns_ = state.dim, state.blocks, state.columns
        refiner.provenance_, refiner.classes_ = dict(state.provenance), state.classes
        refiner.skipped_ = state.skipped
        refiner.take(state.fitted, state.tuned)
        refiner.recalls_, refiner.fit_provenance_ = state.recalls, state.fit_provenance
        refiner.sha256_, refiner.folder_ = sha256, path
        return refiner

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags
