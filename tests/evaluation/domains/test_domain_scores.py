"""Scores over domains: fixed thresholds chosen elsewhere, means, worst deciles, the table."""

from __future__ import annotations

import json

import numpy as np
import pytest

from canvas_fm.errors import CanvasError
from canvas_fm.evaluation.detection.curve import Curve
from canvas_fm.evaluation.domains.figure import domains_figure
from canvas_fm.evaluation.domains.scores import (
    THRESHOLDS,
    DomainScore,
    best_fixed_threshold,
    counts_at,
    domains_report,
    domains_table,
    f1_on,
    leave_one_out_thresholds,
    summarise,
    threshold_of_highest_f1,
    worst_decile,
)


def curve_of(scores: np.ndarray, is_cell: np.ndarray, truths: int) -> Curve:
    order = np.argsort(-scores)
    return Curve(scores[order], np.cumsum(is_cell[order]), np.cumsum(~is_cell[order]), truths)


def separable(at: float, n: int = 20) -> Curve:
    """Cells from `at` up, everything else below."""
    scores = np.concatenate([np.linspace(at, at + 0.2, n), np.linspace(0.01, at - 0.01, n)])
    return curve_of(scores, np.arange(2 * n) < n, n)


def score(name: str, f1: float, group: str = "a", **more) -> DomainScore:
    fields = {"cells": 10, "threshold": 0.5, "tp": 8, "fp": 2, "fn": 2, "best_f1": f1, "best_threshold": 0.4}
    return DomainScore(domain=name, group=group, f1=f1, f1_of=(f1,), **(fields | more))


def test_counts_at_a_threshold_are_those_of_a_loop():
    random = np.random.default_rng(0)
    scores, is_cell = np.round(random.random(60), 3), random.random(60) < 0.5
    curve = curve_of(scores, is_cell, 40)
    thresholds = np.array([0.0, 0.31, 0.5, scores.max(), 2.0])
    for threshold, f1 in zip(thresholds, f1_on(curve, thresholds), strict=True):
        kept = scores >= threshold
        tp, fp = int((kept & is_cell).sum()), int((kept & ~is_cell).sum())
        assert counts_at(curve, threshold) == (tp, fp, 40 - tp)
        assert f1 == pytest.approx(2 * tp / (tp + fp + 40))


def test_a_domain_never_chooses_its_own_threshold():
    curves = {"a": separable(0.5), "b": separable(0.5), "c": separable(0.9)}
    chosen = leave_one_out_thresholds(curves)
    assert f1_on(curves["a"], np.array([chosen["c"]]))[0] == 1.0  # c's is that of a and b
    assert chosen["c"] == best_fixed_threshold([curves["a"], curves["b"]])
    assert f1_on(curves["c"], np.array([chosen["c"]]))[0] < 1.0
    with pytest.raises(CanvasError, match="two or more"):
        leave_one_out_thresholds({"a": curves["a"]})


def test_the_worst_decile_is_the_mean_of_the_worst_tenth():
    f1 = np.linspace(0.1, 1.0, 30)
    assert worst_decile(np.random.default_rng(0).permutation(f1)[None])[0] == pytest.approx(f1[:3].mean())
    assert worst_decile(f1[None, :5])[0] == pytest.approx(0.1)


def test_what_counts_only_pooled_is_in_the_pooled_figure_alone():
    rows = [score("a", 0.8), score("b", 0.6), score("c", 0.0, pooled_only=True, tp=0, fp=10, fn=0)]
    summary = summarise(rows)
    assert (summary.domains, summary.mean, summary.worst_decile) == (2, pytest.approx(0.7), 0.6)
    assert summary.pooled == pytest.approx(32 / (32 + 14 + 4))
    assert summary.mean_interval[0] <= 0.7 <= summary.mean_interval[1]
    with pytest.raises(CanvasError, match="only pooled"):
        summarise(rows[2:])


def test_several_models_give_a_mean_and_a_spread():
    both = DomainScore.of("a", "g", [separable(0.5), separable(0.9)], [0.5, 0.5])
    assert both.f1 == pytest.approx(np.mean(both.f1_of))
    assert both.f1_of[0] == 1.0
    assert summarise([both]).spread == pytest.approx(np.std(both.f1_of, ddof=1))


def test_report_table_and_figure_tell_the_same(tmp_path):
    scores = {"new": [score("695", 0.8), score("phantom 3", 0.4, "p")], "old": [score("695", 0.7)]}
    report = json.loads(json.dumps(domains_report(scores, {"seed": 0})))
    assert report["methods"]["new"]["all"]["mean"] == pytest.approx(0.6)
    table = domains_table(report)
    assert "| 695 (best threshold) | 0.800 (0.800) | 0.700 (0.700) |" in table
    assert "| p, mean | 0.400 [0.400, 0.400] | – |" in table
    assert "phantom 3" not in table
    domains_figure(report, tmp_path / "domains.png")
    assert (tmp_path / "domains.png").read_bytes().startswith(b"\x89PNG")


def test_domains_of_a_few_cells_are_left_out_of_a_summary_of_their_own():
    """A phantom without a cell has F1 0 whatever is found, and is the whole worst decile."""
    rows = [score(f"phantom {n}", 0.8, "p", cells=20) for n in range(9)]
    rows += [score("phantom 9", 0.0, "p", cells=0), score("695", 0.7, cells=443)]
    report = domains_report({"new": rows}, {})
    method = report["methods"]["new"]
    assert method["groups"]["p"]["worst_decile"] == 0.0
    assert method["groups_of_20_cells"]["p"]["worst_decile"] == pytest.approx(0.8)
    assert method["groups_of_20_cells"]["p"]["domains"] == 9
    table = domains_table(report)
    assert "| p of 20 cells and more (9), worst decile | 0.800 [0.800, 0.800] |" in table
    assert "a of 20 cells" not in table  # no domain is left out there


def test_a_spread_of_scores_moves_the_threshold_away_from_a_steep_side():
    """A peak next to a fall loses to lower F1 farther off: brains to come lie on both sides."""
    f1 = np.where(THRESHOLDS < 0.502, 0.6 + 0.6 * THRESHOLDS, 0.2)
    assert threshold_of_highest_f1(f1) == 0.5
    assert 0.25 < threshold_of_highest_f1(f1, spread=0.3) < 0.4
