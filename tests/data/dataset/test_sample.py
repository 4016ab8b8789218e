"""The shipped samples: what they hold, where they come from, and by which name they are opened."""

from __future__ import annotations

import json

import numpy as np
import pytest

import canvas_fm as cf
from canvas_fm.files.shipped import shipped
from tests.support.real_data import ABSENT, REAL_DATA

NAMES = ("cfos", "microglia")


def test_samples_are_shipped_with_a_licence():
    assert tuple(shipped("sample")) == NAMES
    for folder in shipped("sample").values():
        assert "MIT License" in (folder / "LICENSE").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_is_a_volume_and_its_cells(name):
    found = cf.sample(name)
    assert found.volume.shape_zyx == (64, 160, 160)
    assert found.volume.name == name
    assert found.volume.checksums
    assert np.all(found.cells.zyx >= 0)
    assert np.all(found.cells.zyx <= np.subtract(found.volume.shape_zyx, 1))
    again = cf.Volume.open(f"sample:{name}")
    assert np.array_equal(again.read((0, 0, 0), (4, 4, 4)), found.volume.read((0, 0, 0), (4, 4, 4)))
    assert np.array_equal(cf.Points.read(f"sample:{name}").zyx, found.cells.zyx)


@pytest.mark.skipif(not REAL_DATA.exists(), reason=ABSENT)
@pytest.mark.parametrize("name", NAMES)
def test_a_sample_is_a_box_of_its_cube_with_all_cells_in_it(name):
    found = cf.sample(name)
    cube = REAL_DATA / str(found.about["cube"])
    origin, size = np.array(found.about["origin_zyx"]), np.array(found.volume.shape_zyx)
    box = cf.Volume.open(cube / "raw.zarr").read(origin, size)
    assert np.array_equal(found.volume.read((0, 0, 0), size), box)
    truth = cf.Points.read(cube / "centroids.csv").zyx - origin
    inside = truth[np.all((truth >= 0) & (truth <= size - 1), axis=1)]
    np.testing.assert_allclose(found.cells.zyx, inside, atol=0.0051)


def test_the_boxes_lie_where_labels_can_be_trusted():
    (z, _, _), (cfos_z, _, _) = (
        json.loads((shipped("sample")[name] / "meta.json").read_text())["origin_zyx"]
        for name in ("microglia", "cfos")
    )
    assert z >= 18  # no tissue before
    assert cfos_z + 64 <= 100  # no labels after


def test_no_shipped_model_was_trained_on_the_microglia_sample():
    for name, folder in shipped("model").items():
        assert "7095" not in (folder / "config.json").read_text(encoding="utf-8"), name


def test_an_unknown_sample_is_refused():
    with pytest.raises(cf.CanvasError, match=r"no sample at .astrocytes., .*shipped: cfos, microglia"):
        cf.Volume.open("sample:astrocytes")
