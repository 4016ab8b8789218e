"""Every file of the real data is opened, or refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from canvas_fm.cli import main
from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError

FOLDERS = ("formats", "zarr_fixtures", "labelled_nuclei", "unlabelled")
UM = ["--voxel-um", "2", "1", "1"]
WRITTEN = {  # by convert: shape and voxel size of what comes out, and the flags that it takes
    "imagej_hyperstack.tiff": ((75, 75, 75), (1, 1, 1), []),
    "imagej_hyperstack_labels.tiff": ((75, 75, 75), (1, 1, 1), ["--labels"]),
    "1136_mini.h5": ((100, 100, 100), (0.2837, 0.1276, 0.1276), ["--dataset", "raw"]),
    "sample_ovule.h5": ((32, 128, 128), (0.235, 0.15, 0.15), ["--dataset", "raw"]),
    "multifile_z": ((5, 24, 18), (2, 1, 1), UM),
    "multifile_z/multifile-Z1.ome.tiff": ((5, 24, 18), (2, 1, 1), UM),  # its metadata name the other planes
}
REFUSED = {
    "s_1_t_1_c_1_z_1.ome.tiff": "this is one plane, give the folder of all",
    "multi-channel.ome.tif": "a volume needs planes along z",
    "multifile_z/multifile.companion.ome": "is the metadata of planes beside it; give their folder",
    "NOTE.txt": "is a file but no zip archive",
}


@pytest.fixture(scope="module", params=FOLDERS)
def folder(request, real_data: Path) -> Path:
    if not (real_data / request.param).is_dir():
        pytest.skip(f"no {request.param} in {real_data}")
    return real_data / request.param


@pytest.mark.slow
def test_info_describes_or_refuses_every_path_in_one_sentence(folder, capfd):
    paths = [folder, *sorted(folder.rglob("*"))]
    assert len(paths) > 10
    for path in paths:
        code = main(["info", str(path), "-q"])
        out, err = capfd.readouterr()
        lines = [line for line in err.splitlines() if not line.startswith(("WARNING", "ERROR <tifffile"))]
        assert code in (0, 1), path
        assert "Traceback" not in err, path
        assert (len(lines) == 1 and lines[0].startswith("canvas-fm: ")) == (code == 1), (path, err)
        assert bool(out) == (code == 0), path


@pytest.mark.slow
def test_every_volume_is_read_to_its_end(folder):
    """Whatever opens is read whole, or a chunk of it is named as damaged."""
    opened = 0
    for path in [one for one in sorted(folder.rglob("*")) if one.is_dir() or one.suffix != ""]:
        try:
            volume = Volume.open(path, voxel_um=(2, 1, 1), missing_chunks="empty")
            if np.prod(volume.shape_zyx) < 4e6:
                assert volume.read((0, 0, 0), volume.shape_zyx).shape == volume.shape_zyx
            opened += 1
        except CanvasError:
            continue
    assert opened > 2


@pytest.mark.parametrize("name", [*WRITTEN, *REFUSED])
def test_convert_writes_or_refuses_each_format(name, real_data, tmp_path, capfd):
    source = real_data / "formats" / name
    if not source.exists():
        pytest.skip(f"no formats in {real_data}")
    shape, um, flags = WRITTEN.get(name, (None, None, UM))
    out = tmp_path / "out.zarr"
    code = main(["convert", str(source), str(out), "--verify", "-q", *flags])
    err = capfd.readouterr().err
    if shape is None:
        assert (code, err.count("\n")) == (1, 1)
        assert REFUSED[name] in err
        assert not out.exists()
    else:
        assert code == 0, err
        volume = Volume.open(out)
        assert volume.shape_zyx == shape
        assert volume.voxel_um == pytest.approx(um, rel=1e-3)
