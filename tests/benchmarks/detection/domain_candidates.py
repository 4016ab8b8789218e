"""The benchmarks' domains, labelled cubes and randomised phantoms, and a detector's candidates in each."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from canvas_fm.data.points.points import Points
from canvas_fm.inference.detect.detect import detect
from canvas_fm.models.load_model import Detector
from canvas_fm.pipeline.domain_volumes import Domain, labelled_domains, phantom_domains
from canvas_fm.training.detector.threshold import LOWEST_THRESHOLD
from tests.support.real_data import REAL_DATA

MICROGLIA = ("1874", "2433", "3941", "4923", "6506", "6742", "6871", "7095")


def domains(phantoms: int) -> list[Domain]:
    """The labelled cubes outside the test set, and randomised phantoms of seeds below 1000."""
    paths = [REAL_DATA / "delivr_microglia" / name for name in MICROGLIA]
    paths += [REAL_DATA / "delivr_cFos" / name for name in ("695", "1008")]
    paths = [path for path in paths if path.is_dir()]
    real = labelled_domains(
        [path / "raw.zarr" for path in paths], [path / "centroids.csv" for path in paths],
        [path / "meta.json" for path in paths], {"cFos": 8.0, "microglia": 12.0},
    )  # fmt: skip
    return [*real, *phantom_domains(phantoms)]


def candidates_of(
    domain: Domain, detector: Detector, folder: Path | None, *, threshold: float = LOWEST_THRESHOLD
) -> Points:
    """What a detector finds in a domain at a low threshold; with a `folder` read from there the next time."""
    path = None if folder is None else folder / f"{domain.name.replace(' ', '_')}.npz"
    if path is not None and path.is_file():
        with np.load(path) as arrays:
            return Points(arrays["zyx"], {"score": arrays["score"]})
    volume, um = domain.open()[0], detector.config.voxel_um
    other = any(abs(a - b) > 0.05 * b for a, b in zip(volume.voxel_um, um, strict=True))
    found = detect(detector, volume, threshold=threshold, resample=other, device="cpu", show=False)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, zyx=found.zyx, score=found.columns["score"])
    return Points(found.zyx, {"score": found.columns["score"]})
