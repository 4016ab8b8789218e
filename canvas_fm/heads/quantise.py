"""int8 quantisation of an encoder, admitted by its effect on neighbours and F1 on held-out volumes.

Two things have to stay: who is whose neighbour, and what a refiner makes of the embeddings. Both are measured
on labelled candidates, the second by refiners that have not seen the volumes that they judge.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64, Shaped

from canvas_fm.data.crops.crop_positions import draw_starts
from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import BadInput, CanvasError, MissingExtra
from canvas_fm.evaluation.metrics.classification import f1_at
from canvas_fm.heads.labels.candidates import CELL, SKIP, Candidates
from canvas_fm.heads.labels.group_folds import Folds, grouped_folds
from canvas_fm.heads.refine.refiner import Refiner
from canvas_fm.inference.backends.int8_check import GRAPH, Int8Check, PoolCheck, keep
from canvas_fm.inference.backends.openvino import Compiled, converted, openvino, save
from canvas_fm.inference.embed.point_crops import PointCrops, ahead
from canvas_fm.models.device import native_int8
from canvas_fm.models.encoder.vit import POOLS
from canvas_fm.models.load_model import Encoder
from canvas_fm.progress import bar

NEIGHBOURS = 10
_BATCH = 64
_AT_ONCE = 1024  # rows whose neighbours are looked for together
_FOLDS = 5


def quantise(
    encoder: Encoder,
    brains: Sequence[Candidates],
    calibrate: Sequence[Volume],
    *,
    crops: int = 512,
    most: int = 500,
    seed: int = 0,
    resample: bool = False,
    ignore_voxel_size: bool = False,
    show: bool | None = None,
) -> Int8Check:
    """Quantise an encoder to int8, check it against fp32, and store both with it (or in the user's cache).

    Ranges come from `crops` crops of the volumes `calibrate`, half of them on signal. The check embeds up to
    `most` labelled candidates of each of `brains` in fp32 and in int8, and counts for every pooling the share
    of their 10 nearest neighbours by cosine that are the same, and the F1 of refiners on volumes left out:
    fitted on fp32, fitted on int8, and fitted on fp32 but judging int8. What is not admitted is said there,
    and the graph not kept. Raises MissingExtra without the extra `cpu`, ModelMismatch for another voxel size,
    BadInput for too few labels or volumes.
    """
    nncf = _nncf()
    if not calibrate or crops < 1:
        raise BadInput("int8 needs crops of training volumes to calibrate on; name one volume at least")
    for volume in [*calibrate, *(brain.volume for brain in brains)]:
        PointCrops.of(encoder.config, volume, resample=resample, ignore_voxel_size=ignore_voxel_size)
    rows = [_some_labelled(brain, most, seed) for brain in brains]
    groups = np.repeat([brain.name for brain in brains], [len(brain_rows) for brain_rows in rows])
    is_cell = np.concatenate(
        [brain.label[brain_rows] == CELL for brain, brain_rows in zip(brains, rows, strict=True)]
    )
    regions = np.concatenate(
        [brain.region[brain_rows] for brain, brain_rows in zip(brains, rows, strict=True)]
    )
    folds = grouped_folds(groups, is_cell, folds=_FOLDS, regions=regions, seed=seed)
    read_options: dict[str, Any] = {"resample": resample, "ignore_voxel_size": ignore_voxel_size}
    model = converted(encoder)
    quantised = _quantised(nncf, model, _calibration(encoder, calibrate, crops, seed, read_options))
    nets = [Compiled(model, "fp32"), Compiled(quantised, "int8")]
    fp32, int8 = _embedded(nets, encoder, brains, rows, read_options, show)
    labels = _Labels(is_cell, groups, regions, folds)
    pools = {name: _compared(fp32[:, at], int8[:, at], labels) for at, name in enumerate(POOLS)}
    check = Int8Check(
        encoder_sha256=encoder.sha256,
        neighbours=NEIGHBOURS,
        pools=pools,
        candidates=len(is_cell),
        volumes=[brain.name for brain in brains],
        calibration_volumes=[volume.name for volume in calibrate],
        calibration_crops=crops,
        exact=native_int8(),
        versions=_versions(),
        files={},
    )
    passed = any(check_of_pool.passed for check_of_pool in pools.values())

    def write(folder: Path) -> None:
        if passed:
            save(quantised, folder / GRAPH)

    return keep(encoder, check, write)


class _Labels:
    """Labels of the candidates, and the volumes (or regions) for cross-validation."""

    def __init__(
        self,
        is_cell: Bool[np.ndarray, " n"],
        groups: Shaped[np.ndarray, " n"],
        regions: Int64[np.ndarray, " n"],
        folds: Folds,
    ) -> None:
        self.is_cell, self.groups, self.folds = is_cell, groups, folds
        self.regions = regions.astype(np.str_)

    def refiner(
        self, x: Float32[np.ndarray, "n d"], rows: Int64[np.ndarray, " m"], C: float | None
    ) -> Refiner:
        refiner = Refiner("features", C=C, folds=3, force_random=True)
        labels = self.is_cell[rows].astype(np.int64)
        return refiner.fit(x[rows], labels, groups=self.groups[rows], regions=self.regions[rows])

    def f1(self, predicted: Bool[np.ndarray, " n"]) -> float:
        return float(f1_at(self.is_cell, predicted.astype(np.float64), 0.5))


def _compared(
    fp32: Float32[np.ndarray, "n d"], int8: Float32[np.ndarray, "n d"], labels: _Labels
) -> PoolCheck:
    everything = np.arange(len(fp32))
    C = labels.refiner(fp32, everything, None).C_  # the penalty of both, so that only the features differ
    decisions = {name: np.zeros(len(fp32), bool) for name in ("fp32", "int8", "carried")}
    for train, test in labels.folds:
        usual, other = labels.refiner(fp32, train, C), labels.refiner(int8, train, C)
        decisions["fp32"][test] = usual.predict(fp32[test]) == CELL
        decisions["int8"][test] = other.predict(int8[test]) == CELL
        decisions["carried"][test] = usual.predict(int8[test]) == CELL
    return PoolCheck(
        agreement=agreement(fp32, int8, NEIGHBOURS),
        f1_all=labels.f1(np.ones(len(fp32), bool)),
        **{f"f1_{name}": labels.f1(predicted) for name, predicted in decisions.items()},
    )


def agreement(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "n d"], k: int) -> float:
    """Mean overlap of each row's `k` nearest neighbours by cosine in two embeddings."""
    if len(a) <= k:
        raise BadInput(f"{len(a)} rows have no {k} neighbours each; give more labelled candidates")
    shared = 0
    unit = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (a, b)]
    for first in range(0, len(a), _AT_ONCE):
        neighbours = []
        for x in unit:
            cosine = x[first : first + _AT_ONCE] @ x.T
            cosine[np.arange(len(cosine)), np.arange(first, first + len(cosine))] = -np.inf  # itself
            neighbours.append(np.argpartition(-cosine, k - 1, axis=1)[:, :k])
        shared += sum(len(np.intersect1d(rows, other)) for rows, other in zip(*neighbours, strict=True))
    return shared / (k * len(a))


def _some_labelled(brain: Candidates, most: int, seed: int) -> Int64[np.ndarray, " m"]:
    rows = np.flatnonzero(brain.label != SKIP)
    return np.sort(np.random.default_rng(seed).permutation(rows)[:most])


def _embedded(
    nets: Sequence[Compiled],
    encoder: Encoder,
    brains: Sequence[Candidates],
    rows: Sequence[Int64[np.ndarray, " m"]],
    read_options: dict[str, Any],
    show: bool | None,
) -> list[Float32[np.ndarray, "n pools d"]]:
    """Labelled candidates of all brains embedded by each net, all pools."""
    total = sum(map(len, rows))
    out = [np.empty((total, len(POOLS), encoder.dim), np.float32) for _ in nets]
    first = 0
    with bar("embedding twice", total, unit="crops", show=show) as advance:
        for brain, brain_rows in zip(brains, rows, strict=True):
            source = PointCrops.of(encoder.config, brain.volume, **read_options)
            for part, crops in ahead(source.batches(brain.zyx[brain_rows], _BATCH)):
                for vectors, net in zip(out, nets, strict=True):
                    vectors[first + part] = net(crops)
                advance(len(part))
            first += len(brain_rows)
    for vectors in out:
        if not np.isfinite(vectors).all():
            raise CanvasError(f"{encoder.name} gives NaN or infinite values; its weights are of no use")
    return out


def _calibration(
    encoder: Encoder, volumes: Sequence[Volume], crops: int, seed: int, read_options: dict[str, Any]
) -> list[Float32[np.ndarray, "b 1 z y x"]]:
    """Calibration batches of windowed crops, equally many of each volume, half on foreground."""
    batches = []
    for number, volume in enumerate(volumes):
        source = PointCrops.of(encoder.config, volume, **read_options)
        count = crops // len(volumes) + (number < crops % len(volumes))
        box = source.reader.box_zyx
        starts = draw_starts(volume, box, count, foreground=0.5, seed=seed)
        points = (starts + np.asarray(box) // 2).astype(np.float64)
        batches += [part for _, part in source.batches(points, _BATCH)]
    return batches


def _nncf() -> Any:
    openvino()  # before nncf, which would report what it does as well
    try:
        import nncf
    except ImportError as problem:
        raise MissingExtra("nncf", "cpu", "int8") from problem
    return nncf


def _quantised(nncf: Any, model: Any, batches: Sequence[Float32[np.ndarray, "b 1 z y x"]]) -> Any:
    logging.getLogger("nncf").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(sys.stderr):  # its progress; results go to stdout
        return nncf.quantize(
            model,
            nncf.Dataset(batches),
            subset_size=len(batches),
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.MIXED,
        )


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("openvino", "nncf", "torch")}
