"""A study of six phantom brains in two groups with a planted effect, from planes to the printed page.

`python -m tests.benchmarks study --out DIR` writes the brains' planes, an atlas of synthetic regions and a
study.yaml, runs `canvas-fm study` on it, and shows what `groups` found beside what was planted. Of a brain's
cells a random share is kept: a share of its own of 80 to 100 %, of which in the region of the effect 35 % in
the controls (`--kept`; 1 is no effect) and all in the treated. So the effect is known. `--seed` draws other
brains.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tifffile

from canvas_fm.data.phantom import phantom
from canvas_fm.data.phantom.cells import Cells
from canvas_fm.data.phantom.regions import REGIONS, write_phantom_regions
from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from tests.benchmarks.timing import show

SHAPE, UM = (64, 224, 224), (4.0, 1.8, 1.8)
REGION = 4  # the inner layer
KEPT = 0.35  # of the controls' cells in the region; of the treated all
POWER_FOLD = 1 / KEPT  # of which `groups` states the power
STUDY = """\
title: Six phantom brains in two groups
brains:
{brains}
models: {{resample: true, device: cpu}}
convert: {{voxel_um: [4, 1.8, 1.8]}}
detect: {{detector: detector-phantoms}}
regions: {{atlas: regions.zarr, table: regions.csv}}
groups: {{reference: control, min_count: 5, power_fold_change: {fold:.3f}}}
brain_report: {{}}
"""


class _Thinned(phantom._Brain):
    """A phantom brain of which a random part of the cells is kept, by the region."""

    labels: np.ndarray
    kept_in_region: float

    def place(self, advance):
        cells = super().place(advance)
        random = np.random.default_rng((self.seed, 7))
        at = np.clip(np.rint(cells.centre_um / self.voxel_um), 0, np.array(self.shape) - 1).astype(int)
        share = np.where(self.labels[tuple(at.T)] == REGION, self.kept_in_region, 1.0)
        kept = random.random(len(at)) < share * random.uniform(0.8, 1.0)
        return Cells(cells.centre_um[kept], cells.stream[kept])


def write_brains(folder: Path, kept: float = KEPT, seed: int = 0) -> dict[str, np.ndarray]:
    """Planes, atlas and study.yaml in FOLDER; returns the true centres of each brain.

    Of the controls' cells in the region the share `kept` is kept.
    """
    atlas, _ = write_phantom_regions(folder, SHAPE, voxel_um=UM)
    _Thinned.labels = Volume.open(atlas).read((0, 0, 0), SHAPE)
    truth, lines = {}, []
    held, phantom._Brain = phantom._Brain, _Thinned  # type: ignore[misc]
    try:
        for at in range(6):
            group = "control" if at < 3 else "treated"
            name = f"{group[0]}{at % 3 + 1}"
            _Thinned.kept_in_region = kept if group == "control" else 1.0
            where = phantom.write_phantom(
                folder / "phantoms" / name, shape_zyx=SHAPE, markers=("cFos",), seed=100 * seed + at,
                voxel_um=UM,
                stripes=False, progress=False,
            )["cFos"]  # fmt: skip
            planes = folder / "raw" / name
            planes.mkdir(parents=True)
            for z, plane in enumerate(Volume.open(where / "raw.zarr").read((0, 0, 0), SHAPE)):
                tifffile.imwrite(planes / f"z{z:04d}.tif", plane)
            truth[name] = Points.read(where / "centroids.csv").zyx
            lines.append(f"  {name}: {{source: raw/{name}, group: {group}}}")
    finally:
        phantom._Brain = held  # type: ignore[misc]
    text = STUDY.format(brains="\n".join(lines), fold=POWER_FOLD)
    (folder / "study.yaml").write_text(text, encoding="utf-8")
    return truth


def run_study(folder: Path) -> tuple[float, float]:
    """CPU seconds and peak memory in GB of the one command."""
    words = ["study", str(folder / "study.yaml"), "--out", str(folder / "study"), "--data", str(folder)]
    child = subprocess.Popen(
        [sys.executable, "-m", "canvas_fm.cli", *words], stdout=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"canvas-fm {' '.join(words)} ended with {child.returncode}")
    return used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e9


def compare(folder: Path, truth: dict[str, np.ndarray]) -> list[tuple[str, str, str]]:
    """Rows of what was found beside what was planted."""
    labels = _Thinned.labels
    named = {region.id: region for region in REGIONS}
    with open(folder / "study/groups/groups.csv", encoding="utf-8") as file:
        groups = {int(row["id"]): row for row in csv.DictReader(file)}
    counted = {}
    for name in truth:
        with open(folder / f"study/regions/{name}/regions.csv", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["hemisphere"] == "both"]
        counted[name] = {int(row["id"]): float(row["count"]) for row in rows}
    rows = []
    for region, row in groups.items():
        below = {region}
        while more := {r.id for r in REGIONS if r.parent_structure_id in below} - below:
            below |= more
        true = {
            name: int(np.isin(labels[tuple(np.rint(zyx).astype(int).T)], list(below)).sum())
            for name, zyx in truth.items()
        }
        means = [np.mean([n for name, n in true.items() if name[0] == group]) for group in "ct"]
        found = " ".join(f"{counted[name][region]:.0f}/{true[name]}" for name in truth)
        fold = 2 ** float(row["log2_fold"])
        rows.append(
            (
                named[region].name,
                f"counted/true {found}",
                f"fold {fold:.2f} (true {means[1] / means[0]:.2f}), q {float(row['q_value']):.4f}, "
                f"{row['brains_needed']} brains a group for 80 %, power {float(row['power']):.2f}",
            )
        )
    return rows


def main(words: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="keep everything here; default: a temporary folder")
    parser.add_argument("--kept", type=float, default=KEPT, help=f"share in the controls; default {KEPT}")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.out or Path(scratch)
        truth = write_brains(folder, args.kept, args.seed)
        seconds, peak = run_study(folder)
        rows = compare(folder, truth)
        show(f"planted: {1 / args.kept:.2f} times the cells in {REGIONS[REGION - 1].name}", rows)
        records = [json.loads(one.read_text()) for one in (folder / "study").glob("records/*/*.json")]
        steps = math.fsum(one.get("seconds", 0) for one in records)
        print(
            f"\n{len(records)} tasks, {seconds:.1f} CPU s ({steps:.0f} s of the clock), {peak:.2f} GB at most"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
