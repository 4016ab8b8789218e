"""Measurements of the demo's page, from its own brains, run and encoder."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Shaped

from canvas_fm.data.crops.reader import CropReader
from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.evaluation.metrics.separability import Accuracy, brightness_features, linear_right, raw_pca
from canvas_fm.inference.embed.embed import embed_crops
from canvas_fm.models.encoder.vit import ViTEncoder
from canvas_fm.models.load_model import Encoder
from canvas_fm.prepare.workers.cores import usable_cores
from canvas_fm.viewing.demo.counting import SampleCount
from canvas_fm.viewing.demo.page import Agreement, DemoPage, MarkerView, Reconstructed
from canvas_fm.viewing.demo.svg import Interval, Line
from canvas_fm.viewing.reconstruction import reconstruct

CELLS = 80  # of each marker and brain: enough for intervals of a few percent, a second to embed
_RANDOM_ENCODERS = 3
_LEARNED = "pretrained encoder of cells"
NEXT_STEPS = (
    "canvas-fm info brain.zarr",
    "canvas-fm pretrain cells_hybrid --volumes brain_a.zarr brain_b.zarr --held-out 1 --out runs/mine",
    "canvas-fm embed runs/mine/encoder brain_a.zarr --points cells.csv --out cells.emb.zarr",
    "canvas-fm export cells.emb.zarr cells.h5ad",
    "canvas-fm serve runs/mine/encoder --volume a=brain_a.zarr",
)


class Cells(NamedTuple):
    """Windowed crops around true cells of one brain, equally many of each marker."""

    crops: Float32[np.ndarray, "n z y x"]
    marker: Shaped[np.ndarray, " n"]


def cells_of(
    folders: Mapping[str, Path], encoder: Encoder, *, inside_zyx: Sequence[int] | None = None, seed: int = 0
) -> Cells:
    """Crops around random true cells at which a box `inside_zyx` (default: the crop) lies in the volume."""
    crop_zyx = encoder.config.architecture.crop_zyx
    inner = {marker: _inner_cells(folder, inside_zyx or crop_zyx) for marker, folder in folders.items()}
    count = min(CELLS, *(len(points) for points in inner.values()))
    crops, names = [], []
    for marker, points in inner.items():
        volume = Volume.open(folders[marker] / "raw.zarr")
        rows = np.random.default_rng(seed).choice(len(points), count, replace=False)
        raw = CropReader(volume, crop_zyx).read_points(points[rows])
        crops.append(volume.window_by(encoder.config.window_rule).apply(raw))
        names += [marker] * count
    return Cells(np.concatenate(crops), np.array(names))


def _inner_cells(folder: Path, crop_zyx: Sequence[int]) -> Float[np.ndarray, "n 3"]:
    zyx = Points.read(folder / "centroids.csv").zyx
    half, shape = np.asarray(crop_zyx) / 2, np.asarray(Volume.open(folder / "raw.zarr").shape_zyx)
    return zyx[np.all((zyx >= half) & (zyx <= shape - half - 1), axis=1)]


def view_of(folder: Path) -> MarkerView:
    """The z plane of a marker's volume with the most cells, grey 0 to 255 after its window."""
    volume, cells = Volume.open(folder / "raw.zarr"), Points.read(folder / "centroids.csv").zyx
    depth, height, width = volume.shape_zyx
    in_plane = np.abs(cells[:, 0][None] - np.arange(depth)[:, None]) * volume.voxel_um[0] <= 4.0
    z = int(in_plane.sum(axis=1).argmax())
    plane = volume.window.apply(volume.read((z, 0, 0), (1, height, width)))[0]
    grey = (np.clip(plane, 0, 1) * 255).astype(np.uint8)
    return MarkerView(folder.name, grey, cells[in_plane[z]][:, 1:], len(cells), volume.voxel_um[2])


def separability(
    brains: tuple[Mapping[str, Path], Mapping[str, Path]],
    encoder: Encoder,
    autoencoder: Encoder,
    *,
    seed: int,
) -> tuple[list[Interval], int, int]:
    """Accuracy of a linear classifier of the marker by features, and the numbers of cells fitted and scored.

    The same cells for all: those at which the larger crop lies inside the volume.
    """
    crops = [model.config.architecture.crop_zyx for model in (encoder, autoencoder)]
    inside = [max(axis) for axis in zip(*crops, strict=True)]
    train, test = (cells_of(brain, encoder, inside_zyx=inside, seed=seed) for brain in brains)
    wide_train, wide_test = (cells_of(brain, autoencoder, inside_zyx=inside, seed=seed) for brain in brains)

    def accuracy(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Accuracy:
        return Accuracy.of([linear_right(a, train.marker, b, test.marker) for a, b in pairs])

    untrained = []
    for seed in range(_RANDOM_ENCODERS):
        other = untrained_like(encoder, seed)
        untrained.append((embed_crops(other, train.crops), embed_crops(other, test.crops)))
    rows = {
        _LEARNED: accuracy([(embed_crops(encoder, train.crops), embed_crops(encoder, test.crops))]),
        "pretrained masked autoencoder, crops twice as wide": accuracy(
            [(embed_crops(autoencoder, wide_train.crops), embed_crops(autoencoder, wide_test.crops))]
        ),
        f"the encoder of cells, untrained (mean of {_RANDOM_ENCODERS} seeds)": accuracy(untrained),
        "64 principal components of the crop": accuracy([raw_pca(train.crops, test.crops)]),
        "brightness: mean, standard deviation, median, maximum": accuracy(
            [(brightness_features(train.crops), brightness_features(test.crops))]
        ),
    }
    intervals = [Interval(name, *row, strong=name == _LEARNED) for name, row in rows.items()]
    return intervals, len(train.crops), len(test.crops)


def untrained_like(encoder: Encoder, seed: int) -> Encoder:
    """A randomly initialised encoder of the same architecture; global random state is untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = ViTEncoder(encoder.config.architecture)
    return Encoder(encoder.config, net.eval().requires_grad_(False).to(encoder.device), None)


def embedding_map(
    vectors: Float[np.ndarray, "n d"], marker: Shaped[np.ndarray, " n"]
) -> tuple[dict[str, Float[np.ndarray, "m 2"]], tuple[float, float]]:
    """Embeddings on their first two principal components, by marker, and explained variance."""
    centred = vectors - vectors.mean(axis=0)
    scores, size, _ = np.linalg.svd(centred.astype(np.float64), full_matrices=False)
    share = size**2 / np.sum(size**2)
    places = scores[:, :2] * size[:2]
    names = list(dict.fromkeys(marker.tolist()))
    return {name: places[marker == name] for name in names}, (float(share[0]), float(share[1]))


def reconstructions(
    encoder: Encoder, folders: Mapping[str, Path], out: Path, markers: Sequence[str], *, seed: int = 0
) -> list[Reconstructed]:
    """Four-row figures of one foreground crop of some markers, with its scores."""
    figures = []
    for marker in markers:
        figure = out / f"reconstruction_{marker}.png"
        volume = Volume.open(folders[marker] / "raw.zarr")
        scores = reconstruct(encoder, volume, figure, seed=seed, device="cpu")
        names = {
            "neighbours' mean": "neighbours_mean",
            "crop mean": "crop_mean",
            "patch mean (oracle)": "patch_mean",
        }
        psnr = {"model": scores["psnr_masked"]}
        psnr |= {label: scores[name]["psnr_masked"] for label, name in names.items()}
        figures.append(Reconstructed(marker, figure, psnr))
    return figures


def loss_lines(rows: Sequence[Mapping[str, Any]]) -> dict[str, Line]:
    """Training loss, and loss on held-out volumes by kind of crop, from metrics.jsonl."""
    lines: dict[str, Line] = {"training": [(r["step"], r["loss"]) for r in rows if r["kind"] == "train"]}
    evaluated = [row for row in rows if row["kind"] == "eval"]
    for kind in dict.fromkeys(row["crops"] for row in evaluated if "loss" in row):
        steps = sorted({row["step"] for row in evaluated})
        lines[f"held-out brain, {kind} crops"] = [
            (step, fmean(r["loss"] for r in evaluated if r["step"] == step and r["crops"] == kind))
            for step in steps
        ]
    return lines


def about(encoder: Encoder) -> dict[str, str]:
    """Versions and settings of the page, to compare two of them."""
    architecture = encoder.config.architecture
    crop, patch = (" × ".join(map(str, size)) for size in (architecture.crop_zyx, architecture.patch_zyx))
    return {
        "data": "synthetic: no brain was imaged, no figure here is a result on tissue",
        "encoder": f"{architecture.depth} blocks of width {architecture.dim}; crop {crop}, patch {patch}",
        "sha256": encoder.sha256[:16] + "…",
        "software": ", ".join(
            f"{name} {version(name)}" for name in ("canvas-fm", "torch", "zarr", "bentoml")
        ),
        "machine": f"{platform.system()} {platform.machine()}, {usable_cores()} CPU cores, "
        f"Python {platform.python_version()}",
    }


def build_page(
    out: Path,
    counts: Sequence[SampleCount],
    encoder: Encoder,
    autoencoder: Encoder,
    metrics: tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]],
    brains: tuple[Mapping[str, Path], Mapping[str, Path]],
    agreement: Sequence[Agreement],
    compared: int,
    *,
    limit: float,
    seconds: Mapping[str, float],
    seed: int = 0,
) -> DemoPage:
    """Measure everything on the page; figures are left in `out`.

    `metrics` are those of the encoder of cells, which is served, and of the masked autoencoder.
    """
    of_cells, of_autoencoder = metrics
    second = brains[1]
    test = cells_of(second, encoder, seed=seed)
    rows, fitted, scored = separability(brains, encoder, autoencoder, seed=seed)
    places, share = embedding_map(embed_crops(encoder, test.crops), test.marker)
    return DemoPage(
        counts=counts,
        steps=of_cells[-1]["step"] + of_autoencoder[-1]["step"],
        parameters=sum(p.numel() for p in encoder.net.parameters()),
        views=[view_of(folder) for folder in second.values()],
        losses=loss_lines(of_autoencoder),
        cell_losses={"training": loss_lines(of_cells)["training"]},
        reconstructions=reconstructions(autoencoder, second, out, ("NeuN", "TH", "GFAP"), seed=seed),
        map=places,
        map_share=share,
        separability=rows,
        fitted_cells=fitted,
        scored_cells=scored,
        agreement=agreement,
        agreement_limit=limit,
        compared_cells=compared,
        seconds=seconds,
        about=about(encoder),
        next_steps=NEXT_STEPS,
    )
