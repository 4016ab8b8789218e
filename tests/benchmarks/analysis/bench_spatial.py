"""A million cells through `regions`, `coexpress` and `proximity`: CPU seconds, peak memory of each command.

Each command runs as a user would call it, in a process of its own; its start and the reading of the table are
counted in. Cells are uniform over the tissue of the Allen Institute's annotations of the real data; without
these, over synthetic regions on a grid of the same size. `CANVAS_FM_BENCH_CELLS=1e5` takes fewer.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from canvas_fm.analysis.regions.read_atlas import open_atlas
from canvas_fm.data.points.points import Points
from tests.benchmarks.timing import show
from tests.support.real_data import REAL_DATA

LIMIT_S, LIMIT_GB = 30.0, 2.0
UM = 10.0  # voxels of the volume
COARSE = "ccf_100um/annotation_100.nrrd"
FINE = "ccf_25um/annotation_25_reoriented_2017.nrrd"
TABLE = "ccf_25um/allen2017_colours.csv"


class Annotation:
    """A label volume with its table and flags, real or synthetic."""

    def __init__(self, folder: Path, name: str, shape_zyx: tuple[int, int, int], side_um: float) -> None:
        real = REAL_DATA / "atlas"
        self.flags: list[str] = []
        if (real / name).is_file():
            self.labels, self.table = real / name, real / TABLE
        else:
            self.labels, self.table = folder / f"labels{side_um:g}.npy", folder / "names.csv"
            labels = np.zeros(shape_zyx, np.uint32)
            inner = tuple(slice(size // 8, -(size // 8)) for size in shape_zyx)
            at = np.indices(shape_zyx)[(slice(None), *inner)] // max(1, min(shape_zyx) // 10)
            labels[inner] = 1 + (at[0] * 31 + at[1] * 7 + at[2]) % 600
            np.save(self.labels, labels)
            rows = [f"{one},region {one}" for one in range(1, 601)]
            self.table.write_text("\n".join(["id,name", *rows]) + "\n", encoding="utf-8")
            self.flags = ["--atlas-voxel-um", *3 * [f"{side_um:g}"]]
        self.side_um = side_um

    def cells(self, number: int, out: Path, seed: int) -> None:
        """Write a table of cells, positions in voxels of `UM`."""
        options = {"atlas_voxel_um": 3 * [self.side_um]} if self.flags else {}
        labels = open_atlas(self.labels, table=self.table, **options).labels
        random = np.random.default_rng(seed)
        inside = np.argwhere(np.asarray(labels) > 0).astype(np.float32)
        at = inside[random.integers(0, len(inside), number)]
        zyx = (at + random.random(at.shape, np.float32)) * (self.side_um / UM) - 0.5
        Points(zyx.astype(np.float64).round(3)).write(out)


def apart(annotation: Annotation, number: int, out: Path, seed: int) -> str:
    """Write cells in a process of its own: a child's peak memory counts what its parent held before."""
    worker = multiprocessing.get_context("spawn").Process(target=annotation.cells, args=(number, out, seed))
    worker.start()
    worker.join()
    if worker.exitcode:
        raise SystemExit(f"the cells of {annotation.labels} were not written")
    return str(out)


def measured(name: str, words: list[str]) -> tuple[str, str, str]:
    """CPU seconds and peak memory of one command line."""
    command = [sys.executable, "-m", "canvas_fm.cli", *words]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{name} ended with {child.returncode}: {' '.join(words)}")
    seconds, peak = used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e9
    return name, f"{seconds:.1f} CPU s, {peak:.2f} GB", f"under {LIMIT_S:.0f} s and {LIMIT_GB:.0f} GB"


def main() -> None:
    number = int(float(os.environ.get("CANVAS_FM_BENCH_CELLS", "1e6")))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        fine, coarse = (
            Annotation(folder, FINE, (456, 528, 320), 25.0),
            Annotation(folder, COARSE, (132, 80, 114), 100.0),
        )
        out, size = ["--out", str(folder / "out.csv")], ["--voxel-um", *3 * [f"{UM:g}"]]
        in_fine = apart(fine, number, folder / "fine.csv", 0)
        a, b = (apart(coarse, number, folder / f"{name}.csv", seed) for seed, name in enumerate("ab", 1))
        names = ["--table", str(coarse.table), *coarse.flags]
        mask = ["--mask", str(coarse.labels), "--labels-voxel-um", "100", "100", "100"]
        fine_flags = ["--table", str(fine.table), "--atlas-orientation", "lpi", *fine.flags]
        together = ["--tolerance-um", "8", "--regions", str(coarse.labels), *names]
        commands = {
            "regions, 25 µm annotation": ["regions", in_fine, str(fine.labels), *fine_flags, *size, *out],
            "coexpress, 99 draws, 100 µm": ["coexpress", a, b, *together, *size, *out],
            "proximity, 99 draws, mask": ["proximity", a, b, *mask, *size, *out],
        }
        show(f"{number:,} cells", [measured(name, words) for name, words in commands.items()])


if __name__ == "__main__":
    main()
