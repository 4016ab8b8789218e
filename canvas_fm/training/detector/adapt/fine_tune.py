"""A short training of a detector's net on one labelled volume, in memory: no run, nothing is written."""

from __future__ import annotations

import copy

import numpy as np
import torch

from canvas_fm.data.zyx import Zyx
from canvas_fm.models.detector.convmixer import HeatMapNet
from canvas_fm.models.load_model import Detector
from canvas_fm.training.detector.optimizer_step import DetectorStep
from canvas_fm.training.detector.targets import Labelled
from canvas_fm.training.detector.train import DetectorTraining
from canvas_fm.training.recipe.detector_recipe import DetectorRecipe
from canvas_fm.training.run.distributed import Ranks

_CROP_ZYX: Zyx = (16, 48, 48)
_BATCH = 4
_RATE = 4e-3
_CROPS = 240
_RADIUS = 0.9  # of the least distance of two cells: the target's, where the detector's recipe is not known


def fine_tune_recipe(
    detector: Detector,
    labelled: Labelled,
    steps: int,
    seed: int,
    *,
    rate: float = _RATE,
    hard: float = 0.2,
    crops: int = _CROPS,
) -> DetectorRecipe:
    """The detector's own net, window and target for a short training on one volume.

    No averaging of weights and no decay: the weights are to stay near those that they start from. Brightness
    is hardly varied, since one brain is meant.
    """
    config = detector.config
    recipe = config.provenance.get("recipe") or {}
    target = (recipe.get("target") or {}).get("radius_um") or _RADIUS * config.min_distance_um
    rule = config.window_rule
    return DetectorRecipe.model_validate(
        {
            "kind": "detector",
            "model": config.architecture,
            "target": {"radius_um": float(target)},
            "data": {
                "crops": max(_BATCH, min(steps * _BATCH, crops)),
                "crop_zyx": _crop_zyx(detector, labelled),
                "cells": 0.6,
                "hard": hard,
                "window": {"kind": rule.kind, "low": rule.low, "high": rule.high},
            },
            "augment": {"noise": 0.0, "gain": 1.2, "gamma": 1.0, "offset": 0.0},
            "training": {
                "steps": steps,
                "batch": _BATCH,
                "learning_rate": rate,
                "min_learning_rate": rate / 100,
                "warmup_steps": min(5, steps // 3),
                "weight_decay": 0.0,
                "precision": "fp32",
            },
            "detection": {
                "min_distance_um": config.min_distance_um,
                "tolerance_um": config.min_distance_um,
            },
            "evaluation": {"figures": False},
            "seed": seed,
        }
    )


def fine_tune(
    detector: Detector,
    labelled: Labelled,
    recipe: DetectorRecipe,
    *,
    last: bool = False,
    also: Labelled | None = None,
) -> HeatMapNet:
    """The net after the recipe's steps from the detector's weights: all of it, or the last block and head.

    Where all is trained the norms follow the new brain's crops; else they keep their statistics. Of the crops
    half are from `also` where that is given, other labels of the same volume.
    """
    net = copy.deepcopy(detector.net)
    net.requires_grad_(True)
    if last:
        net.requires_grad_(False)
        for part in (net.body[-1], net.head):
            part.requires_grad_(True)
    task = DetectorTraining(recipe, [labelled] if also is None else [labelled, also], [])
    ranks = Ranks(0, 1, detector.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        step = DetectorStep(recipe, ranks, net)
        net.train(not last)
        for number, batch in enumerate(task.batches(ranks, False).along(task.order(0))):
            step(batch, number)
    return net.eval().requires_grad_(False)


def _crop_zyx(detector: Detector, labelled: Labelled) -> list[int]:
    """As large as in training, but inside the volume: whole patches, square in y, x for turns."""
    patch = np.asarray(detector.config.architecture.patch_zyx)
    volume = labelled.source.volume
    room = np.asarray(volume.shape_zyx) * np.asarray(volume.voxel_um) / np.asarray(labelled.um)
    size = np.minimum(_CROP_ZYX, np.floor(room))
    size[1:] = size[1:].min()
    return [int(max(n // p, 1) * p) for n, p in zip(size, patch, strict=True)]
