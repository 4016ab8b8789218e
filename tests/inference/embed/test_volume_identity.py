"""A volume's identity tells its channels and time points apart."""

from __future__ import annotations

import numpy as np
import zarr

from canvas_fm.data.volume.volume import Volume
from canvas_fm.inference.embed.point_crops import volume_identity


def test_each_channel_and_time_point_is_another_volume(tmp_path):
    zarr.create_array(tmp_path / "v.zarr", data=np.zeros((2, 2, 8, 16, 16), np.uint16))

    def identity(t: int, c: int) -> str:
        return volume_identity(Volume.open(tmp_path / "v.zarr", voxel_um=(4, 2, 2), t=t, c=c))

    identities = {identity(t, c) for t in (0, 1) for c in (0, 1)}
    assert len(identities) == 4
    assert identity(1, 0) in identities
