"""Grouped cross-fitting of head, calibration and threshold: every metric is out of fold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64

from canvas_fm.errors import BadInput
from canvas_fm.evaluation.metrics.classification import auc, best_f1, calibration_error, ceiling, f1_at
from canvas_fm.heads.features.feature_set import CANDIDATE_SCORE
from canvas_fm.heads.labels.group_folds import Folds, check_labels, grouped_folds, held_out_parts
from canvas_fm.heads.refine.counts.count_interval import CountSpread, expected_count
from canvas_fm.heads.refine.fit.training_set import LabelledFeatures, split_warning
from canvas_fm.heads.refine.head.calibration import Calibration, fit_calibration
from canvas_fm.heads.refine.head.head_models import (
    GRID,
    SHARES,
    Blend,
    HeadOptions,
    choose_blend,
    fit_parts,
    held_out_by_part,
    log_loss,
    net_of,
    parts_of,
)
from canvas_fm.heads.refine.head.threshold import choose_threshold, most_even
from canvas_fm.models.heads.boosted_trees import BlendNet
from canvas_fm.models.heads.nets import HeadNet


@dataclass(frozen=True)
class Fitted:
    """Result of a fit: net, calibration, threshold, count spread, metrics."""

    net: HeadNet | BlendNet
    calibration: Calibration
    spread: CountSpread
    threshold: float
    C: float | None
    split: str
    warning: str | None
    figures: dict[str, Any]


def fit_head(settings: HeadOptions, rows: LabelledFeatures) -> Fitted:
    """Fit on all rows; calibrate, choose the threshold and score on out-of-fold rows."""
    folds = folds_of(settings, rows)
    C, logits, blend = held_out_parts_of_head(settings, rows, folds)
    net = head_net(settings, *rows.seen(slice(None)), C, blend)
    return assemble_fit(settings, rows, folds, blend(logits), net, C)


def folds_of(settings: HeadOptions, rows: LabelledFeatures) -> Folds:
    """Which rows are held out together; BadInput for settings and labels that nothing can be made of."""
    parts_of(settings)
    if settings.threshold is not None and not 0 < settings.threshold < 1:
        raise BadInput(f"threshold is {settings.threshold}; give a probability between 0 and 1")
    check_labels(rows.is_cell)
    groups, regions = held_out_parts(settings.hold_out, rows.groups, rows.regions)
    return grouped_folds(
        groups,
        rows.is_cell,
        folds=settings.folds,
        regions=regions,
        force_random=settings.force_random or not rows.grouped,
        seed=settings.random_state,
    )


def assemble_fit(
    settings: HeadOptions,
    rows: LabelledFeatures,
    folds: Folds,
    held_out: Float64[np.ndarray, "contrasts n"],
    net: HeadNet | BlendNet,
    C: float | None,
) -> Fitted:
    """Calibration, threshold and metrics from out-of-fold logits; `net` was fitted on all rows.

    `held_out` are those of the rows as they are, and below them those of each copy.
    """
    calibration = fit_calibration(held_out[0], rows.is_cell, settings.calibration)
    everything = np.arange(len(rows.is_cell))
    chosen = _best_threshold(settings, rows, calibration, held_out, everything)
    p_cell, decisions = cross_fitted_decisions(settings, rows, folds, held_out)
    spread = CountSpread()
    if folds.by != "random":
        brains = rows.groups if folds.by == "brain" else None
        spread = CountSpread.of(p_cell, rows.is_cell, rows.places, brains)
    spread = spread.with_few_labels(p_cell, other_brains=folds.by == "brain")
    figures = held_out_figures(rows, folds, held_out[0], p_cell, decisions, spread)
    net.calibration = torch.tensor(calibration.knots, dtype=torch.float32)
    rounded = Calibration(calibration.method, net.calibration.numpy().astype(np.float64))
    threshold = chosen if settings.threshold is None else settings.threshold
    return Fitted(net, rounded, spread, float(threshold), C, folds.by, split_warning(folds, rows), figures)


def _best_threshold(
    settings: HeadOptions,
    rows: LabelledFeatures,
    calibration: Calibration,
    held_out: Float64[np.ndarray, "contrasts n"],
    subset: Int64[np.ndarray, " m"],
) -> float:
    """Threshold of P(cell) with the highest F1 over some rows and their augmented copies.

    Of a sum the one of the highest mean F1 over brains: each brain counts as one, however many cells it has.
    """
    if settings.model == "sum":
        best = choose_threshold(held_out[:, subset], *rows.by_brain(subset)).threshold
        return float(calibration(np.array([best]))[0])
    p_cell = np.concatenate([calibration(logits[subset]) for logits in held_out])
    is_cell = np.tile(rows.is_cell[subset], len(held_out))
    return float(best_f1(is_cell, p_cell, missed=len(held_out) * rows.missed_in(subset))[0])


def held_out_logits(
    settings: HeadOptions, rows: LabelledFeatures, folds: Folds
) -> tuple[float | None, Float64[np.ndarray, "contrasts n"]]:
    """The penalty (of the logistic model), and each row's logit by the model that has not seen its fold."""
    C, logits, blend = held_out_parts_of_head(settings, rows, folds)
    return C, blend(logits)


def held_out_parts_of_head(
    settings: HeadOptions, rows: LabelledFeatures, folds: Folds
) -> tuple[float | None, Float64[np.ndarray, "parts contrasts n"], Blend]:
    """The penalty, the logits of each of the head's models by one that has not seen the fold, their blend.

    The first row of logits is of the rows as they are, the next of their first copy, and so on.
    Where C is None it is the one whose held-out logits, calibrated together, give the least log loss: that
    asks for a ranking within brains and for one scale over all of them. (Within a standard error of it a
    stronger penalty was tried: worse on clean labels, and no stronger where the labels are not.)
    Of a sum it is the second score's share, by `choose_threshold`: levels that differ by brain bend a log
    loss.
    """
    parts = parts_of(settings)
    own = next((n for n, part in enumerate(parts) if part.blocks == (CANDIDATE_SCORE,)), None)
    linear = [number for number, part in enumerate(parts) if part.kind == "logistic"]
    summed = settings.model == "sum"
    grid: tuple[float | None, ...] = (settings.C,)
    if settings.C is None and summed:
        grid = SHARES if settings.columns.width > 1 else (None,)
    elif settings.C is None and linear:
        grid = GRID
    seen = [rows.x, *rows.contrast_augmented]
    logits = np.empty((len(parts), len(grid), len(seen), len(rows.x)))
    for train, test in folds:
        x, is_cell = rows.seen(train)
        logits_by_part = held_out_by_part(settings, x, is_cell, [features[test] for features in seen], grid)
        for number, part_logits in enumerate(logits_by_part):
            logits[number][:, :, test] = part_logits
    best = 0
    if len(grid) > 1 and summed:
        best = most_even([choose_threshold(logits_at_c, *rows.by_brain()).f1 for logits_at_c in logits[0]])
    elif len(grid) > 1:
        best = int(np.argmin([log_loss(rows.is_cell, logits_at_c[0]) for logits_at_c in logits[linear[0]]]))
    chosen = logits[:, best].astype(np.float32).astype(np.float64)
    return grid[best], chosen, choose_blend(chosen[:, 0], rows.is_cell, rows.groups, own)


def head_net(
    settings: HeadOptions,
    x: Float32[np.ndarray, "n w"],
    is_cell: Bool[np.ndarray, " n"],
    C: float | None,
    blend: Blend | None = None,
) -> HeadNet | BlendNet:
    """The model of all rows as one net on the used columns, scaling folded in."""
    return net_of(settings, fit_parts(settings, x, is_cell, C), blend or Blend(np.ones(1), np.eye(2)[:, :1]))


def cross_fitted_decisions(
    settings: HeadOptions, rows: LabelledFeatures, folds: Folds, held_out: Float64[np.ndarray, "contrasts n"]
) -> tuple[Float64[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """P(cell) and decision of each row, with calibration and threshold of the other folds."""
    original_logits = held_out[0]
    p_cell, decisions = np.empty(len(original_logits)), np.empty(len(original_logits), bool)
    for train, test in folds:
        calibration = fit_calibration(original_logits[train], rows.is_cell[train], settings.calibration)
        p_cell[test] = calibration(original_logits[test])
        threshold = settings.threshold
        if threshold is None:
            threshold = _best_threshold(settings, rows, calibration, held_out, train)
        decisions[test] = p_cell[test] >= threshold
    return p_cell, decisions


def held_out_figures(
    rows: LabelledFeatures,
    folds: Folds,
    logits: Float64[np.ndarray, " n"],
    p_cell: Float64[np.ndarray, " n"],
    decisions: Bool[np.ndarray, " n"],
    spread: CountSpread,
) -> dict[str, Any]:
    """Out-of-fold metrics, pooled and by brain, with F1 of keeping everything and best possible F1.

    The ceiling is None where nobody said how many true cells have no candidate.
    """

    def of(subset: Int64[np.ndarray, " m"]) -> dict[str, Any]:
        is_cell, missed = rows.is_cell[subset], rows.missed_in(subset)
        cells = int(is_cell.sum())
        known = set(np.unique(rows.groups[subset]).tolist()) <= set(rows.missed)
        recall = cells / (cells + missed) if known and cells + missed else None
        return {
            "candidates": len(subset),
            "cells": cells,
            "missed": missed,
            "auc": auc(is_cell, logits[subset]),
            "f1": f1_at(is_cell, decisions[subset].astype(np.float64), 0.5, missed=missed),
            "f1_ceiling": None if recall is None else ceiling(recall),
            "f1_unrefined": f1_at(is_cell, np.ones(len(subset)), 0.5, missed=missed),
            "calibration_error": calibration_error(is_cell, p_cell[subset]),
            "count": expected_count(p_cell[subset], spread)._asdict(),
        }

    names = np.unique(rows.groups)
    return {
        "folds": folds.count,
        "split": folds.by if rows.grouped else "random",
        "warning": split_warning(folds, rows),
        "pooled": of(np.arange(len(logits))),
        "brains": {str(name): of(np.flatnonzero(rows.groups == name)) for name in names},
        "regions": _region_figures(rows, p_cell, spread),
    }


def _region_figures(
    rows: LabelledFeatures, p_cell: Float64[np.ndarray, " n"], spread: CountSpread
) -> dict[str, float | int] | None:
    """Relative count errors by region, and interval coverage."""
    if rows.regions is None:
        return None
    off, covered, cells = [], [], []
    for place in np.unique(rows.places):
        in_place = rows.places == place
        count, true = expected_count(p_cell[in_place], spread), int(rows.is_cell[in_place].sum())
        off.append(abs(count.value - true))
        cells.append(true)
        covered.append(count.low <= true <= count.high)
    return {
        "regions": len(off),
        "count_error": float(np.sum(off) / max(np.sum(cells), 1)),
        "intervals_that_hold": float(np.mean(covered)),
    }
