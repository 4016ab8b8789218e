"""Grouped folds: the cells of one brain are never in both training and test set.

Neighbouring candidates of one brain share tissue, staining and even voxels: a random split among them
measures memory. So it is refused unless it is forced, and then it is marked for the report.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int64, Shaped

from canvas_fm.errors import BadInput, counted

By = Literal["brain", "region", "random"]


@dataclass(frozen=True)
class Folds:
    """Fold number of every row, and the unit of the folds.

    `by` is `brain` where whole brains are held out; `region` (parts of the only brain) and `random` (rows,
    forced) say less about the next brain, which `warning` puts into words for reports.
    """

    fold: Int64[np.ndarray, " n"]
    count: int
    by: By

    def __iter__(self) -> Iterator[tuple[Int64[np.ndarray, " train"], Int64[np.ndarray, " test"]]]:
        """Training and test row indices of each fold."""
        for number in range(self.count):
            yield np.flatnonzero(self.fold != number), np.flatnonzero(self.fold == number)

    @property
    def warning(self) -> str | None:
        """Caveat for readers of the figures; None if whole brains were held out."""
        return {
            "brain": None,
            "region": "one brain only, or divided as one: folds are regions, which say little about "
            "another brain",
            "random": "rows split at random because it was forced: neighbours stand on both sides, and "
            "these figures say nothing about another brain",
        }[self.by]


def held_out_parts(
    hold_out: str, groups: Shaped[np.ndarray, " n"], regions: Shaped[np.ndarray, " n"] | None
) -> tuple[Shaped[np.ndarray, " n"], Shaped[np.ndarray, " n"] | None]:
    """Brains and regions that folds consist of; with `regions` every brain is divided.

    Two brains of different staining hold each other out badly: each is judged by what knows only the other.
    """
    if hold_out == "brains":
        return groups, regions
    if hold_out != "regions":
        raise BadInput(f"hold_out is {hold_out!r}; give brains or regions")
    if regions is None:
        raise BadInput("hold_out is regions, but no regions were given: say with --roi where labels are")
    places = np.char.add(np.char.add(groups.astype(np.str_), "/"), regions.astype(np.str_))
    return np.full(len(groups), "all brains"), places


def grouped_folds(
    groups: Shaped[np.ndarray, " n"],
    is_cell: Bool[np.ndarray, " n"],
    *,
    folds: int = 5,
    regions: Shaped[np.ndarray, " n"] | None = None,
    force_random: bool = False,
    seed: int = 0,
) -> Folds:
    """Folds of whole brains (`groups`): at most `folds`, one a brain if there are fewer.

    With one brain alone they are its `regions` (octants, say) where those are given. Rows are split at random
    only with `force_random`, where neither can be held out. Brains are spread so that the folds hold about as
    many rows. Raises BadInput for fewer labels of a class than folds, for one class alone, for one brain
    without regions, and where a class is labelled in one brain only.
    """
    if folds < 2:
        raise BadInput(f"folds is {folds}; give at least 2")
    check_labels(is_cell, folds)
    random = np.random.default_rng(seed)
    try:
        parts, by = _parts(np.asarray(groups), regions)
        result = Folds(fold := _spread(parts, folds, random), int(fold.max()) + 1, by)
        _check_both_classes(result, is_cell, parts)
    except BadInput:
        if not force_random:
            raise
        return Folds(_strata(is_cell, folds, random), folds, "random")
    return result


def check_labels(is_cell: Bool[np.ndarray, " n"], at_least: int = 1) -> None:
    """Raise BadInput unless both classes have at least that many labels."""
    cells, others = int(is_cell.sum()), int((~is_cell).sum())
    if not cells or not others:
        raise BadInput(
            f"all {counted(cells + others, 'label', 'are')} "
            f"{'non-cells' if not cells else 'cells'}: one class only; "
            "label some candidates of the other class too (1 is a cell, 0 is none)"
        )
    if min(cells, others) < at_least:
        raise BadInput(
            f"{counted(cells, 'cell')} and {others} non-cells are labelled, fewer than "
            f"{counted(at_least, 'fold')}; label more"
            + (f", or give --folds {fewest}" if (fewest := min(cells, others)) >= 2 else "")
        )


def _parts(groups: np.ndarray, regions: Shaped[np.ndarray, " n"] | None) -> tuple[np.ndarray, By]:
    names = np.unique(groups)
    if len(names) > 1:
        return groups, "brain"
    if regions is not None and len(np.unique(regions)) > 1:
        return np.asarray(regions), "region"
    raise BadInput(
        f"all rows are of one brain ({names[0]}): a random split inside it would put neighbours on both "
        "sides; give a second brain, or regions of this one, or force the random split, which is then marked"
    )


def _spread(parts: np.ndarray, folds: int, random: np.random.Generator) -> Int64[np.ndarray, " n"]:
    """Greedy balancing: the largest part first, each to the smallest fold; ties by seed."""
    _, of, sizes = np.unique(parts, return_inverse=True, return_counts=True)
    folds = min(folds, len(sizes))
    fold_sizes = np.zeros(folds)
    target = np.empty(len(sizes), np.int64)
    for part in np.lexsort((random.random(len(sizes)), -sizes)):
        target[part] = int(np.argmin(fold_sizes))
        fold_sizes[target[part]] += sizes[part]
    return target[of]


def _strata(
    is_cell: Bool[np.ndarray, " n"], folds: int, random: np.random.Generator
) -> Int64[np.ndarray, " n"]:
    fold = np.empty(len(is_cell), np.int64)
    for kind in (is_cell, ~is_cell):
        rows = random.permutation(np.flatnonzero(kind))
        fold[rows] = np.arange(len(rows)) % folds
    return fold


def _check_both_classes(folds: Folds, is_cell: Bool[np.ndarray, " n"], parts: np.ndarray) -> None:
    for train, test in folds:
        if is_cell[train].all() or not is_cell[train].any():
            out = ", ".join(map(str, np.unique(parts[test])))
            raise BadInput(
                f"without {out} all labels are of one class, so nothing can be learned for it; "
                "every class has to be labelled in two brains (or regions) at least"
            )
