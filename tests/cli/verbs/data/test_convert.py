"""`convert` on the command line."""

from __future__ import annotations

import numpy as np

from canvas_fm import Volume
from tests.prepare.planes import SHAPE, voxels, write_planes


def test_convert_says_what_it_wrote(result, refusal, wrong, tmp_path):
    source = write_planes(tmp_path / "planes", voxels())
    out = tmp_path / "a.zarr"
    words = ["convert", source, out, "--voxel-um", 4, 2, 2, "--marker", "TH", "--threads", 2]
    preview = result(*words, "--dry-run")
    assert (preview["shape_zyx"], preview["threads"]) == (list(SHAPE), 2)
    assert not out.exists()
    done = result(*words, "--verify")
    assert (done["path"], done["planes"], done["verified"]) == (str(out), 70, True)
    volume = Volume.open(out)
    assert (volume.marker, volume.voxel_um) == ("TH", (4.0, 2.0, 2.0))
    np.testing.assert_array_equal(volume.read((0, 0, 0), SHAPE), voxels())
    assert result("info", out)["window"] == list(volume.window)
    assert "has no voxel size; give --voxel-um" in refusal("convert", source, tmp_path / "b.zarr")
    assert "are written as .zarr" in refusal("convert", source, tmp_path / "b", "--voxel-um", 1, 1, 1)
    assert "--ome" in wrong("convert", source, out, "--ome", "0.3")
