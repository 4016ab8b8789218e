"""Which way tells cells from other candidates best, on volumes that none has seen: from files to a report."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from canvas_fm.data.points import Points
from canvas_fm.data.volume import Volume
from canvas_fm.errors import CanvasError
from canvas_fm.heads.baselines import Embedded, OwnScore, PcaCrops, ShapeTrees
from canvas_fm.heads.candidates import label_brains
from canvas_fm.heads.compare import compare
from canvas_fm.heads.extract import DETECTOR, MAE, Extractor, features_of_rows, kept_features
from canvas_fm.heads.features import FeatureSet, stack
from canvas_fm.heads.label_curve import COUNTS
from canvas_fm.heads.methods import Method
from canvas_fm.heads.refine import Refiner
from canvas_fm.heads.report import write_report
from canvas_fm.heads.task import Task
from canvas_fm.models.checkpoint import Detector, Encoder, load
from canvas_fm.models.random_encoder import random_encoder
from canvas_fm.models.resnet import ResNetConfig
from canvas_fm.training.classifier import ResNetClassifier
from canvas_fm.training.finetune import Tuning
from canvas_fm.training.finetune_method import FinetunedEncoder

_log = logging.getLogger(__name__)
METHODS = ("score", "shape", "pca", "random", "encoder", "finetune", "resnet")
RESNET = "3D ResNet"


@dataclass(frozen=True)
class Settings:
    """How the methods work: `pool` and `layer` of encoders, `correction` of every brain, sizes of the ResNet.

    `unfreeze` is how many blocks `finetune` fits, `augment` whether it turns and brightens crops by chance.
    `keep` is a folder in which features are kept for the next report on the same candidates.
    """

    pool: str | None = None
    layer: int | None = None
    correction: str = "none"
    head: str = "logistic"
    C: float | None = None
    unfreeze: int = 1
    augment: bool = False
    resnet_width: int = 16
    resnet_steps: int = 2000
    device: str = "auto"
    precision: str = "fp32"
    resample: bool = False
    any_voxel: bool = False
    keep: Path | None = None


def report(
    volumes: Sequence[Volume],
    candidates: Sequence[Points | str | Path],
    truth: Sequence[Points | str | Path],
    out: str | Path,
    *,
    tolerance_um: float,
    labels: str | None = None,
    score: str | None = None,
    within: Sequence[str | Path] | None = None,
    encoders: Sequence[str | Path] = (),
    detectors: Sequence[str | Path] = (),
    methods: Sequence[str] | None = None,
    folds: Sequence[Sequence[str]] | None = None,
    seeds: int = 3,
    counts: Sequence[int] = COUNTS,
    title: str = "Telling cells from other candidates",
    settings: Settings | None = None,
    show: bool | None = None,
) -> dict[str, Any]:
    """Judge the candidates of each fold's volumes by what was fitted on the others; write `out`, a folder.

    `labels` is a column of the candidates (1, 0, −1), else they come from matching them to `truth`. `folds`
    name the volumes held out together, by default each by itself; `encoders` and `detectors` are one for all
    folds, or one a fold in their order, trained without its volumes. `methods` are among METHODS, by default
    all but `finetune` that what is given allows. One volume is divided by its boxes, and the report says so.
    Returns what report.json holds. Raises CanvasError for what does not fit together.
    """
    settings = settings or Settings()
    brains = label_brains(
        volumes,
        candidates,
        labels=labels,
        truth=truth,
        tolerance_um=tolerance_um,
        within=within,
        score=score,
    )
    task = Task(brains, resample=settings.resample, any_voxel=settings.any_voxel)
    held = _held_out(task, folds)
    names = _asked(methods, task, bool(encoders or detectors), bool(encoders))
    found: list[Method] = []
    about: dict[str, Any] = {}
    encoder_of = _one_a_fold(encoders, held, "encoder")
    detector_of = _one_a_fold(detectors, held, "detector")
    made = _Extracted(task, settings, show)
    simple: dict[str, Callable[[], Method]] = {
        "score": OwnScore,
        "shape": ShapeTrees,
        "pca": PcaCrops,
        "resnet": lambda: _resnet(settings),
    }
    for name in names:
        if name in simple:
            found.append(simple[name]())
        elif name == "random":
            like = next(iter(encoder_of.values())).config if encoder_of else None
            other = Extractor(encoder=random_encoder(like, voxel_um=task.voxel_um))
            found.append(made.method("random encoder", {fold: other for fold in held}, MAE))
        else:
            every = {
                fold: Extractor(
                    encoder=encoder_of.get(fold),
                    detector=detector_of.get(fold),
                    pool=settings.pool,
                    layer=settings.layer,
                )
                for fold in held
            }
            for variant in _variants(encoders, detectors):
                if name == "encoder":
                    found.append(made.method(variant, every, variant))
                elif variant != DETECTOR:
                    found.append(made.finetuned(every, variant))
            about |= _models(every)
    result = compare(task, found, folds=held, seeds=seeds, counts=counts, show=show)
    result.notes.extend(_leaks(held, encoder_of, detector_of))
    reference = RESNET if RESNET in result.methods else None
    return write_report(result, out, title=title, reference=reference, about=about)


def _held_out(task: Task, folds: Sequence[Sequence[str]] | None) -> dict[str, tuple[str, ...]]:
    if folds is None:
        return {part.name: (part.name,) for part in task.parts}
    if task.by == "region":
        raise CanvasError("there is one volume, whose regions are held out in turn; leave out the folds")
    return {" + ".join(some): tuple(some) for some in folds}


def _asked(methods: Sequence[str] | None, task: Task, models: bool, encoders: bool) -> list[str]:
    """The methods in the order of METHODS; by default those that need nothing which was not given."""
    if methods is None:
        lacking = {"finetune"} | ({"score"} if task.own is None else set())
        return [name for name in METHODS if name not in lacking | (set() if models else {"encoder"})]
    if unknown := [name for name in methods if name not in METHODS]:
        raise CanvasError(f"there is no method {unknown[0]!r}; give some of {', '.join(METHODS)}")
    if "encoder" in methods and not models:
        raise CanvasError("the method 'encoder' needs --encoder, --detector or both")
    if "finetune" in methods and not encoders:
        raise CanvasError("the method 'finetune' needs --encoder: a detector has no blocks to unfreeze")
    return [name for name in METHODS if name in methods]


def _one_a_fold(models: Sequence[str | Path], held: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """A model for each fold: the one for all, or as many as folds."""
    if not models:
        return {}
    if len(models) not in (1, len(held)):
        raise CanvasError(
            f"{len(models)} {kind}s for {len(held)} folds ({', '.join(held)}); give one, or one a fold"
        )
    opened = [load(path, kind="encoder" if kind == "encoder" else "detector") for path in models]
    return {fold: opened[number % len(opened)] for number, fold in enumerate(held)}


def _variants(encoders: Sequence[Any], detectors: Sequence[Any]) -> list[str]:
    both = bool(encoders) and bool(detectors)
    return [*([DETECTOR] if detectors else []), *([MAE] if encoders else []), *(["concat"] if both else [])]


def _resnet(settings: Settings) -> ResNetClassifier:
    return ResNetClassifier(
        ResNetConfig(width=settings.resnet_width),
        most_steps=settings.resnet_steps,
        least_steps=min(150, settings.resnet_steps),
        device=settings.device,
        name=RESNET,
    )


class _Extracted:
    """Features of the task's rows by models; those of one model are worked out once."""

    def __init__(self, task: Task, settings: Settings, show: bool | None) -> None:
        self._task, self._settings, self._show = task, settings, show
        self._known: dict[str, FeatureSet] = {}

    def method(self, name: str, by_fold: Mapping[str, Extractor], variant: str) -> Embedded:
        """Embeddings (or the detector's features, or both) under a refiner."""
        ready = self._ready(by_fold)
        features = {fold: self._features(one) for fold, one in ready.items()}

        def embed(rows: np.ndarray, fold: str) -> np.ndarray:
            return features_of_rows(ready[fold], self._task, rows).x

        seeded = self._settings.head == "mlp"
        return Embedded(name, features, refiner=self._refiner(variant), embed=embed, seeded=seeded)

    def finetuned(self, by_fold: Mapping[str, Extractor], variant: str) -> FinetunedEncoder:
        """The same with the encoder's last blocks fitted too."""
        settings, ready = self._settings, self._ready(by_fold)
        blocks = settings.unfreeze
        return FinetunedEncoder(
            ready,
            {fold: self._features(one) for fold, one in ready.items()},
            Tuning(blocks, augment=settings.augment),
            refiner=self._refiner(variant),
            name=f"{variant}, {blocks} block{'s' * (blocks != 1)} tuned",
        )

    def _ready(self, by_fold: Mapping[str, Extractor]) -> dict[str, Extractor]:
        settings = self._settings
        same: dict[str, Any] = {
            "device": settings.device,
            "precision": settings.precision,
            "resample": settings.resample,
            "any_voxel": settings.any_voxel,
        }
        return {
            fold: replace(one, pool=settings.pool, layer=settings.layer, **same)
            for fold, one in by_fold.items()
        }

    def _refiner(self, variant: str) -> Callable[[int], Refiner]:
        settings = self._settings

        def make(seed: int) -> Refiner:
            return Refiner(
                variant,
                model=settings.head,
                C=settings.C,
                correction=settings.correction,
                random_state=seed,
            )

        return make

    def _features(self, extractor: Extractor) -> FeatureSet:
        key = repr({name: made.as_dict() for name, made in extractor.made.items()})
        if key not in self._known:
            keep = self._settings.keep
            parts = []
            for part in self._task.parts:
                same: dict[str, Any] = {"group": part.name, "show": self._show}
                parts.append(
                    extractor.features(part.volume, part.zyx, **same)
                    if keep is None
                    else kept_features(extractor, part.volume, part.zyx, keep, **same)
                )
            self._known[key] = stack(parts)
        return self._known[key]


def _models(by_fold: Mapping[str, Extractor]) -> dict[str, Any]:
    """Which model judged which fold."""
    told: dict[str, Any] = {}
    for fold, extractor in by_fold.items():
        for block, made in extractor.made.items():
            told[f"{block}, {fold} held out"] = f"{made.name}, sha256 {made.sha256}, {dict(made.settings)}"
    return told


def _leaks(
    held: Mapping[str, tuple[str, ...]],
    encoders: Mapping[str, Encoder],
    detectors: Mapping[str, Detector],
) -> list[str]:
    """A sentence for each model that was trained on a volume which it judges here as held out."""
    said = []
    for kind, models in (("encoder", encoders), ("detector", detectors)):
        for fold, model in models.items():
            listed = model.config.provenance.get("trained_on") or []
            seen = {str(one.get("name") if isinstance(one, Mapping) else one) for one in listed}
            for name in held[fold]:
                if name in seen:
                    said.append(f"the {kind} {model.name} was trained on {name}, which it judges here")
    for sentence in said:
        _log.warning("%s", sentence)
    return said
