"""Scores of detectors on many held-out domains: labelled brains, and randomised phantoms."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.data.volume.window import WindowRule
from canvas_fm.errors import CanvasError
from canvas_fm.evaluation.detection.curve import Curve
from canvas_fm.evaluation.detection.score import evaluate
from canvas_fm.evaluation.domains.figure import domains_figure
from canvas_fm.evaluation.domains.scores import (
    DomainScore,
    cross_fitted_threshold,
    domains_report,
    domains_table,
    leave_one_out_thresholds,
)
from canvas_fm.files.atomic import write_text_atomic
from canvas_fm.files.resumable import check_own_folder, read_part, write_part
from canvas_fm.inference.detect.detect import detector_job, log_job
from canvas_fm.inference.detect.tiles.tiled_detection import TiledDetection, run
from canvas_fm.inference.embed.point_crops import volume_identity
from canvas_fm.models.folder.training_volumes import training_volumes, volume_in_training
from canvas_fm.models.load_model import Detector, load
from canvas_fm.pipeline.domain_volumes import PHANTOM_SHAPE, Domain, LabelledVolume
from canvas_fm.progress import bar
from canvas_fm.training.detector.threshold import LOWEST_THRESHOLD
from canvas_fm.training.detector.train import train_detector

LOG = "LoG over the median"
_LOG_RULE = WindowRule("median", 0.0, 64.0)
_LOG_LOWEST = 0.15  # of the median
_LOG_SIGMA_UM = {8.0: 5.0, 12.0: 7.0}  # by the tolerance: half of it and more is a cell's radius


def score_domains(
    out: str | Path,
    domains: Sequence[Domain],
    methods: Mapping[str, Sequence[str | Path]],
    *,
    laplacian: bool = True,
    cross_fit: bool = False,
    never: Sequence[str] = (),
    show: bool | None = None,
) -> dict[str, Any]:
    """Score each detector on the domains that it was not trained on; returns the report.

    A method is one detector or several of one recipe (folds, seeds): on each domain those of them count that
    did not see it. `laplacian` adds the Laplacian of a Gaussian over the volume's median, on each domain at
    the threshold that is best on the others of its group. With `cross_fit` thresholds are not those of the
    detectors but chosen on the held-out labelled volumes, for each of these without itself; volumes named in
    `never` do not take part. OUT holds domains.json, domains.md, domains.png and
    `curves/`, from which the same command goes on after a kill.
    """
    out = Path(out)
    check_own_folder(out, "curves", "runs")
    (out / "curves").mkdir(parents=True, exist_ok=True)
    opened = {name: [load(path, kind="detector") for path in paths] for name, paths in methods.items()}
    held_out: dict[str, dict[str, list[Curve]]] = {name: {} for name in opened}
    logs: dict[str, dict[str, Curve]] = {}
    with bar("scoring", len(domains), unit="domains", show=show) as advance:
        for domain in domains:
            curves_of = _Held(domain, out / "curves")
            for name, detectors in opened.items():
                unseen = _unseen(domain, detectors)
                if unseen:
                    held_out[name][domain.name] = [curves_of.of_detector(detector) for detector in unseen]
            if laplacian:
                logs.setdefault(domain.group, {})[domain.name] = curves_of.of_laplacian()
            advance(1, domain.name)
    scores: dict[str, list[DomainScore]] = {}
    for name, curves in held_out.items():
        choose = _cross_fitted(domains, curves, never, _spread(opened[name])) if cross_fit else None
        scores[name] = [
            DomainScore.of(
                domain.name, domain.group, curves[domain.name],
                [choose(domain.name) if choose else detector.config.threshold
                 for detector in _unseen(domain, opened[name])],
                pooled_only=domain.pooled_only,
            )
            for domain in domains
            if domain.name in curves
        ]  # fmt: skip
    # A group of one domain has no other to choose a threshold on.
    if rows := list(_laplacian_scores(domains, logs)):
        scores[LOG] = rows
    missing = [name for name, rows in scores.items() if not rows]
    if missing:
        raise CanvasError(f"{', '.join(missing)}: trained on every domain given; nothing is held out")
    protocol = _protocol(domains, opened) | {"cross_fitted": cross_fit, "never_chosen_on": list(never)}
    report = domains_report(scores, protocol)
    write_text_atomic(out / "domains.json", json.dumps(report, indent=1) + "\n")
    write_text_atomic(out / "domains.md", domains_table(report))
    domains_figure(report, out / "domains.png")
    return report


def train_in_folds(
    recipe: str | Path,
    domains: Sequence[Domain],
    folds: Sequence[Sequence[str]],
    seeds: Sequence[int],
    out: str | Path,
    overrides: Sequence[str] = (),
    *,
    never: Sequence[str] = (),
) -> list[Path]:
    """Cross-validation: train a recipe for each fold and seed without the fold's volumes.

    A volume named in `never` is trained on by none. Runs lie in OUT/runs, and one that was interrupted goes
    on. Without folds all volumes are left out: for a recipe of phantoms alone.
    """
    real = [domain for domain in domains if domain.path is not None]
    for name in (name for fold in [*folds, never] for name in fold):
        if name not in [domain.name for domain in real]:
            raise CanvasError(
                f"{name!r} is in a fold and not among the volumes: {', '.join(d.name for d in real)}"
            )
    detectors = []
    check_own_folder(Path(out), "curves", "runs")
    for left_out in [*folds, never]:
        _refuse_overlap(real, [*left_out, *never])
    for number, fold in enumerate(folds or [[domain.name for domain in real]]):
        training = [domain for domain in real if domain.name not in (*fold, *never)]
        for seed in seeds:
            run_folder = Path(out) / "runs" / f"{Path(recipe).stem}-fold{number}-seed{seed}"
            finished = train_detector(
                recipe,
                [domain.open_volume() for domain in training],
                [domain.points for domain in training if domain.points],
                within=[domain.within for domain in training] if training and training[0].within else None,
                out=run_folder,
                resume=run_folder.exists(),
                seed=seed,
                overrides=overrides,
            )
            detectors.append(finished.detector)
    return detectors


def _refuse_overlap(real: Sequence[Domain], left_out: Sequence[str]) -> None:
    cubes = {domain.name: domain.crop_of or domain.name for domain in real}
    for name in left_out:
        for other, cube in cubes.items():
            if other not in left_out and cube == cubes[name]:
                raise CanvasError(
                    f"{name!r} is left out and {other!r}, which holds voxels of the same volume {cube!r}, "
                    "would be trained on; put both in one fold, or leave one of them away"
                )


def laplacian_job(volume: Volume, tolerance_um: float) -> TiledDetection:
    """Candidates of the Laplacian of a Gaussian in medians of the volume, above its lowest threshold."""
    return log_job(
        volume, sigma_um=_LOG_SIGMA_UM[tolerance_um], threshold=_LOG_LOWEST / _LOG_RULE.high,
        min_distance_um=tolerance_um, window_rule=_LOG_RULE,
    )  # fmt: skip


def trained_on(detector: Detector) -> set[str]:
    """Names of the volumes in a detector's training data, by its config."""
    return training_volumes(detector.config.provenance)


def _unseen(domain: Domain, detectors: Sequence[Detector]) -> list[Detector]:
    return [
        detector
        for detector in detectors
        if volume_in_training(detector.config.provenance, domain.name, domain.crop_of) is None
    ]


def _spread(detectors: Sequence[Detector]) -> float:
    """The `detection.spread` of the recipe that trained the detectors, which are of one recipe."""
    recipe = detectors[0].config.provenance.get("recipe") or {}
    return float((recipe.get("detection") or {}).get("spread", 0.0))


def _cross_fitted(
    domains: Sequence[Domain],
    curves: Mapping[str, Sequence[Curve]],
    never: Sequence[str],
    spread: float,
) -> Callable[[str], float]:
    """By a domain's name the threshold chosen on the other labelled volumes, by each one's first detector."""
    labelled: dict[str, dict[str, Curve]] = {}
    for domain in domains:
        if domain.path is not None and domain.name in curves and domain.name not in never:
            labelled.setdefault(domain.group, {})[domain.name] = curves[domain.name][0]
    return lambda name: cross_fitted_threshold(labelled, without=name, spread=spread)


def _laplacian_scores(
    domains: Sequence[Domain], logs: Mapping[str, Mapping[str, Curve]]
) -> Iterator[DomainScore]:
    chosen = {
        name: at
        for curves in logs.values()
        if len(curves) > 1
        for name, at in leave_one_out_thresholds(curves).items()
    }
    for domain in domains:
        if domain.name in chosen:
            yield DomainScore.of(
                domain.name, domain.group, [logs[domain.group][domain.name]], [chosen[domain.name]],
                pooled_only=domain.pooled_only,
            )  # fmt: skip


def _protocol(domains: Sequence[Domain], opened: Mapping[str, Sequence[Detector]]) -> dict[str, Any]:
    return {
        "domains": len(domains),
        "phantom_seeds": [domain.seed for domain in domains if domain.seed is not None],
        "phantom_shape_zyx": list(PHANTOM_SHAPE),
        **({"autofluorescence": True} if any(domain.autofluorescence for domain in domains) else {}),
        "detectors": {
            name: [
                {"sha256": detector.sha256, "threshold": detector.config.threshold} for detector in detectors
            ]
            for name, detectors in opened.items()
        },
        "laplacian": {
            "window": str(_LOG_RULE),
            "sigma_um_by_tolerance_um": {str(k): v for k, v in _LOG_SIGMA_UM.items()},
            "threshold": "the best of the other domains of the same group",
        },
    }


class _Held:
    """A domain, opened lazily, with cached curves."""

    def __init__(self, domain: Domain, folder: Path) -> None:
        self.domain, self.folder = domain, folder
        self._opened: LabelledVolume | None = None
        self._identity: str | None = None

    def of_detector(self, detector: Detector) -> Curve:
        """Curve of a detector; volumes of another voxel size are resampled."""

        def find() -> Points:
            opened = self._open()
            um, volume_um = detector.config.voxel_um, opened.volume.voxel_um
            other = any(abs(a - b) > 0.05 * b for a, b in zip(volume_um, um, strict=True))
            background = opened.background if detector.config.architecture.channels == 2 else None
            job = detector_job(
                detector, opened.volume, background=background, threshold=LOWEST_THRESHOLD, resample=other
            )
            return run(job, show=False)

        return self._curve(detector.sha256, find)

    def of_laplacian(self) -> Curve:
        """Curve of the Laplacian of a Gaussian, in medians of the volume."""

        def find() -> Points:
            return run(laplacian_job(self._open().volume, self.domain.tolerance_um), show=False)

        return self._curve(f"log {_LOG_RULE} {_LOG_SIGMA_UM} {_LOG_LOWEST}", find)

    def _open(self) -> LabelledVolume:
        if self._opened is None:
            self._opened = self.domain.open()
        return self._opened

    def _curve(self, method: str, find: Any) -> Curve:
        key = hashlib.sha256(json.dumps([method, self._of_domain()]).encode()).hexdigest()[:32]
        path = self.folder / f"{key}.part"
        if (part := read_part(path)) is not None:
            return Curve(**part.arrays, truths=part.about["truths"])
        volume, cells, boxes, _ = self._open()
        score = evaluate(
            find(), cells, voxel_um=volume.voxel_um, tolerance_um=self.domain.tolerance_um, within=boxes,
            threshold=None, chance=False,
        )  # fmt: skip
        empty = np.empty(0, np.int64)
        curve = score.curve or Curve(np.empty(0), empty, empty, len(score.truth))

        arrays = curve._asdict()
        write_part(path, arrays, {"truths": arrays.pop("truths")})
        return curve

    def _of_domain(self) -> list[Any]:
        """Identity of the domain: its voxels and its true cells."""
        if self._identity is None:
            volume, cells, boxes, background = self._open()
            digest = hashlib.sha256(np.ascontiguousarray(cells).tobytes() + boxes.tobytes())
            volumes = " ".join(volume_identity(each) for each in (volume, background) if each is not None)
            self._identity = f"{volumes} {digest.hexdigest()}"
        return [self._identity, self.domain.tolerance_um]
