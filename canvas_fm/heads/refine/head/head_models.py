"""The models of a head: logistic, MLP, boosted trees, a blend on blocks of their own, or a sum of scores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Shaped

from canvas_fm.errors import BadInput
from canvas_fm.evaluation.metrics.classification import auc
from canvas_fm.heads.features.feature_set import CANDIDATE_SCORE, SHAPE, UNPENALISED
from canvas_fm.heads.refine.columns import Affine, Columns
from canvas_fm.heads.refine.head.boosted_trees import grow_trees
from canvas_fm.heads.refine.head.calibration import fit_calibration
from canvas_fm.models.device import pick_device
from canvas_fm.models.heads.boosted_trees import BlendNet, TreeEnsemble
from canvas_fm.models.heads.nets import HeadNet, train_mlp

MODELS = ("logistic", "mlp", "trees", "blend", "sum")
GRID = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # of C, the inverse of the penalty
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)  # of a sum's second score, the first has 1
_STEPS = 4  # the weights of a blend are multiples of a quarter


@dataclass(frozen=True)
class HeadOptions:
    """Settings for fitting, calibrating and cross-validating a head; each is described at `Refiner`."""

    columns: Columns
    whiten: bool
    model: str
    C: float | None
    hidden: int
    epochs: int
    weight_decay: float
    balanced: bool
    calibration: str
    threshold: float | None
    folds: int
    hold_out: str
    force_random: bool
    random_state: int
    device: str


class Part(NamedTuple):
    """One model of a head: its kind, and the blocks whose columns it sees."""

    kind: str
    blocks: tuple[str, ...]


class Blend(NamedTuple):
    """Weighted sum of the logits of a head's parts: Σ weight · (slope · logit + offset)."""

    weight: Float64[np.ndarray, " parts"]
    scale: Float64[np.ndarray, "2 parts"]

    def __call__(self, logits: Float64[np.ndarray, parts * rows]) -> Float64[np.ndarray, "*rows"]:
        each = np.moveaxis(logits, 0, -1).astype(np.float64)
        return (each * self.scale[0] + self.scale[1]) @ self.weight


def parts_of(settings: HeadOptions) -> list[Part]:
    """The models of a head.

    In a blend a logistic model sees what encoder and detector made, boosted trees the shape of the spot, both
    the detector's score; the score that the candidates came with is a model of its own beside them.
    """
    blocks = tuple(settings.columns.sizes)
    if settings.model not in MODELS:
        raise BadInput(f"model is {settings.model!r}; give one of {', '.join(MODELS)}")
    if settings.model == "sum" and settings.columns.width not in (1, 2):
        raise BadInput(
            f"a sum is of two scores or of one, here are {settings.columns.width} columns; give --variant "
            "scores and one or two of --detector-score, --amplitude-um and --candidate-score"
        )
    if settings.model != "blend":
        return [Part(settings.model, blocks)]
    own = CANDIDATE_SCORE in blocks
    learned = tuple(name for name in blocks if name not in (SHAPE, CANDIDATE_SCORE))
    few = tuple(name for name in blocks if name in (SHAPE, *UNPENALISED) and name != CANDIDATE_SCORE)
    parts = [Part("logistic", learned)] if learned else []
    parts += [Part("trees", few if SHAPE in few else learned)] if few or learned else []
    return [*parts, *([Part("logistic", (CANDIDATE_SCORE,))] if own else [])]


def fit_parts(
    settings: HeadOptions, x: Float32[np.ndarray, "n w"], is_cell: Bool[np.ndarray, " n"], C: float | None
) -> list[HeadNet | TreeEnsemble]:
    """Every model of the head, fitted on the same rows; scaling is folded into the linear ones."""
    return [fit_part(settings, part, x, is_cell, C) for part in parts_of(settings)]


def fit_part(
    settings: HeadOptions,
    part: Part,
    x: Float32[np.ndarray, "n w"],
    is_cell: Bool[np.ndarray, " n"],
    C: float | None,
) -> HeadNet | TreeEnsemble:
    """One model of the head, on rows of all used columns."""
    columns = x[:, settings.columns.places(*part.blocks)]
    if part.kind == "sum":
        return _sum(1.0 if C is None else C, columns.shape[1])
    if part.kind == "trees":
        return grow_trees(columns, is_cell, balanced=False, seed=settings.random_state)
    affine = affine_of(settings, part, columns)
    return _folded(fit_layers(settings, part, affine(columns), is_cell, C), affine)


def affine_of(settings: HeadOptions, part: Part, x: Float32[np.ndarray, "n w"]) -> Affine:
    """Scaling of a part's columns before its model is fitted."""
    columns = settings.columns.only(*part.blocks)
    return Affine.fit(x, columns.components(), whiten=settings.whiten, weights=columns.weights())


def choose_blend(
    logits: Float64[np.ndarray, "parts n"],
    is_cell: Bool[np.ndarray, " n"],
    groups: Shaped[np.ndarray, " n"],
    own: int | None = None,
) -> Blend:
    """Each part calibrated, and the weights under which held-out rows have the least log loss.

    A part that says nothing of brains that it has not seen gets none: the others are then the head. Of
    weights that are as good the most even ones win. Where part `own` is the candidates' own score, weights
    that rank the rows of a brain worse than it does, in the mean over brains, are out of the question.
    """
    scale = np.concatenate([fit_calibration(part, is_cell).knots for part in logits], axis=1)
    if len(logits) == 1:
        return Blend(np.ones(1), np.array([[1.0], [0.0]]))
    shares = [np.array(counts) / _STEPS for counts in product(range(_STEPS + 1), repeat=len(logits))]
    blends = [Blend(weight, scale) for weight in shares if weight.sum() == 1]
    blends.sort(key=lambda blend: float((blend.weight**2).sum()))
    if own is not None:
        least = mean_auc(logits[own], is_cell, groups)
        blends = [blend for blend in blends if blend.weight[own] == 1 or
                  mean_auc(blend(logits), is_cell, groups) >= least]  # fmt: skip
    return min(blends, key=lambda blend: round(log_loss(is_cell, blend(logits)), 4))


def mean_auc(
    logits: Float64[np.ndarray, " n"], is_cell: Bool[np.ndarray, " n"], groups: Shaped[np.ndarray, " n"]
) -> float:
    """Mean AUC within brains, over brains that hold both classes."""
    each = [auc(is_cell[groups == name], logits[groups == name]) for name in np.unique(groups)]
    known = [value for value in each if value is not None]
    return float(np.mean(known)) if known else 0.5


def log_loss(is_cell: Bool[np.ndarray, " n"], logits: Float64[np.ndarray, " n"]) -> float:
    """The log loss of logits once they are calibrated on these very rows."""
    p = np.clip(fit_calibration(logits, is_cell)(logits), 1e-9, 1 - 1e-9)
    return float(-np.mean(np.where(is_cell, np.log(p), np.log(1 - p))))


@dataclass(frozen=True)
class Layers:
    """Weights (out, in) and biases: one pair for the logistic model, two for the MLP."""

    weights: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]

    def __call__(self, z: Float64[np.ndarray, "n k"]) -> Float64[np.ndarray, " n"]:
        y = z @ self.weights[0].T + self.biases[0]
        if len(self.weights) > 1:
            y = torch.nn.functional.gelu(torch.from_numpy(y)).numpy() @ self.weights[1].T + self.biases[1]
        return y[:, 0]


def fit_layers(
    settings: HeadOptions,
    part: Part,
    z: Float64[np.ndarray, "n k"],
    is_cell: Bool[np.ndarray, " n"],
    C: float | None,
) -> Layers:
    """A linear model or an MLP on scaled columns."""
    if part.kind == "logistic":
        from sklearn.linear_model import LogisticRegression

        weight = "balanced" if settings.balanced else None
        model = LogisticRegression(C=C or 1.0, class_weight=weight, max_iter=2000).fit(z, is_cell)
        return Layers((model.coef_,), (model.intercept_,))
    device = pick_device(settings.device)
    layers = train_mlp(
        torch.from_numpy(z.astype(np.float32)).to(device),
        torch.from_numpy(is_cell.astype(np.float32)).to(device),
        hidden=settings.hidden,
        epochs=settings.epochs,
        weight_decay=settings.weight_decay,
        cell_weight=float((~is_cell).sum() / is_cell.sum()) if settings.balanced else 1.0,
        seed=settings.random_state,
    )
    numbers = [tensor.cpu().double().numpy() for layer in layers for tensor in (layer.weight, layer.bias)]
    return Layers((numbers[0], numbers[2]), (numbers[1], numbers[3]))


def net_of(settings: HeadOptions, parts: list[HeadNet | TreeEnsemble], blend: Blend) -> HeadNet | BlendNet:
    """The head as one net on the used columns; parts without weight are left out."""
    kinds = parts_of(settings)
    if len(parts) == 1 and isinstance(parts[0], HeadNet):
        return parts[0]
    net = BlendNet(parts, [settings.columns.places(*kind.blocks) for kind in kinds])
    net.weight = torch.tensor(blend.weight, dtype=torch.float32)
    net.scale = torch.tensor(blend.scale, dtype=torch.float32)
    return net.eval().requires_grad_(False)


def held_out_by_part(
    settings: HeadOptions,
    x: Float32[np.ndarray, "n w"],
    is_cell: Bool[np.ndarray, " n"],
    held_out: list[Float32[np.ndarray, "m w"]],
    grid: tuple[float | None, ...],
) -> Iterator[Float64[np.ndarray, "grid held_out m"]]:
    """The logits of rows that were held out, part by part, at each C of the grid."""
    for part in parts_of(settings):
        place = settings.columns.places(*part.blocks)
        if part.kind == "sum":
            yield np.stack(
                [
                    np.stack([_run(_sum(C or 0.0, len(place)), features[:, place]) for features in held_out])
                    for C in grid
                ]
            )
            continue
        if part.kind == "trees":
            net = fit_part(settings, part, x, is_cell, None)
            once = np.stack([_run(net, features[:, place]) for features in held_out])
            yield np.repeat(once[None], len(grid), axis=0)
            continue
        affine = affine_of(settings, part, x[:, place])
        z, seen = affine(x[:, place]), [affine(features[:, place]) for features in held_out]
        layers = [fit_layers(settings, part, z, is_cell, C) for C in grid]
        yield np.stack([np.stack([each(features) for features in seen]) for each in layers])


def _sum(share: float, columns: int) -> HeadNet:
    """The first score and a share of the second: nothing is fitted, so no brain's level bends the weights."""
    weights = np.array([[1.0, share]])[:, :columns]
    return _folded(Layers((weights,), (np.zeros(1),)), Affine(np.zeros(columns), np.ones(columns)))


def _run(net: torch.nn.Module, x: Float32[np.ndarray, "n w"]) -> Float64[np.ndarray, " n"]:
    with torch.inference_mode():
        return net(torch.from_numpy(np.ascontiguousarray(x))).double().numpy()


def _folded(layers: Layers, affine: Affine) -> HeadNet:
    """The layers on unscaled columns."""
    width = len(affine.mean)
    net = HeadNet(width, layers.weights[0].shape[0] if len(layers.weights) > 1 else 0)
    parts = {"first": {"weight": affine.folded(layers.weights[0]), "bias": layers.biases[0]}}
    if len(layers.weights) > 1:
        parts["last"] = {"weight": layers.weights[1], "bias": layers.biases[1]}
    state = {
        f"{layer}.{name}": torch.tensor(value, dtype=torch.float32)
        for layer, values in parts.items()
        for name, value in values.items()
    }
    state |= {"mean": torch.tensor(affine.mean, dtype=torch.float32), "calibration": net.calibration}
    net.load_state_dict(state)
    return net.eval().requires_grad_(False)
