"""Fine-tuning of an encoder's last blocks on the few labels that a linear read-out of frozen features has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64, Shaped
from sklearn.linear_model import RidgeClassifierCV
from torch import Tensor, nn

from canvas_fm.heads.feature_benchmark.features import Crops, encoder_features
from canvas_fm.heads.feature_benchmark.per_cell_scores import ALPHAS
from canvas_fm.models.encoder.vit import ViTEncoder
from canvas_fm.models.heads.tuned_blocks import unfrozen
from canvas_fm.models.load_model import Encoder

_AT_ONCE = 256


@dataclass(frozen=True)
class TuningRates:
    """Hyper-parameters: AdamW with a one-cycle schedule on balanced batches."""

    blocks: int = 1
    steps: int = 60
    batch: int = 32
    learning_rate: float = 1e-4
    head_rate: float = 1e-3
    weight_decay: float = 0.05


class FineTuned:
    """Class scores from blocks that are fitted together with the linear read-out, for `few_labels_by`.

    Blocks begin as the encoder's and the read-out as the ridge on frozen features (Kumar et al. 2022: else
    its first steps spoil the blocks). Each brain is standardised by the moments of its frozen features, which
    need no labels. The loss is the ridge's: squared distance to 1 for the class, -1 for the others.
    """

    def __init__(
        self,
        encoder: Encoder,
        pool: str | None,
        crops: Crops,
        cls: Shaped[np.ndarray, " n"],
        brain: Shaped[np.ndarray, " n"],
        rates: TuningRates,
        seed: int = 0,
    ) -> None:
        self._encoder, self._pool, self._rates, self._seed = encoder, pool, rates, seed
        self._cls, self._classes = cls, np.unique(cls)
        self._first = unfrozen(encoder, rates.blocks, None)[1]
        voxels = torch.from_numpy(crops.cut(encoder.config.architecture.crop_zyx))
        with torch.inference_mode():
            parts = [encoder.net.before(part[:, None], self._first) for part in voxels.split(_AT_ONCE)]
        self._tokens = torch.cat(parts).clone()
        frozen = encoder_features(encoder, pool, crops)
        self._behind = torch.from_numpy(frozen[:, encoder.config.architecture.dim :])  # no block changes them
        self._mean, self._deviation = np.empty_like(frozen), np.empty_like(frozen)
        for name in np.unique(brain):
            rows = brain == name
            self._mean[rows] = frozen[rows].mean(axis=0)
            self._deviation[rows] = (frozen[rows].std(axis=0) + 1e-6) * np.sqrt(frozen.shape[1])
        self._x = (frozen - self._mean) / self._deviation

    def __call__(
        self, train: Int64[np.ndarray, " k"], test: Int64[np.ndarray, " m"]
    ) -> Float64[np.ndarray, "m c"]:
        """Scores of each class for the `test` rows, by what was fitted on the `train` rows."""
        net, head = self._fit(train)
        scores = []
        with torch.inference_mode():
            for start in range(0, len(test), _AT_ONCE):
                scores.append(head(self._embedded(net, test[start : start + _AT_ONCE])))
        return torch.cat(scores).double().numpy()

    def _fit(self, train: np.ndarray) -> tuple[ViTEncoder, nn.Linear]:
        rates, head = self._rates, self._ridge(train)
        net = unfrozen(self._encoder, rates.blocks, None)[0].train()
        learned = [parameter for parameter in net.parameters() if parameter.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": learned},
            {"params": list(head.parameters()), "lr": rates.head_rate},
        ]
        optimizer = torch.optim.AdamW(groups, rates.learning_rate, weight_decay=rates.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, [rates.learning_rate, rates.head_rate], total_steps=rates.steps, pct_start=0.1
        )
        random = np.random.default_rng(self._seed)
        by_class = [train[self._cls[train] == label] for label in self._classes]
        by_class = [rows for rows in by_class if len(rows)]
        for _ in range(rates.steps):
            each = -(-rates.batch // len(by_class))
            rows = np.concatenate([random.choice(part, each) for part in by_class])
            error = (head(self._embedded(net, rows)) - self._targets(rows)).square().mean()
            optimizer.zero_grad(set_to_none=True)
            error.backward()
            torch.nn.utils.clip_grad_norm_(learned, 1.0)
            optimizer.step()
            schedule.step()
        return net.eval(), head

    def _ridge(self, train: np.ndarray) -> nn.Linear:
        """The linear read-out of frozen features, with an output for each class."""
        ridge = RidgeClassifierCV(alphas=ALPHAS).fit(self._x[train], self._cls[train])
        weight, bias = np.atleast_2d(ridge.coef_), np.atleast_1d(ridge.intercept_)
        if len(ridge.classes_) == 2:  # of two classes a ridge has the second's alone
            weight, bias = np.concatenate([-weight, weight]), np.concatenate([-bias, bias])
        places = torch.from_numpy(np.searchsorted(self._classes, ridge.classes_))
        head = nn.Linear(self._x.shape[1], len(self._classes))
        with torch.no_grad():
            head.weight.zero_()[places] = torch.from_numpy(weight).float()
            head.bias.fill_(-1.0)[places] = torch.from_numpy(bias).float()
        return head

    def _embedded(self, net: ViTEncoder, rows: np.ndarray) -> Float[Tensor, "b d"]:
        x = torch.cat([net.onward(self._tokens[rows], self._first, self._pool), self._behind[rows]], dim=1)
        return (x - torch.from_numpy(self._mean[rows])) / torch.from_numpy(self._deviation[rows])

    def _targets(self, rows: np.ndarray) -> Float32[Tensor, "b c"]:
        hit = self._cls[rows][:, None] == self._classes[None]
        return torch.from_numpy(np.where(hit, 1.0, -1.0).astype(np.float32))
