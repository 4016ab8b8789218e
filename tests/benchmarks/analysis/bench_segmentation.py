"""Panoptic quality of segmenters on masks of real volumes.

    python -m tests.benchmarks segmentation

The watershed is seeded by detections of the Laplacian of a Gaussian, and by the true centres. Beside it
stands Voronoi-Otsu labelling where napari-segment-blobs-and-things-with-membranes is installed, with the same
two widths. A pretrained segmenter joins with `--model cellpose-sam --weights FILE`. Masks without instances
are split into connected components, as the centroids of these volumes were.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy.ndimage import center_of_mass, label

from canvas_fm.analysis.segment.pretrained import MODELS, segment_pretrained
from canvas_fm.analysis.segment.watershed import segment
from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.data.zyx import ZyxUm
from canvas_fm.errors import CanvasError
from canvas_fm.evaluation.metrics.segmentation import panoptic_quality
from canvas_fm.inference.detect.detect import detect_log
from tests.support.real_data import REAL_DATA

SETS = ("labelled_nuclei", "delivr_microglia", "delivr_cFos")
LABELLED_PLANES = {"delivr_cFos/695": 100, "delivr_cFos/1008": 100}  # of the others all


def volumes() -> list[str]:
    """All volumes with a mask."""
    masks = [path for name in SETS for path in sorted((REAL_DATA / name).glob("*/mask.zarr"))]
    return [f"{path.parent.parent.name}/{path.parent.name}" for path in masks]


def voronoi_otsu(image: np.ndarray, voxel_um: ZyxUm, radius_um: float) -> np.ndarray | None:
    """Labels of the peer, None where it is not installed."""
    try:
        from napari_segment_blobs_and_things_with_membranes import voronoi_otsu_labeling
    except ImportError:
        return None
    spot, outline = (tuple(radius_um * share / np.asarray(voxel_um)) for share in (1 / np.sqrt(3), 1 / 5))
    return np.asarray(voronoi_otsu_labeling(image.astype(np.float32), spot, outline)).astype(np.int64)


def open_volume(folder: Path) -> Volume:
    """The image; voxels of 1 µm where nobody states their size."""
    try:
        return Volume.open(folder / "raw.zarr")
    except CanvasError:
        return Volume.open(folder / "raw.zarr", voxel_um=(1.0, 1.0, 1.0))


def truth_of(folder: Path, planes: int) -> np.ndarray:
    mask = Volume.open(folder / "mask.zarr", voxel_um=(1.0, 1.0, 1.0), missing_chunks="empty")
    labels = mask.read((0, 0, 0), (planes, *mask.shape_zyx[1:]))
    if len(np.unique(labels)) > 2:
        return labels.astype(np.int64)
    return label(labels > 0, np.ones((3, 3, 3)))[0].astype(np.int64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--volumes", nargs="+", help="default: all that have a mask")
    parser.add_argument("--clip-percentile", type=float, default=99.5, help="of the watershed")
    parser.add_argument("--model", choices=MODELS)
    parser.add_argument("--weights")
    args = parser.parse_args()
    for name in args.volumes or volumes():
        folder = REAL_DATA / name
        volume = open_volume(folder)
        planes = LABELLED_PLANES.get(name, volume.shape_zyx[0])
        image = volume.read((0, 0, 0), (planes, *volume.shape_zyx[1:]))
        volume = Volume.from_array(image, voxel_um=volume.voxel_um)
        truth = truth_of(folder, planes)
        ids = np.unique(truth[truth > 0])
        true_centres = Points(np.array(center_of_mass(truth > 0, truth, ids)))
        # What a user would give: a radius of about the cells' own, from the median volume of the masks.
        voxels = float(np.median(np.unique(truth[truth > 0], return_counts=True)[1]))
        radius = (3 * voxels * float(np.prod(volume.voxel_um)) / (4 * np.pi)) ** (1 / 3)
        found = detect_log(volume, sigma_um=radius / np.sqrt(3), min_distance_um=1.2 * radius, show=False)
        print(f"{name}: {len(ids)} objects, median radius {radius:.1f} µm, {len(found)} detections")
        seeds = {"watershed, detections": found, "watershed, true centres": true_centres}
        with tempfile.TemporaryDirectory() as scratch:
            for how, points in seeds.items():
                began = time.process_time()
                out = Path(scratch) / f"{len(how)}.zarr"
                segment(
                    volume,
                    Points(points.zyx),
                    out,
                    max_radius_um=2 * radius,
                    smooth_um=radius / 5,
                    clip_percentile=args.clip_percentile,
                    show=False,
                )
                show(how, out, truth, began)
            began = time.process_time()
            if (labels := voronoi_otsu(image, volume.voxel_um, radius)) is not None:
                show("Voronoi-Otsu labelling", labels, truth, began)
            if args.model:
                began, out = time.process_time(), Path(scratch) / "model.zarr"
                segment_pretrained(args.model, volume, out, args.weights, max_radius_um=2 * radius)
                show(args.model, out, truth, began)


def show(how: str, out: Path | np.ndarray, truth: np.ndarray, began: float) -> None:
    seconds = time.process_time() - began
    labels = out if isinstance(out, np.ndarray) else Volume.open(out)
    quality = panoptic_quality(labels, truth, show=False).as_dict()
    shown = {key: round(value, 3) for key, value in quality.items()}
    print(f"  {how}: {json.dumps(shown)}, {seconds:.1f} CPU s", flush=True)


if __name__ == "__main__":
    main()
