"""Labelled embeddings of one or several stores, for fitting a probe."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float32, Int64, Shaped

from canvas_fm.data.points.label_values import BLANKS
from canvas_fm.errors import CanvasError, ModelMismatch, counted
from canvas_fm.heads.features.feature_set import check_finite, correct_by_group
from canvas_fm.heads.labels.group_folds import By, Folds
from canvas_fm.inference.embed.store.embedding_store import Embeddings

_log = logging.getLogger(__name__)
Correction = Literal["none", "centre", "standardise", "whiten"]


@dataclass(frozen=True)
class ProbeData:
    """Labelled embeddings: `x` (n, d), `code` the class index of each row, its `group`.

    `skipped` rows had no label (−1, NaN, nothing); `notes` are sentences that the report repeats.
    """

    x: Float32[np.ndarray, "n d"]
    code: Int64[np.ndarray, " n"]
    classes: tuple[str, ...]
    group: Shaped[np.ndarray, " n"]
    encoder: str
    encoder_sha256: str
    pool: str
    correction: Correction
    skipped: int = 0
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.x)


def read_probe_data(
    stores: Sequence[str | Path],
    *,
    labels: str,
    groups: str | None = None,
    correction: Correction = "none",
) -> ProbeData:
    """Read stores of one encoder; `labels` and `groups` name columns; the default group is the volume.

    Rows labelled −1 (numbers) or nothing (NaN, an empty text) are skipped and counted. `correction` centres
    or whitens each store by all of its rows. Raises ModelMismatch where the stores are of different encoders
    or poolings, CanvasError for a missing column, NaN features and labels of one class only.
    """
    if not stores:
        raise CanvasError("no embeddings were given; give one X.emb.zarr at least")
    opened = [Embeddings.open(path) for path in stores]
    _check_same_encoder(opened)
    xs, texts, names, skipped = [], [], [], 0
    for store in opened:
        text, keep = _texts(store, labels)
        vectors = correct_by_group(_finite(store), np.zeros(len(store), int), correction)
        xs.append(vectors[keep])
        texts.append(text[keep])
        names.append(_groups(store, groups)[keep])
        skipped += int((~keep).sum())
    x, text, group = np.concatenate(xs), np.concatenate(texts), np.concatenate(names)
    if not len(x):
        raise CanvasError(f"none of the {counted(skipped, 'row')} has a label in the column {labels!r}")
    classes, code = np.unique(text, return_inverse=True)
    if len(classes) < 2:
        raise CanvasError(
            f"all {counted(len(x), 'label')} in the column {labels!r} are {str(classes[0])!r}: "
            "one class only; "
            "label some rows of another class too"
        )
    notes = [f"{counted(skipped, 'row')} without a label were skipped"] if skipped else []
    notes += _duplicates(x, code, group)
    for note in notes:
        _log.warning("%s", note)
    first = opened[0]
    return ProbeData(
        x=x,
        code=code.astype(np.int64),
        classes=tuple(map(str, classes)),
        group=group,
        encoder=str(first.attributes["encoder"]),
        encoder_sha256=first.encoder_sha256,
        pool=first.pool,
        correction=correction,
        skipped=skipped,
        notes=tuple(notes),
    )


def class_folds(data: ProbeData, *, folds: int = 5, force_random: bool = False, seed: int = 0) -> Folds:
    """Grouped folds with classes spread as evenly as groups allow.

    One group alone is refused unless a random split is forced, which is then marked. Raises CanvasError too
    where a class has fewer rows, or rows in fewer groups, than a split takes.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    names = np.unique(data.group)
    by: By = "brain"
    if len(names) == 1:
        if not force_random:
            raise CanvasError(
                f"all rows are of one group ({names[0]}): a random split inside it would put neighbours on "
                "both sides; give embeddings of a second brain, or --groups COLUMN, or force the split "
                "(--force-random-split), which is then marked"
            )
        by = "random"
    count = folds if by == "random" else min(folds, len(names))
    sizes = np.bincount(data.code)
    if sizes.min() < count:
        rare = data.classes[int(sizes.argmin())]
        raise CanvasError(
            f"the class {rare!r} has {counted(sizes.min(), 'label')}, fewer than the "
            f"{counted(count, 'fold')}; label more of it, "
            "leave it out, or ask for fewer folds"
        )
    fold = np.empty(len(data), np.int64)
    if by == "random":
        rows = StratifiedKFold(count, shuffle=True, random_state=seed).split(data.x, data.code)
    else:
        split = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
        rows = split.split(data.x, data.code, data.group)
    for number, (_, test) in enumerate(rows):
        fold[test] = number
    # Groups of very different classes can leave a fold empty: those that are left are numbered anew.
    fold = np.unique(fold, return_inverse=True)[1].astype(np.int64)
    assigned = Folds(fold, int(fold.max()) + 1, by)
    for train, test in assigned:
        lacking = [data.classes[c] for c in range(len(data.classes)) if not (data.code[train] == c).any()]
        if lacking:
            out = ", ".join(map(str, np.unique(data.group[test])))
            raise CanvasError(
                f"without {out} no label of the class {lacking[0]!r} is left to learn from; every class has "
                "to be labelled in two groups at least"
            )
    return assigned


def _check_same_encoder(opened: Sequence[Embeddings]) -> None:
    first = opened[0]
    for store in opened:
        store.shape  # noqa: B018  one vector a point is said first
    for other in opened[1:]:
        for what, known, new in (
            ("encoder", first.encoder_sha256, other.encoder_sha256),
            ("pooling", first.pool, other.pool),
        ):
            if known != new:
                raise ModelMismatch(
                    f"{other.path} and {first.path} are of different {what}s ({new[:12]} and {known[:12]}); "
                    "embed both with the same one"
                )


def _finite(store: Embeddings) -> Float32[np.ndarray, "n d"]:
    try:
        check_finite(store.vectors)
    except CanvasError as problem:
        raise CanvasError(f"{store.path}: {problem}") from problem
    return store.vectors


def _column(store: Embeddings, name: str) -> np.ndarray:
    if name not in store.columns:
        raise CanvasError(
            f"{store.path} has no column {name!r}; its points came with "
            f"{', '.join(store.columns) or 'none'}: embed points that carry it"
        )
    return store.columns[name]


def _texts(store: Embeddings, name: str) -> tuple[np.ndarray, Bool[np.ndarray, " n"]]:
    """Label of each row as text, whole numbers without a point, and the mask of labelled rows."""
    values = _column(store, name)
    if values.dtype.kind == "b":
        return values.astype(int).astype(np.str_), np.ones(len(values), bool)
    if values.dtype.kind == "U":
        text = np.char.strip(values)
        return text, ~np.isin(text, [*BLANKS, "-1"])
    keep = np.isfinite(values) & (values != -1)
    whole = np.where(keep, values, 0)
    if (whole != np.floor(whole)).any():
        row = int(np.argmax(whole != np.floor(whole)))
        raise CanvasError(
            f"{store.path}: the column {name!r} is {whole[row]:g} in row {row + 1}; labels are whole numbers "
            "or text (−1 or nothing: no label)"
        )
    return whole.astype(np.int64).astype(np.str_), keep


def _groups(store: Embeddings, name: str | None) -> np.ndarray:
    if name is None:
        return np.full(len(store), store.volume)
    return _column(store, name).astype(np.str_)


def _duplicates(x: np.ndarray, code: np.ndarray, group: np.ndarray) -> list[str]:
    """Warnings about equal vectors, and about equal vectors with different labels or groups."""
    whole = np.ascontiguousarray(x).view(np.dtype((np.void, x.dtype.itemsize * x.shape[1]))).ravel()
    distinct, of = np.unique(whole, return_inverse=True)
    repeated = len(x) - len(distinct)
    if not repeated:
        return []
    warnings = [
        f"{repeated:,} of {counted(len(x), 'row')} repeat the embedding of another row; they are kept"
    ]
    for kind, values in (("labels", code), ("groups", np.unique(group, return_inverse=True)[1])):
        low = np.full(len(distinct), values.max())
        high = np.zeros(len(distinct), values.dtype)
        np.minimum.at(low, of, values)
        np.maximum.at(high, of, values)
        if differ := int((low != high).sum()):
            warnings.append(
                f"{counted(differ, 'embedding', 'stand')} there more than once with different {kind}"
            )
    return warnings
