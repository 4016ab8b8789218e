"""Public OME-Zarr and Zarr examples of others: each opens, or is refused with one sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr

from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError, DamagedStore
from tests.support.real_data import REAL_DATA

_FIXTURES = REAL_DATA / "zarr_fixtures"
_BIOTOOLS = "biotools_examples/data"
_NEUROGLANCER = "neuroglancer/testdata/datasource/zarr"
# What opens, with its shape; all the others are refused.
OPENS = {
    f"{_BIOTOOLS}/valid/image-03.zarr": (2, 100, 100),
    f"{_BIOTOOLS}/valid/image-04.zarr": (2, 64, 64),
}
REFUSED = {
    f"{_BIOTOOLS}/valid/image-01.zarr": "needs each of z, y and x once",
    f"{_BIOTOOLS}/valid/image-02.zarr": "2D image",
    f"{_BIOTOOLS}/valid/plate-01.zarr": "it is a plate",
    f"{_BIOTOOLS}/valid/plate-01.zarr/A/1": "it is a well of a plate",
    f"{_BIOTOOLS}/valid/plate-01.zarr/A": "holds no image",
    f"{_BIOTOOLS}/valid/image-03.zarr/labels": "list of label images",
    f"{_BIOTOOLS}/invalid/image-01.zarr": "no 'multiscales'",
    f"{_BIOTOOLS}/invalid/image-02.zarr": "where a list of images is expected",
    f"{_BIOTOOLS}/invalid/image-03.zarr": "2D image",
    f"{_BIOTOOLS}/invalid/image-04.zarr": "level '1' has shape",
    f"{_BIOTOOLS}/warning/image-01.zarr": "2D image",
    f"{_NEUROGLANCER}/ome_zarr/simple_0.4": "2D image",
    f"{_NEUROGLANCER}/ome_zarr/simple_0.5": "2D image",
    f"{_NEUROGLANCER}/ome_zarr/simple_0.5.zip": "2D image",
    f"{_NEUROGLANCER}/ome_zarr/simple_0.5.ocdbt": "is no Zarr store",
    f"{_NEUROGLANCER}/ome_zarr/all_0.6/axis_dependent/mapAxis.zarr": "exchanges its axes",
    f"{_NEUROGLANCER}/ome_zarr/all_0.6/simple/anisotropic_rotation.zarr": "only a scale can be read",
}


def _nodes() -> list[str]:
    """Every group, array and zip among the fixtures."""
    marks = ("zarr.json", ".zgroup", ".zarray", ".zattrs")
    folders = {path.parent for mark in marks for path in _FIXTURES.rglob(mark)}
    return sorted(str(path.relative_to(_FIXTURES)) for path in folders | set(_FIXTURES.rglob("*.zip")))


@pytest.fixture(scope="module")
def fixtures(real_data: Path) -> Path:
    if not (real_data / "zarr_fixtures").is_dir():
        pytest.skip(f"no zarr_fixtures in {real_data}")
    return real_data / "zarr_fixtures"


@pytest.mark.parametrize("name", OPENS)
def test_valid_volumes_open(fixtures, name):
    volume = Volume.open(fixtures / name)
    assert (volume.shape_zyx, volume.voxel_um) == (OPENS[name], (1.0, 1.0, 1.0))
    stored = zarr.open_array(fixtures / name / "0", mode="r")
    opened = Volume.open(fixtures / name, missing_chunks="empty")
    np.testing.assert_array_equal(opened.read((0, 0, 0), volume.shape_zyx), stored[...])


@pytest.mark.parametrize(
    ("name", "voxel_um"),
    [
        ("basic/scale", (4.0, 3.0, 2.0)),
        ("basic/sequenceScaleTranslation", (4.0, 3.0, 2.0)),
        ("basic/identity", (1.0, 1.0, 1.0)),
        ("simple/affine", (4.0, 3.0, 2.0)),  # a scale and a translation, written as a matrix
    ],
)
def test_ome_zarr_06_is_read_where_it_is_scaled(fixtures, name, voxel_um):
    volume = Volume.open(fixtures / f"{_NEUROGLANCER}/ome_zarr/all_0.6/{name}.zarr")
    assert (volume.shape_zyx, volume.voxel_um) == ((27, 226, 186), voxel_um)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_volume_is_refused_with_its_reason(fixtures, name):
    with pytest.raises(CanvasError, match=REFUSED[name]):
        Volume.open(fixtures / name)


@pytest.mark.parametrize("name", _nodes())
def test_each_node_opens_or_is_refused_in_one_sentence(fixtures, name):
    """With a voxel size given, every 3D array of numbers opens and equals what zarr-python reads."""
    path = fixtures / name
    try:
        volume = Volume.open(path, voxel_um=(2, 1, 1), missing_chunks="empty")
    except CanvasError as refusal:
        sentence = str(refusal)
        assert "\n" not in sentence
        assert len(sentence) < 500
        assert "Traceback" not in sentence
        is_volume = False
    else:
        is_volume = True
        try:
            box = volume.read((0, 0, 0), volume.shape_zyx)
        except DamagedStore:
            assert "0.6" in name  # most of their chunks are links of a checkout, kept as text
            return
    if path.is_dir() and not list(path.glob("*/")):
        array = zarr.open(path, mode="r")
        plain = isinstance(array, zarr.Array) and array.ndim == 3 and array.dtype.kind in "iuf"
        assert is_volume == plain
        if plain:
            np.testing.assert_array_equal(box, array[...])
