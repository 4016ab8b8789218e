"""What a background channel is worth: models of one and of two channels on phantoms with autofluorescence.

`python -m tests.benchmarks channels --out DIR [--seeds 0 1] [--phantoms 24]`: the recipe
`detector_two_channels` as it is and with model.channels=1, the same phantoms, seeds and steps; F1 at the
threshold that each chose on its calibration phantoms, on phantoms that neither saw. With `--refiner` encoders
are compared: the recipe `phantom_two_channels` as it is and with one channel, `--steps 0` for untrained ones.
On their embeddings a refiner of half the phantoms sorts the spots of the others; the figure is average
precision. The interval is of the paired difference, over phantoms. `--picture FILE` instead draws what the
two-channel detectors find in a real brain: the signal with the first seed's detections, and the background.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import uniform_filter
from sklearn.metrics import average_precision_score

from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.data.volume.window import WindowRule
from canvas_fm.evaluation.detection.score import evaluate
from canvas_fm.heads.labels.candidates import Candidates
from canvas_fm.heads.refine.refiner import Refiner
from canvas_fm.inference.detect.detect import detect, log_job
from canvas_fm.inference.detect.tiles.tiled_detection import run
from canvas_fm.inference.embed.embed import embed
from canvas_fm.models.load_model import Encoder, load, save_encoder
from canvas_fm.training.detector.phantoms import TRAINING, labelled_phantom
from canvas_fm.training.detector.targets import Labelled
from canvas_fm.training.detector.train import train_detector
from canvas_fm.training.mae.optimizer_step import new_model
from canvas_fm.training.mae.pretrain import pretrain
from canvas_fm.training.recipe.detector_recipe import DetectorRecipe
from canvas_fm.training.recipe.read_recipe import read_recipe, read_recipe_of
from tests.support.real_data import REAL_DATA

RECIPE, ENCODER_RECIPE = "detector_two_channels", "phantom_two_channels"
MOST_SPOTS = 100  # of a phantom
FEWEST = 10  # cells of a phantom that is scored
TISSUE_COUNTS = 60  # of the real brain's signal, whose tissue has some 300 and whose outside some 5


def trained(out: Path, channels: int, seed: int, overrides: Sequence[str]) -> Any:
    """The detector of one arm and seed; trained before, it is opened, and one that was killed goes on."""
    folder = out / f"{channels}-channels-seed{seed}"
    if not (folder / "detector").is_dir():
        changes = [f"model.channels={channels}", *overrides]
        train_detector(
            RECIPE, [], [], out=folder, seed=seed, overrides=changes, device="cpu", show=False,
            resume=folder.exists(),
        )  # fmt: skip
    return load(folder / "detector", kind="detector")


def held_out(n: int, first: int = 0) -> list[Labelled]:
    """Phantoms of the recipe from a seed on, each with its background; below 1,000 no training draws them."""
    recipe = read_recipe_of(DetectorRecipe, RECIPE)
    assert recipe.phantoms is not None
    found: list[Labelled] = []
    for seed in range(first, first + 1000):
        one = labelled_phantom(recipe.phantoms, seed, recipe.phantoms.voxel_um, recipe.data.crop_zyx, 2)
        if len(one.points_zyx) >= FEWEST:
            found.append(one)
        if len(found) == n:
            break
    return found


def f1(detector: Any, one: Labelled) -> float:
    """F1 at the detector's own threshold."""
    background = one.background if detector.config.architecture.channels == 2 else None
    volume = one.source.volume
    cells = detect(detector, volume, background=background, device="cpu", show=False)
    tolerance = read_recipe_of(DetectorRecipe, RECIPE).tolerance_um(volume.marker)
    score = evaluate(
        cells, one.points_zyx, voxel_um=volume.voxel_um, tolerance_um=tolerance, threshold=None, chance=False
    )
    return score.counts.f1 or 0.0


def encoder(out: Path, channels: int, seed: int, steps: int) -> Encoder:
    """The encoder of one arm and seed, trained on phantoms that are not scored."""
    recipe = read_recipe(ENCODER_RECIPE, [f"model.encoder.channels={channels}", f"seed={seed}"])
    folder = out / f"encoder-{channels}-channels-seed{seed}-{steps}-steps"
    if steps == 0:
        voxel_um = held_out(1)[0].source.volume.voxel_um
        return save_encoder(folder, new_model(recipe), voxel_um=voxel_um, pool=recipe.model.pool)
    if not (folder / "encoder").is_dir():
        drawn = held_out(12, first=TRAINING)
        pretrain(
            recipe, [one.source.volume for one in drawn],
            background=[one.background for one in drawn if one.background] if channels == 2 else None,
            out=folder, overrides=[f"training.steps={steps}", "training.checkpoint_every=50"],
            resume=folder.exists(), device="cpu", show=False,
        )  # fmt: skip
    return load(folder / "encoder", kind="encoder")


def spots(one: Labelled) -> tuple[np.ndarray, np.ndarray]:
    """Maxima of a Laplacian of a Gaussian, the strongest ones, and whether each is a cell."""
    volume = one.source.volume
    tolerance = read_recipe_of(DetectorRecipe, RECIPE).tolerance_um(volume.marker)
    job = log_job(
        volume, sigma_um=0.6 * tolerance, threshold=0.0025, min_distance_um=tolerance,
        window_rule=WindowRule("median", 0.0, 64.0),
    )  # fmt: skip
    found = run(job, show=False)
    strongest = np.sort(np.argsort(-found.columns["score"], kind="stable")[:MOST_SPOTS])
    points = Points(found.zyx[strongest])
    brain = Candidates.of(
        volume, points, Points(one.points_zyx), labels=None, tolerance_um=tolerance, name=volume.name
    )
    return points.zyx, brain.label


def precision_of_refiner(model: Encoder, phantoms: Sequence[Labelled]) -> list[float]:
    """Average precision on each of the second half of the phantoms, of a refiner of the first half."""
    x, y, groups = [], [], []
    for one in phantoms:
        zyx, label = spots(one)
        if not len(zyx):
            continue
        behind = one.background if model.config.architecture.channels == 2 else None
        x.append(embed(model, one.source.volume, zyx, background=behind, device="cpu", show=False))
        y.append(label)
        groups.append(np.full(len(label), one.source.name))
    half = len(x) // 2
    refiner = Refiner().fit(*map(np.concatenate, (x[:half], y[:half])), groups=np.concatenate(groups[:half]))
    return [
        float(average_precision_score(label, refiner.predict_proba(features)[:, 1]))
        for features, label in zip(x[half:], y[half:], strict=True)
        if label.any()
    ]


def on_real_brain(detectors: Sequence[Any], picture: Path) -> None:
    """Count the detections of each detector, in the tissue and outside, and draw those of the first."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    store = REAL_DATA / "unlabelled" / "cellfinder_signal_background" / "raw.zarr"
    channels = [Volume.open(store, c=c) for c in (0, 1)]
    signal, background = (np.asarray(volume) for volume in channels)
    tissue = uniform_filter(signal.astype(np.float32), (3, 25, 25)) >= TISSUE_COUNTS
    figure, axes = plt.subplots(2, 1, figsize=(8, 7.8), layout="constrained")
    for at, detector in enumerate(detectors):
        cells = detect(detector, channels[0], background=channels[1], resample=True, device="cpu", show=False)
        z, y, x = np.clip(np.rint(cells.zyx).astype(int), 0, np.array(signal.shape) - 1).T
        outside = int((~tissue[z, y, x]).sum())
        print(f"{len(cells)} detections at {detector.config.threshold}, {outside} outside the tissue")
        if at == 0:
            axes[0].scatter(x, y, s=40, facecolors="none", edgecolors="orange", linewidths=0.8)
    for axis, voxels, name in zip(axes, (signal, background), ("signal", "background"), strict=True):
        axis.imshow(voxels.max(axis=0), cmap="gray", vmin=0, vmax=1300)
        axis.set(title=f"{name}, brightest of all planes", xticks=[], yticks=[])
    figure.savefig(picture, dpi=70)


def summary(scores: dict[int, np.ndarray]) -> dict[str, Any]:
    """Means of both arms over seeds and phantoms; their paired difference with its interval over phantoms."""
    one, two = (scores[channels].mean(axis=0) for channels in (1, 2))
    rng = np.random.default_rng(0)
    drawn = (two - one)[rng.integers(len(one), size=(10_000, len(one)))].mean(axis=1)
    return {
        "phantoms": len(one),
        "one_channel": float(one.mean()),
        "two_channels": float(two.mean()),
        "of_seeds": {c: [float(each) for each in scores[c].mean(axis=1)] for c in scores},
        "difference": float((two - one).mean()),
        "interval": [float(end) for end in np.quantile(drawn, [0.025, 0.975])],
        "two_ahead_on": int((two > one).sum()),
    }


def main(options: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--phantoms", type=int, default=24)
    parser.add_argument("--refiner", action="store_true")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--set", dest="overrides", nargs="+", default=[])
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args(options)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.picture is not None:
        on_real_brain([trained(args.out, 2, seed, args.overrides) for seed in args.seeds], args.picture)
        return
    phantoms = held_out(args.phantoms)
    scores: dict[int, list[list[float]]] = {1: [], 2: []}
    for seed in args.seeds:
        for channels in (2, 1):
            if args.refiner:
                model = encoder(args.out, channels, seed, args.steps)
                scores[channels].append(precision_of_refiner(model, phantoms))
            else:
                detector = trained(args.out, channels, seed, args.overrides)
                scores[channels].append([f1(detector, one) for one in phantoms])
            print(channels, "channels, seed", seed, f"{np.mean(scores[channels][-1]):.3f}", flush=True)
        done = {channels: np.array(each) for channels, each in scores.items()}
        report = summary(done) | {"scores": {c: each.tolist() for c, each in done.items()}}
        name = f"refiner-{args.steps}-steps.json" if args.refiner else "report.json"
        (args.out / name).write_text(json.dumps(report, indent=1) + "\n")
    print({key: value for key, value in report.items() if key != "scores"})
