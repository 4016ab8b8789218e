"""FindMaxima beside the direct max_pool3d of the same definition, on one thread.

A map of 128³ voxels with 0.5 % above the threshold and radius 4. The limit that was set: 40 times the direct
max_pool3d, and 80 Mvoxel/s a core.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from canvas_fm.inference.detect.maxima.local_maxima import find_maxima
from tests.benchmarks.timing import medians, show

RADIUS = 4


def heat_map(side: int = 128, foreground: float = 0.005) -> tuple[np.ndarray, float]:
    """Blobs of cells over a noisy ground, and the threshold that leaves so much foreground."""
    rng = np.random.default_rng(0)
    heat = np.zeros((side, side, side), np.float32)
    heat[tuple(rng.integers(0, side, (3, side**3 // 3000)))] = rng.uniform(0.5, 1, side**3 // 3000)
    heat = gaussian_filter(heat, 1.0)
    heat = heat / heat.max() + 0.02 * rng.random(heat.shape, dtype=np.float32)
    return heat.astype(np.float32), float(np.quantile(heat, 1 - foreground))


def by_max_pool(heat: torch.Tensor, threshold: float) -> np.ndarray:
    """The paper's definition as it is written; a plateau would give several points."""
    pooled = torch.nn.functional.max_pool3d(heat, 2 * RADIUS + 1, stride=1, padding=RADIUS)
    return torch.nonzero((pooled == heat)[0, 0] & (heat[0, 0] > threshold)).numpy()


def main() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        heat, threshold = heat_map()
        tensor = torch.from_numpy(heat)[None, None]
        radius = (RADIUS,) * 3
        same = np.array_equal(
            find_maxima(heat, radius, threshold, shape="box")[0], by_max_pool(tensor, threshold)
        )
        assert same, "the box neighbourhood has to give what max_pool3d gives"
        taken = medians(
            {
                "ball": lambda: find_maxima(heat, radius, threshold),
                "box": lambda: find_maxima(heat, radius, threshold, shape="box"),
                "max_pool3d": lambda: by_max_pool(tensor, threshold),
            },
            rounds=5,
            warm_up=1,
            clock=time.process_time,
        )
    finally:
        torch.set_num_threads(threads)
    rows = [("FindMaxima, 128³, radius 4, 0.5 % foreground", "Mvoxel/s a core", "times max_pool3d")]
    rows += [
        (name, f"{heat.size / seconds / 1e6:.1f}", f"{taken['max_pool3d'] / seconds:.0f}")
        for name, seconds in taken.items()
    ]
    show("FindMaxima (limits: 80 Mvoxel/s, 40 times)", rows)


if __name__ == "__main__":
    main()
