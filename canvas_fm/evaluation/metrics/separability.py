"""Linear separability of classes in embeddings, tested on a held-out brain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped


class Accuracy(NamedTuple):
    """Accuracy on test rows with a 95 % bootstrap interval over them.

    The interval says how much the number of test rows leaves open, not how much another brain would change.
    """

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, right: Sequence[Bool[np.ndarray, " m"]], *, seed: int = 0, resamples: int = 1000) -> Accuracy:
        """Accuracy of one classifier, or the mean of several on the same rows."""
        share = np.mean([row.astype(np.float64) for row in right], axis=0)
        draws = np.random.default_rng(seed).integers(0, len(share), (resamples, len(share)))
        low, high = np.percentile(share[draws].mean(axis=1), [2.5, 97.5])
        return cls(float(share.mean()), float(low), float(high))


def linear_right(
    train: Float[np.ndarray, "n d"],
    train_class: Shaped[np.ndarray, " n"],
    test: Float[np.ndarray, "m d"],
    test_class: Shaped[np.ndarray, " m"],
) -> Bool[np.ndarray, " m"]:
    """Whether a logistic regression fitted on the training rows classifies each test row correctly.

    Features are standardised by the training rows alone; the penalty is fixed: nothing is tuned on the test.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    return classifier.fit(train, train_class).predict(test) == test_class


def raw_pca(
    train: Float[np.ndarray, "n ..."],
    test: Float[np.ndarray, "m ..."],
    *,
    components: int = 64,
) -> tuple[Float[np.ndarray, "n k"], Float[np.ndarray, "m k"]]:
    """Crops projected on the principal components of the training crops: the baseline without a network."""
    from sklearn.decomposition import PCA

    flat, other = train.reshape(len(train), -1), test.reshape(len(test), -1)
    model = PCA(n_components=min(components, *flat.shape), svd_solver="full")
    return model.fit_transform(flat), model.transform(other)


def brightness_features(crops: Float[np.ndarray, "n ..."]) -> Float[np.ndarray, "n 4"]:
    """Mean, standard deviation, median and maximum of each crop: the brightness baseline."""
    flat = crops.reshape(len(crops), -1)
    return np.stack([flat.mean(1), flat.std(1), np.median(flat, axis=1), flat.max(1)], axis=1)
