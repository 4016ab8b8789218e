"""Files that changed places are damage, although each is whole in itself."""

from __future__ import annotations

import numpy as np
import pytest

from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import DamagedStore


def test_two_files_of_equal_length_that_changed_places_are_found(tmp_path):
    """Noise is stored uncompressed: equal lengths, and each chunk with its own right crc32c."""
    voxels = np.random.default_rng(0).integers(0, 65_536, (16, 32, 64)).astype(np.uint16)
    path = tmp_path / "brain.zarr"
    with Volume.create(
        path, voxels.shape, voxel_um=(4, 1.8, 1.8), chunk_zyx=(8, 16, 16), shard_zyx=(16, 32, 32)
    ) as writer:
        writer.write((0, 0, 0), voxels)
    one, two = (path / f"0/c/0/0/{i}" for i in range(2))
    first, second = one.read_bytes(), two.read_bytes()
    assert len(first) == len(second)
    one.write_bytes(second)
    two.write_bytes(first)
    with pytest.raises(DamagedStore, match="does not match its checksum"):
        Volume.open(path).read((0, 0, 0), voxels.shape)
