"""Tiny brains as TIFF planes, an atlas of two halves, and tiny models, for tests of studies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch

from canvas_fm.data.points.points import Points
from canvas_fm.heads.features.extractor import Extractor
from canvas_fm.heads.labels.candidates import label_brains
from canvas_fm.heads.refine.fit.fit import fit_labelled
from canvas_fm.heads.refine.refiner import Refiner
from canvas_fm.models.detector.convmixer import ConvMixerConfig, HeatMapNet
from canvas_fm.models.load_model import load, save_detector
from tests.heads.conftest import VOXEL_UM, make_encoder, spots


def write_inputs(folder: Path, brains: int) -> Path:
    """Planes in FOLDER/raw/N, models in FOLDER/models, an atlas; returns FOLDER."""
    torch.manual_seed(1)
    net = HeatMapNet(ConvMixerConfig(dim=4, depth=1, kernel_zyx=(3, 3, 3)))
    torch.nn.init.normal_(net.head.weight, std=3.0)
    torch.nn.init.zeros_(net.head.bias)
    models = folder / "models"
    models.mkdir(parents=True)
    save_detector(models / "det", net, voxel_um=VOXEL_UM, threshold=0.55, min_distance_um=6)
    make_encoder(models / "enc")
    detector, encoder = load(models / "det", kind="detector"), load(models / "enc", kind="encoder")
    labelled = [spots(folder / f"{name}.zarr", seed) for seed, name in enumerate("pq")]
    parts = label_brains([v for v, _ in labelled], [_scored(p) for _, p in labelled], labels="label")
    extractor = Extractor(encoder, detector, device="cpu")
    fit_labelled(
        Refiner("concat", C=0.01), parts, extractor, models / "ref", candidate_score=False, show=False
    )
    for at in range(brains):
        volume, _ = spots(folder / f"source{at}.zarr", at + 2)
        (folder / f"raw/{at}").mkdir(parents=True)
        for z, plane in enumerate(volume.read((0, 0, 0), volume.shape_zyx)):
            tifffile.imwrite(folder / f"raw/{at}/p_{z:04d}.tif", plane)
    halves = np.ones(volume.shape_zyx, np.uint8)
    halves[:, halves.shape[1] // 2 :] = 2
    tifffile.imwrite(folder / "halves.tif", halves)
    (folder / "names.csv").write_text("id,name,acronym\n1,front,F\n2,back,B\n", encoding="utf-8")
    return folder


def _scored(points: Points) -> Points:
    score = np.random.default_rng(0).random(len(points))
    return Points(points.zyx, points.columns | {"score": score})


def settings(brains: int, **sections: Any) -> dict[str, Any]:
    """A study of such brains with every step."""
    groups = ("control", "treated")
    named = {f"b{at}": {"source": f"raw/{at}", "group": groups[at % 2]} for at in range(brains)}
    um = list(VOXEL_UM)
    return {
        "brains": named,
        "models": {"device": "cpu"},
        "convert": {"voxel_um": um, "chunk_zyx": [8, 32, 32]},
        "detect": {"detector": "models/det"},
        "refine": {"refiner": "models/ref", "encoder": "models/enc"},
        "embed": {"encoder": "models/enc", "points": "candidates"},
        "index": {},
        "regions": {"atlas": "halves.tif", "table": "names.csv", "atlas_voxel_um": um},
        **(
            {"groups": {"min_count": 0}, "profiles": {"min_cells": 1, "clusters": 2}, "brain_report": {}}
            if brains >= 4
            else {}
        ),
    } | sections  # fmt: skip
