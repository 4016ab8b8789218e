"""Per-cell scores of features on held-out brains, so that differences can be paired."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int64, Shaped

from canvas_fm.evaluation.metrics.classification import Interval

ALPHAS = np.logspace(-3, 2, 11)  # ridge penalties, chosen on the labels alone by leave-one-out
# (rows to fit on, m rows to classify) to a score of each class for these, (m, classes).
ClassScores = Callable[[np.ndarray, np.ndarray], np.ndarray]
BINS = 6  # of brightness, within which classes are matched


class PerCellScores(NamedTuple):
    """Credit of each scored cell for every label draw: 1 correct, 0 wrong, or its share of an AUC.

    The score is the mean over brains of the mean over classes of the mean credit. Two methods' credits of the
    same cells and draws are subtracted to compare them.
    """

    credit: Float64[np.ndarray, "draws n"]
    brain: Shaped[np.ndarray, " n"]
    cls: Shaped[np.ndarray, " n"]

    @property
    def score(self) -> float:
        """Mean over brains of the mean over classes."""
        mean = self.credit.mean(axis=0)
        return float(np.mean([np.mean([mean[rows].mean() for rows in brain]) for brain in self._strata()]))

    def minus(self, other: PerCellScores) -> PerCellScores:
        """Paired difference by cell and draw."""
        return self._replace(credit=self.credit - other.credit)

    def interval(self, *, seed: int = 0, resamples: int = 1000) -> Interval:
        """Score with a 95 % bootstrap interval over draws and, within brain and class, over cells.

        How much other brains would change is not in it: there are too few to resample.
        """
        random = np.random.default_rng(seed)
        draws = len(self.credit)
        weights = random.multinomial(draws, np.full(draws, 1 / draws), resamples) / draws
        mean = weights @ self.credit
        brains = []
        for brain in self._strata():
            parts = [mean[:, rows] for rows in brain]
            counts = [random.multinomial(n, np.full(n, 1 / n), resamples) / n for n in map(len, brain)]
            brains.append(np.mean([(p * c).sum(axis=1) for p, c in zip(parts, counts, strict=True)], axis=0))
        low, high = np.percentile(np.mean(brains, axis=0), [2.5, 97.5])
        return Interval(self.score, float(low), float(high), "draws of labels and cells within brains")

    def _strata(self) -> Iterator[list[np.ndarray]]:
        for brain in np.unique(self.brain):
            in_brain = self.brain == brain
            yield [np.flatnonzero(in_brain & (self.cls == label)) for label in np.unique(self.cls[in_brain])]


def standardise_brains(
    x: Float[np.ndarray, "n d"], brain: Shaped[np.ndarray, " n"]
) -> Float64[np.ndarray, "n d"]:
    """Standardise each column within each brain; needs no labels."""
    out = np.empty(x.shape)
    for name in np.unique(brain):
        rows = brain == name
        part = x[rows].astype(np.float64)
        out[rows] = (part - part.mean(axis=0)) / (part.std(axis=0) + 1e-6)
    return out / np.sqrt(x.shape[1])


def few_labels(
    x: Float[np.ndarray, "n d"],
    cls: Shaped[np.ndarray, " n"],
    brain: Shaped[np.ndarray, " n"],
    test: Sequence[str],
    *,
    labels: int | None,
    draws: int = 10,
    seed: int = 0,
) -> PerCellScores:
    """Linear read-out on `labels` cells of other brains (None: all), scored on each `test` brain.

    The labels are drawn anew `draws` times, equally many of each class. Two classes are scored by AUC, more
    by balanced accuracy. Features are standardised a brain.
    """
    from sklearn.linear_model import RidgeClassifierCV

    ready, classes = standardise_brains(x, brain), np.unique(cls)

    def ridge(train: np.ndarray, rows: np.ndarray) -> np.ndarray:
        head = RidgeClassifierCV(alphas=ALPHAS).fit(ready[train], cls[train])
        decision = head.decision_function(ready[rows])
        scores = np.full((len(rows), len(classes)), -np.inf)
        of_two = decision.ndim == 1
        scores[:, np.isin(classes, head.classes_)] = (
            np.stack([-decision, decision], 1) if of_two else decision
        )
        return scores

    return few_labels_by(ridge, cls, brain, test, labels=labels, draws=draws, seed=seed)


def few_labels_by(
    scores_of: ClassScores,
    cls: Shaped[np.ndarray, " n"],
    brain: Shaped[np.ndarray, " n"],
    test: Sequence[str],
    *,
    labels: int | None,
    draws: int = 10,
    seed: int = 0,
) -> PerCellScores:
    """`few_labels` with another classifier: the same labels, the same cells, the same credits."""
    classes, parts = np.unique(cls), []
    for test_brain in test:
        rows, pool = np.flatnonzero(brain == test_brain), np.flatnonzero(brain != test_brain)
        credit = []
        for draw in range(draws if labels is not None else 1):
            random = np.random.default_rng([seed, draw])
            train = pool if labels is None else _draw_labels(random, pool, cls, labels)
            scores = scores_of(train, rows)
            if len(classes) == 2:
                credit.append(_auc_credit(scores[:, 1], cls[rows] == classes[1]))
            else:
                credit.append((classes[scores.argmax(axis=1)] == cls[rows]).astype(np.float64))
        parts.append(PerCellScores(np.stack(credit), brain[rows], cls[rows]))
    return PerCellScores(*(np.concatenate(column, axis=-1) for column in zip(*parts, strict=True)))


def _draw_labels(
    random: np.random.Generator, pool: np.ndarray, cls: np.ndarray, labels: int
) -> Int64[np.ndarray, " k"]:
    classes = np.unique(cls[pool])
    drawn = []
    for label in classes:
        rows = pool[cls[pool] == label]
        drawn.append(random.choice(rows, min(len(rows), labels // len(classes)), replace=False))
    return np.concatenate(drawn)


def _auc_credit(
    score: Float64[np.ndarray, " n"], positive: Shaped[np.ndarray, " n"]
) -> Float64[np.ndarray, " n"]:
    """Per-cell credits whose class-balanced mean is the AUC, with DeLong's variance.

    A cell's placement is the share of the other class that it stands on the right side of.
    """
    wins = np.sign(score[positive][:, None] - score[~positive][None]) / 2 + 0.5
    placement = np.empty(len(score))
    placement[positive], placement[~positive] = wins.mean(axis=1), wins.mean(axis=0)
    return 2 * placement - wins.mean()


def neighbours(
    x: Float[np.ndarray, "n d"],
    cls: Shaped[np.ndarray, " n"],
    brain: Shaped[np.ndarray, " n"],
    test: Sequence[str],
    brightness: Float[np.ndarray, " n"],
    *,
    k: int = 10,
) -> PerCellScores:
    """k-nearest-neighbour purity across brains by cosine: share of neighbours of the same class.

    Gallery and queries are thinned so that every class has about as many in each bin of brightness: it alone
    cannot tell them apart.
    """
    rows = np.sort(_matched(cls, brightness))
    credit, query_rows = [], []
    for test_brain in test:
        queries, gallery = rows[brain[rows] == test_brain], rows[brain[rows] != test_brain]
        mean, deviation = x[gallery].mean(axis=0), x[gallery].std(axis=0) + 1e-6
        nearest = _nearest((x[gallery] - mean) / deviation, (x[queries] - mean) / deviation, k)
        credit.append((cls[gallery[nearest]] == cls[queries][:, None]).mean(axis=1))
        query_rows.append(queries)
    at = np.concatenate(query_rows)
    return PerCellScores(np.concatenate(credit)[None], brain[at], cls[at])


def _matched(cls: np.ndarray, brightness: np.ndarray) -> Int64[np.ndarray, " m"]:
    random = np.random.default_rng(0)
    edges = np.quantile(brightness, np.linspace(0, 1, BINS + 1)[1:-1])
    bins, chosen = np.digitize(brightness, edges), []
    for number in range(BINS):
        groups = [np.flatnonzero((cls == label) & (bins == number)) for label in np.unique(cls)]
        size = max(5, int(np.median([len(group) for group in groups])))
        chosen += [random.permutation(group)[:size] for group in groups]
    return np.concatenate(chosen)


def found_again(
    x: Float[np.ndarray, "n d"], disturbed: Float[np.ndarray, "n d"], brain: Shaped[np.ndarray, " n"]
) -> PerCellScores:
    """Whether a disturbed cell's nearest neighbour in its brain is itself, by cosine."""
    credit = np.zeros(len(x))
    for name in np.unique(brain):
        rows = np.flatnonzero(brain == name)
        mean, deviation = x[rows].mean(axis=0), x[rows].std(axis=0) + 1e-6
        nearest = _nearest((x[rows] - mean) / deviation, (disturbed[rows] - mean) / deviation, 1)
        credit[rows] = nearest[:, 0] == np.arange(len(rows))
    return PerCellScores(credit[None], brain, np.zeros(len(x), np.int64))


def _nearest(
    known: Float[np.ndarray, "n d"], queries: Float[np.ndarray, "m d"], k: int
) -> Int64[np.ndarray, "m k"]:
    """The k nearest rows of `known` to each query by cosine, nearest first."""
    unit = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (known, queries)]
    return np.argsort(-(unit[1] @ unit[0].T), axis=1, kind="stable")[:, :k]
