"""A synthetic data set in the layout of the CANVAS paper, with known cells in train and test regions."""

from __future__ import annotations

import itertools
import json
import shutil
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tifffile

from canvas_fm.data.dataset.dataset_addresses import IMAGE, LABEL, MARKERS, SPLITS
from canvas_fm.data.phantom.phantom import write_phantom
from canvas_fm.data.points.points import Points
from canvas_fm.data.store.tar_index import TAR
from canvas_fm.data.volume.volume import Volume
from canvas_fm.data.zyx import Zyx, ZyxUm
from canvas_fm.errors import CanvasError
from canvas_fm.files.atomic import disk_full_as_error

_STEP = 10  # of the number in the name of a plane, from one to the next
_X_Y = (344170, 392340)  # of the paper's example


def write_dataset(
    out: str | Path,
    *,
    shape_zyx: Zyx = (64, 192, 288),
    markers: Sequence[str] = MARKERS,
    regions: int = 3,
    seed: int = 0,
    voxel_um: ZyxUm = (4.0, 1.8, 1.8),
    progress: bool | None = None,
) -> Path:
    """Write phantom brains as planes with annotated regions; OUT is a folder, or an archive OUT.tar.

    Each marker is a brain `MARKER_phantom`: planes as TIFF (zlib level 1, voxel size stated), and `regions`
    in TRAIN and as many in TEST, whose numbers go on; they share the volume in two rows of columns, and no
    cell. Beside the points of a region, in voxels of the brain, lies its box as JSON, for verbs with `--roi`.
    Raises CanvasError where OUT exists; half a data set is removed.
    """
    out = Path(out)
    if out.exists():
        raise CanvasError(f"{out} exists already; delete it or choose another name")
    if not out.parent.is_dir():
        raise CanvasError(f"{out} cannot be written: there is no folder {out.parent}")
    if regions < 1 or shape_zyx[2] < regions or shape_zyx[1] < len(SPLITS):
        raise CanvasError(f"{regions} regions in each split do not fit a volume of {tuple(shape_zyx)} voxels")
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as room, disk_full_as_error(out):
        whole = Path(room) / "whole"
        for marker in dict.fromkeys(markers):
            folder = write_phantom(
                Path(room) / "phantom", shape_zyx=shape_zyx, markers=(marker,), seed=seed, voxel_um=voxel_um,
                progress=progress,
            )  # fmt: skip
            (phantom,) = folder.values()
            (name,) = folder
            _write_brain(phantom, whole / f"{name}_phantom", regions)
            shutil.rmtree(phantom)
        if out.suffix.lower() == TAR:
            packed = Path(room) / "packed.tar"
            with tarfile.open(packed, "w", format=tarfile.PAX_FORMAT) as tar:
                for brain in sorted(whole.iterdir()):
                    tar.add(brain, brain.name)
            packed.rename(out)
        else:
            whole.rename(out)
    return out


def _write_brain(phantom: Path, brain: Path, regions: int) -> None:
    volume, cells = Volume.open(phantom / "raw.zarr"), Points.read(phantom / "centroids.csv")
    depth, height, width = volume.shape_zyx
    (brain / IMAGE).mkdir(parents=True)
    size_z, size_y, size_x = volume.voxel_um
    for z in range(depth):
        tifffile.imwrite(
            brain / IMAGE / f"{_X_Y[0]}_{_X_Y[1]}_{z * _STEP:06d}_ch1.tiff",
            volume.read((z, 0, 0), (1, height, width))[0],
            compression="zlib",
            compressionargs={"level": 1},
            imagej=True,
            resolution=(1 / size_x, 1 / size_y),
            metadata={"spacing": size_z, "unit": "um"},
        )
    rows = np.linspace(0, height, len(SPLITS) + 1).astype(int)
    columns = np.linspace(0, width, regions + 1).astype(int)
    for (row, split), column in itertools.product(enumerate(SPLITS), range(regions)):
        box = [0, *(int(n) for n in (rows[row], columns[column])), depth]
        box += [int(rows[row + 1]), int(columns[column + 1])]
        held = np.all((cells.zyx >= np.array(box[:3]) - 0.5) & (cells.zyx < np.array(box[3:]) - 0.5), axis=1)
        folder = brain / LABEL / split
        folder.mkdir(parents=True, exist_ok=True)
        stem = f"{brain.name}_region{row * regions + column + 1}"
        lines = ["x,y,z", *(f"{x:g},{y:g},{z:g}" for z, y, x in cells.zyx[held])]
        (folder / f"{stem}_gt.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (folder / f"{stem}_box.json").write_text(json.dumps([box]) + "\n", encoding="utf-8")
