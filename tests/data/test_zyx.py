"""A model's voxel size against a volume's: the same within five percent, else refused with both ways out."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from canvas_fm.data.zyx import match_voxel_um
from canvas_fm.errors import CanvasError, ModelMismatch


def test_a_model_within_five_percent_reads_voxels_as_they_are() -> None:
    volume = SimpleNamespace(name="brain", voxel_um=(4.0, 1.8, 1.8 * 1.05))
    assert match_voxel_um(volume, (4.0, 1.8, 1.8)) is None
    assert match_voxel_um(volume, (4.0, 1.8, 1.8), resample=True) is None


def test_another_voxel_size_is_refused_with_both_ways_out() -> None:
    volume = SimpleNamespace(name="brain", voxel_um=(4.0, 1.8, 1.8 * 1.06))
    with pytest.raises(ModelMismatch) as problem:
        match_voxel_um(volume, (4.0, 1.8, 1.8))
    for part in ("brain", "4 × 1.8 × 1.908", "4 × 1.8 × 1.8 µm", "--resample", "--ignore-voxel-size"):
        assert part in str(problem.value)
    assert match_voxel_um(volume, (4.0, 1.8, 1.8), ignore_voxel_size=True) is None
    assert match_voxel_um(volume, (4, 1.8, 1.8), resample=True) == (4.0, 1.8, 1.8)
    with pytest.raises(CanvasError, match="exclude each other"):
        match_voxel_um(volume, (4.0, 1.8, 1.8), resample=True, ignore_voxel_size=True)
