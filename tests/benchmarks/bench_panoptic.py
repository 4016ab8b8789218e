"""Panoptic quality beside panoptica's, on the real masks of nuclei: `python -m tests.benchmarks panoptic`.

The prediction is each mask moved by one voxel along z and x and two along y, a sixth of its objects left out.
Needs `pip install panoptica`, which is no dependency of the project.
"""

from __future__ import annotations

import numpy as np

from canvas_fm.data.volume.volume import Volume
from canvas_fm.evaluation.metrics.segmentation import panoptic_quality
from tests.benchmarks.timing import show
from tests.where import ABSENT, REAL_DATA

VOLUMES = ("qcanet_8_cell", "qcanet_16_cell", "napari_bio_nuclei", "stardist_3d")


def predicted(truth: np.ndarray) -> np.ndarray:
    """The mask moved by (1, 2, 1), without every sixth object."""
    ids = np.unique(truth[truth > 0])
    moved = np.zeros_like(truth)
    moved[1:, 2:, 1:] = truth[:-1, :-2, :-1]
    moved[np.isin(moved, ids[::6])] = 0
    return moved


def theirs(prediction: np.ndarray, truth: np.ndarray) -> tuple[float, float, float]:
    """PQ, RQ and SQ of panoptica, objects matched at an IoU above a half."""
    from panoptica import InputType, NaiveThresholdMatching, Panoptica_Evaluator

    evaluator = Panoptica_Evaluator(
        expected_input=InputType.UNMATCHED_INSTANCE,
        instance_matcher=NaiveThresholdMatching(matching_threshold=np.nextafter(0.5, 1)),
    )
    result = evaluator.evaluate(prediction.astype(np.uint16), truth.astype(np.uint16), verbose=False)
    held = result["ungrouped"]
    return float(held.pq), float(held.rq), float(held.sq)


def main() -> None:
    try:
        import panoptica  # noqa: F401
    except ImportError:
        raise SystemExit("panoptica is not installed: pip install panoptica") from None
    folder = REAL_DATA / "labelled_nuclei"
    if not folder.is_dir():
        raise SystemExit(ABSENT)
    rows = []
    for name in VOLUMES:
        store = Volume.open(folder / name / "mask.zarr", voxel_um=(1.0, 1.0, 1.0))
        truth = store.read((0, 0, 0), store.shape_zyx).astype(np.int64)
        prediction = predicted(truth)
        ours = panoptic_quality(prediction, truth, block=64, show=False)
        others = theirs(prediction, truth)
        apart = max(abs(a - b) for a, b in zip((ours.pq, ours.rq, ours.sq), others, strict=True))
        rows.append((name, f"PQ {ours.pq:.4f}, panoptica {others[0]:.4f}", f"largest difference {apart:.1e}"))
    show("panoptic, recognition and segmentation quality", rows)


if __name__ == "__main__":
    main()
