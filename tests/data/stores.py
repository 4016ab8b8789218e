"""Remote stores as their tests make and open them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import zarr

from canvas_fm.data.store.remote.pinned_https import Timeouts
from canvas_fm.data.store.remote.remote_store import Remote
from canvas_fm.data.volume.volume import Volume
from tests.conftest import position_values
from tests.support.object_store import Objects

SHAPE = (40, 70, 50)
UM = (4.0, 1.8, 1.8)
QUICK = Timeouts(connect_s=2, stall_s=0.5, whole_s=1.5, attempts=3, pause_s=0.01)


def ours(folder: Path) -> np.ndarray:
    voxels = position_values(SHAPE)
    with Volume.create(folder, SHAPE, voxel_um=UM, chunk_zyx=(8, 16, 16)) as writer:
        writer.write((0, 0, 0), voxels)
    return voxels


def foreign(folder: Path, **options) -> np.ndarray:
    voxels = position_values(SHAPE)
    usual = {"chunks": (8, 16, 16), "shape": SHAPE, "dtype": "uint16", "zarr_format": 3}
    zarr.create_array(folder, **(usual | options))[:] = voxels
    return voxels


def sharded(folder: Path) -> np.ndarray:
    return foreign(folder, shards=(16, 32, 32), chunks=(8, 16, 16))


def open_remote(objects: Objects, timeouts: Timeouts = QUICK, **options) -> Volume:
    files = Remote(objects.address("brain.zarr"), ["127.0.0.1"], timeouts)
    return Volume.open(files, voxel_um=UM, **options)
