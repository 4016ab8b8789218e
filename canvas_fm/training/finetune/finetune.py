"""Fine-tuning the encoder's last blocks together with a refiner's head."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64, Shaped
from torch import Tensor
from torch.nn import functional as F

from canvas_fm.errors import BadInput, CanvasError, counted
from canvas_fm.heads.features.extractor import Extractor
from canvas_fm.heads.features.feature_set import MAE, FeatureSet, Moments
from canvas_fm.heads.labels.candidates import Candidates
from canvas_fm.heads.refine.columns import CONCAT
from canvas_fm.heads.refine.fit.cross_fit import assemble_fit, folds_of, head_net, held_out_logits
from canvas_fm.heads.refine.fit.training_set import LabelledFeatures, TrainingSet
from canvas_fm.heads.refine.refiner import Refiner
from canvas_fm.models.heads.nets import HeadNet
from canvas_fm.models.heads.tuned_blocks import TunedBlocks, unfrozen
from canvas_fm.progress import Advance, bar
from canvas_fm.training.finetune.frozen_tokens import FrozenTokens
from canvas_fm.training.finetune.resnet_method import balanced_rows

_AT_ONCE = 256
_SAMPLE = 1000  # candidates of a brain by which it is corrected while the blocks learn
_MEASURED = 5  # times in a training that this is done


@dataclass(frozen=True)
class Tuning:
    """Hyper-parameters of fine-tuning the last `blocks`: AdamW, cosine schedule, 10 % warm-up.

    `epochs` passes over the labels, but at least `least_steps` and at most `most_steps` steps of `batch`. The
    head begins as the one of the frozen encoder (Kumar et al. 2022: else its first steps spoil the blocks).
    `augment` flips, turns and brightens crops by chance; the frozen blocks then run in every step too.
    """

    blocks: int
    epochs: float = 5.0
    least_steps: int = 60
    most_steps: int = 300
    batch: int = 32
    learning_rate: float = 1e-4
    head_rate: float = 1e-3
    weight_decay: float = 0.05
    augment: bool = False

    def __post_init__(self) -> None:
        if self.blocks < 0:
            raise BadInput(f"{counted(self.blocks, 'block', 'are')} to be unfrozen; give 0 (none) or more")

    def check(self, refiner: Refiner, extractor: Extractor) -> None:
        """Raise BadInput for invalid settings before hours of work."""
        if refiner.variant not in (MAE, CONCAT) or extractor.encoder is None:
            raise BadInput(
                f"variant {refiner.variant} looks at no encoder whose blocks could be unfrozen; give "
                "--encoder and variant mae or concat"
            )
        if self.blocks and extractor.detector_score:
            raise BadInput(
                "detector_score goes with the encoder as it is: beside what tells most, blocks have little "
                "to learn from; make the features without it"
            )
        if refiner.model in ("trees", "blend") or extractor.shape is not None:
            raise BadInput(
                "blocks are fitted under a logistic model or an MLP, without the shape block; leave shape "
                f"and model {refiner.model} out"
            )
        if self.blocks:
            unfrozen(extractor.encoder, self.blocks, extractor.layer)

    def fit(
        self,
        refiner: Refiner,
        data: TrainingSet,
        brains: Sequence[Candidates],
        extractor: Extractor,
        show: bool | None,
    ) -> None:
        """Fit a refiner with the blocks, which are saved in its folder; see `tune`."""
        more: dict[str, Any] = {"regions": data.regions, "missed": data.missed, "show": show}
        tune(refiner, data.features, data.label, brains, extractor, self, **more)
        refiner.warn()

    def steps(self, labels: int) -> int:
        """Number of optimizer steps for so many labels."""
        return int(np.clip(math.ceil(self.epochs * labels / self.batch), self.least_steps, self.most_steps))


def tune(
    refiner: Refiner,
    features: FeatureSet,
    label: Int64[np.ndarray, " n"],
    brains: Sequence[Candidates],
    extractor: Extractor,
    tuning: Tuning,
    *,
    regions: np.ndarray | None = None,
    missed: dict[str, int] | None = None,
    frozen_tokens: FrozenTokens | None = None,
    show: bool | None = None,
) -> Tuned | None:
    """Fit a refiner together with the last blocks of the extractor's encoder, which is not modified.

    `features` are the frozen encoder's, a row for each candidate of the `brains` in their order, with `label`
    1, 0 or −1 (not learned from). Folds, penalty, calibration and threshold are as in `Refiner.fit`: for each
    fold blocks and head are fitted without it. The figures of the frozen encoder stand beside, under
    `cross_validation_["frozen"]`. Without blocks it is `Refiner.fit`. `frozen_tokens` may be
    kept from call to call.

    Raises BadInput where the refiner looks at no encoder, or the encoder has not so many blocks.
    """
    tuning.check(refiner, extractor)
    rows = refiner.prepare(features, label, regions=regions, missed=missed)
    settings = refiner.head_settings
    folds = folds_of(settings, rows)
    C, logits = held_out_logits(settings, rows, folds)
    frozen = assemble_fit(settings, rows, folds, logits, head_net(settings, rows.x, rows.is_cell, C), C)
    if not tuning.blocks:
        refiner.take(frozen)
        return None
    work = Tuned(
        refiner, features, np.flatnonzero(label >= 0), rows, brains, extractor, tuning, frozen_tokens
    )
    steps = sum(tuning.steps(len(train)) for train, _ in folds) + tuning.steps(len(rows.is_cell))
    work.frozen_tokens.fill(work.rows, show)
    with bar("fine-tuning", steps, unit="steps", show=show) as advance:
        for train, test in folds:
            work.fit(train, C, advance)
            logits[0, test] = work.logits(test)
        work.fit(np.arange(len(rows.is_cell)), C, advance)
    fitted = assemble_fit(settings, rows, folds, logits, work.head.cpu(), C)
    fitted.figures["frozen"] = {name: frozen.figures[name] for name in ("pooled", "brains", "regions")}
    refiner.take(fitted, work.blocks())
    return work


class Tuned:
    """Blocks and head of one refiner during fitting, and their features."""

    def __init__(
        self,
        refiner: Refiner,
        features: FeatureSet,
        rows: Int64[np.ndarray, " m"],
        labelled: LabelledFeatures,
        brains: Sequence[Candidates],
        extractor: Extractor,
        tuning: Tuning,
        frozen_tokens: FrozenTokens | None,
    ) -> None:
        assert extractor.encoder is not None
        self.refiner, self.features, self.rows, self.labelled = refiner, features, rows, labelled
        self.base, self.tuning = extractor.encoder, tuning
        settings = extractor.provenance[MAE].settings
        self.pool, self.layer = str(settings["pool"]), int(settings["layer"])
        self.net, self.first, self.last = unfrozen(self.base, tuning.blocks, self.layer)
        running: dict[str, Any] = {"batch": extractor.batch, "device": extractor.device}
        running |= {"resample": extractor.resample, "ignore_voxel_size": extractor.ignore_voxel_size}
        self.frozen_tokens = frozen_tokens or FrozenTokens(self.base, brains, self.first, **running)
        self.device = self.base.device
        every = np.arange(features.x.shape[1])[None].astype(np.float32)
        used = refiner.columns_.take({name: every[:, part] for name, part in features.blocks.items()})
        self._used = torch.from_numpy(used[0]).long().to(self.device)
        self.head = HeadNet(len(used[0]))
        self._corrections: dict[str, tuple[Tensor, Tensor]] = {}

    def fit(self, labelled_rows: Int64[np.ndarray, " k"], C: float | None, advance: Advance) -> None:
        """Reinitialise and train on some of the labelled rows; reproducible by seed."""
        tuning, is_cell = self.tuning, self.labelled.is_cell[labelled_rows]
        self.net = unfrozen(self.base, tuning.blocks, self.layer)[0].to(self.device)
        net = head_net(self.refiner.head_settings, self.labelled.x[labelled_rows], is_cell, C)
        assert isinstance(net, HeadNet)  # heads that are blends were refused
        self.head = net.to(self.device)
        learning = [self.head.first, *([] if self.head.last is None else [self.head.last])]
        head = [parameter.requires_grad_() for layer in learning for parameter in layer.parameters()]
        blocks = [parameter for parameter in self.net.parameters() if parameter.requires_grad]
        learned: list[dict[str, Any]] = [{"params": blocks}, {"params": head, "lr": tuning.head_rate}]
        optimizer = torch.optim.AdamW(learned, tuning.learning_rate, weight_decay=tuning.weight_decay)
        steps = tuning.steps(len(labelled_rows))
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, [tuning.learning_rate, tuning.head_rate], total_steps=steps, pct_start=0.1
        )
        generator = torch.Generator().manual_seed(self.refiner.random_state)
        truth = torch.from_numpy(is_cell)
        for step in range(steps):
            if step % max(1, steps // _MEASURED) == 0:
                self._measure(labelled_rows)
            drawn = self._draw(truth, generator)
            rows = self.rows[labelled_rows[drawn.numpy()]]
            loss = F.binary_cross_entropy_with_logits(
                self._forward(rows, generator), truth[drawn].float().to(self.device)
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_([*blocks, *head], 1.0)
            optimizer.step()
            schedule.step()
            advance(1)
        if not math.isfinite(loss.item()):
            raise CanvasError("fine-tuning diverged; give a smaller learning rate")
        self.head.eval().requires_grad_(False)

    def logits(self, labelled_rows: Int64[np.ndarray, " k"]) -> Float64[np.ndarray, " k"]:
        """Uncalibrated logits of some of the labelled rows."""
        refiner = copy.copy(self.refiner)
        refiner.net_, refiner.provenance_ = self.head, {}
        return self.predictions_of(refiner.logits, self.rows[labelled_rows]).astype(np.float64)

    def predictions_of(self, logits_of: Any, rows: Int64[np.ndarray, " m"]) -> np.ndarray:
        """Apply `judge` to the features of some rows; corrected brains must be complete."""
        complete_rows = rows
        if self.refiner.correction != "none":
            brains = np.unique(self.features.groups[rows])
            complete_rows = np.flatnonzero(np.isin(self.features.groups, brains))
        outputs = np.asarray(logits_of(self.features_of(complete_rows)))
        place = np.full(len(self.features), -1)
        place[complete_rows] = np.arange(len(complete_rows))
        return outputs[place[rows]]

    def features_of(self, rows: Int64[np.ndarray, " m"]) -> FeatureSet:
        """Features of some candidates by the current blocks."""
        base = self.features.rows(rows)
        x = base.x.copy()
        x[:, self._tokens_part(base)] = self._embedded(rows)
        return FeatureSet(x, base.blocks, base.groups)

    def _tokens_part(self, features: FeatureSet) -> slice:
        """Columns of what the blocks give; behind them an encoder's descriptors stay as they are."""
        start = features.blocks[MAE].start
        return slice(start, start + self.net.config.dim)

    def blocks(self) -> TunedBlocks:
        """The current blocks."""
        return TunedBlocks.of(self.base, self.net, self.first, self.last)

    def _draw(self, is_cell: Bool[Tensor, " n"], generator: torch.Generator) -> Int64[Tensor, " b"]:
        if self.refiner.balanced:
            return balanced_rows(is_cell, self.tuning.batch, generator)
        return torch.randint(len(is_cell), (self.tuning.batch,), generator=generator)

    def _forward(self, rows: Int64[np.ndarray, " b"], generator: torch.Generator) -> Float[Tensor, " b"]:
        tokens = (
            self.frozen_tokens.turned(rows, generator) if self.tuning.augment else self.frozen_tokens(rows)
        )
        x = torch.from_numpy(self.features.x[rows]).to(self.device)
        part = self._tokens_part(self.features)
        embedded = self.net.onward(tokens, self.first, self.pool, self.last)
        x = torch.cat([x[:, : part.start], embedded, x[:, part.stop :]], dim=1)
        return self.head(self._corrected(x, self.features.groups[rows])[:, self._used])

    def _corrected(self, x: Float[Tensor, "b d"], groups: Shaped[np.ndarray, " b"]) -> Float[Tensor, "b d"]:
        if not self._corrections:
            return x
        out = torch.zeros_like(x)
        for name in np.unique(groups):
            brain_rows = torch.from_numpy(np.flatnonzero(groups == name)).to(x.device)
            mean, scale = self._corrections[str(name)]
            centred = x[brain_rows] - mean
            out[brain_rows] = centred * scale if scale.ndim == 1 else centred @ scale
        return out

    @torch.no_grad()
    def _embedded(self, rows: Int64[np.ndarray, " m"]) -> Float32[np.ndarray, "m d"]:
        out = np.empty((len(rows), self.net.config.dim), np.float32)
        for start in range(0, len(rows), _AT_ONCE):
            tokens = self.frozen_tokens(rows[start : start + _AT_ONCE])
            embedded = self.net.onward(tokens, self.first, self.pool, self.last)
            out[start : start + _AT_ONCE] = embedded.cpu().numpy()
        return out

    def _measure(self, labelled_rows: Int64[np.ndarray, " k"]) -> None:
        """Moments of each brain from a sample of its candidates, by the current blocks."""
        how = self.refiner.correction
        if how == "none":
            return
        random = np.random.default_rng(0)
        for name in np.unique(self.labelled.groups[labelled_rows]):
            brain_rows = np.flatnonzero(self.features.groups == name)
            if len(brain_rows) > _SAMPLE:
                brain_rows = np.sort(random.choice(brain_rows, _SAMPLE, replace=False))
            moments = Moments.of(self.features_of(brain_rows).x)
            mean, scale = (
                torch.from_numpy(numbers).float().to(self.device)
                for numbers in (moments.mean, moments.scale(how))
            )
            self._corrections[str(name)] = mean, scale
