"""Shading put over clean planes on purpose is estimated from the planes and divided out."""

from __future__ import annotations

import functools
import sys
import types
import weakref

import numpy as np
import pytest
import tifffile

import canvas_fm as cf
from canvas_fm.errors import CanvasError, MissingExtra
from canvas_fm.prepare.convert_flags import ConvertOptions
from canvas_fm.prepare.corrections.flat_field.basicpy import fit_basicpy
from canvas_fm.prepare.corrections.flat_field.flat_field import estimate_flat_field, given_flat_field
from canvas_fm.prepare.corrections.sample_planes import corrections_of
from canvas_fm.prepare.sources.source import open_source
from tests.prepare.planes import write_planes

DARK, SIDE, TILES = 100.0, 128, 48


def shading(height: int = SIDE, width: int = SIDE) -> np.ndarray:
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    surface = (1.1 - 0.3 * x) * (1 - 0.3 * y**2) * np.exp(-0.25 * (x**2 + y**2))
    return surface / surface.mean()


@functools.cache
def tiles(seed: int = 0) -> np.ndarray:
    """Tissue of slow clouds, another in every tile, cells in it, an empty corner, photon noise; uint16."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    made, even = [], shading()
    for _ in range(TILES):
        cloud = sum(
            np.sin(random.uniform(0.01, 0.05) * y + random.uniform(-0.05, 0.05) * x + random.uniform(0, 7))
            for _ in range(4)
        )
        light = 150 * (1 + 0.1 * cloud)
        for cy, cx in random.integers(0, SIDE, (30, 2)):
            light += 900 * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 18)
        if random.random() < 0.4:
            light[: random.integers(20, 60), : random.integers(20, 90)] = 4
        made.append(random.poisson(light * even) + DARK + 3 * random.standard_normal(light.shape))
    return np.rint(made).clip(0).astype(np.uint16)


def left(found: np.ndarray) -> float:
    """The share of the shading's variance that a division by `found` leaves."""
    true = np.log(shading(*found.shape))
    return float(np.var(true - np.log(found)) / np.var(true))


def test_nine_tenths_of_the_shading_go():
    field = estimate_flat_field(tiles())
    assert field.flat.mean() == pytest.approx(1, abs=1e-5)
    assert left(field.flat) < 0.1
    assert np.sqrt(left(field.flat)) < 0.25
    even = field.divide((300 * shading() + DARK).astype(np.float32)) - field.dark
    assert even.std() / even.mean() < 0.25 * shading().std()


def test_a_given_flat_image_takes_all_of_it(tmp_path):
    flat = (20_000 * shading() + DARK).astype(np.float32)
    np.save(tmp_path / "flat.npy", flat)
    tifffile.imwrite(tmp_path / "dark.tif", np.full((SIDE, SIDE), DARK, np.uint16))
    planes = np.rint(np.stack([(100 + 50 * z) * shading() + DARK for z in range(6)])).astype(np.uint16)
    source = write_planes(tmp_path / "planes", planes)
    given = {"flat": tmp_path / "flat.npy", "dark": tmp_path / "dark.tif"}
    done = cf.convert(source, tmp_path / "a.zarr", voxel_um=(4, 2, 2), verify=True, **given)
    read = cf.Volume.open(done.path).read((0, 0, 0), planes.shape)
    for z, plane in enumerate(read):
        np.testing.assert_allclose(plane, 100 + 50 * z + DARK, atol=1.5)
    np.testing.assert_allclose(given_flat_field(flat, DARK).flat, shading(), rtol=1e-3)


def test_convert_estimates_and_reports(tmp_path):
    stack = tiles()[:24]
    done = cf.convert(
        write_planes(tmp_path / "planes", stack), tmp_path / "a.zarr", voxel_um=(4, 2, 2), flat_field=True
    )
    read = cf.Volume.open(done.path).read((0, 0, 0), stack.shape).astype(float) - DARK
    lit = np.median(np.where(read > 50, read, np.nan)[:, 8:-8, 8:-8], axis=0)
    before = np.median(stack.astype(float)[:, 8:-8, 8:-8] - DARK, axis=0)
    assert np.nanstd(np.log(lit)) < 0.6 * np.std(np.log(before))
    assert (tmp_path / "a.corrections.png").is_file()


class StandIn:
    """What BaSiCPy 2 is called with, and a flat field that holds each block's place."""

    model_fields: dict = {"device": None}  # noqa: RUF012
    got: tuple = ()

    def __init__(self, **settings):
        self.settings = settings

    def fit(self, images):
        y, x = np.mgrid[0 : images.shape[1], 0 : images.shape[2]]
        self.flatfield = (1 + 0.01 * y + 0.001 * x).astype(np.float32)
        StandIn.got = self.settings, images


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setitem(sys.modules, "basicpy", types.SimpleNamespace(BaSiC=StandIn))
    return StandIn


def test_basicpy_gets_planes_without_the_dark_value_and_its_surface_is_that_of_whole_planes(stand_in):
    planes = np.full((5, 300, 520), 300.0) * np.linspace(1, 2, 5)[:, None, None] + DARK
    planes[:, 0, 0] += 1
    field = fit_basicpy(planes, dark=DARK)
    settings, images = stand_in.got
    assert settings == {"get_darkfield": False, "device": "cpu"}
    assert images.shape == (5, 150, 173)  # means of 2 × 3 voxels
    np.testing.assert_allclose(images[:, 5, 5], 300 * np.linspace(1, 2, 5), rtol=1e-5)
    assert field.flat.shape == (300, 520)
    assert field.flat.mean() == pytest.approx(1, abs=1e-5)
    at = (field.flat[0::2] + field.flat[1::2])[:, 1:519:3] / 2  # centres of the blocks
    block_y, block_x = np.mgrid[0:150, 0:173]
    want = 1 + 0.01 * block_y + 0.001 * block_x
    np.testing.assert_allclose(at[1:-1] / at[1, 0], want[1:-1] / want[1, 0], rtol=1e-4)


def test_convert_estimates_by_basicpy_where_it_is_asked_to(stand_in, tmp_path):
    source = write_planes(tmp_path / "planes", tiles()[:5])
    done = cf.convert(
        source, tmp_path / "a.zarr", voxel_um=(4, 2, 2), flat_field=True, flat_method="basicpy", verify=True
    )
    first = cf.Volume.open(done.path).read((0, 0, 0), (1, SIDE, SIDE))[0]
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    flat = 1 + 0.01 * y + 0.001 * x
    dark = min(np.quantile(plane, 0.001) for plane in tiles()[:5])
    want = (tiles()[0] - dark) / (flat / flat.mean()) + dark
    np.testing.assert_allclose(first, want, atol=1.01)


def test_what_basicpy_cannot_do_is_a_sentence(stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr(StandIn, "fit", lambda self, images: setattr(self, "flatfield", images[0] * 0))
    with pytest.raises(CanvasError, match=r"BaSiCPy found a shading from 0 to 0 of its mean"):
        fit_basicpy(tiles()[:5])

    def fails(self, images):
        raise RuntimeError("Estimated flatfield is zero.")

    monkeypatch.setattr(StandIn, "fit", fails)
    with pytest.raises(CanvasError, match=r"cannot estimate a shading .*flatfield is zero\.; leave --flat-m"):
        fit_basicpy(tiles()[:5])
    with pytest.raises(CanvasError, match="hold one value each; no shading can be estimated"):
        fit_basicpy(np.ones((5, 20, 20)))
    with pytest.raises(CanvasError, match="hold NaN or infinite values; replace them first"):
        fit_basicpy(np.full((5, 20, 20), np.nan))
    with pytest.raises(CanvasError, match="--flat-method basicpy goes with --flat-field"):
        cf.convert(tmp_path, tmp_path / "b.zarr", flat_method="basicpy")
    monkeypatch.setattr(StandIn, "model_fields", {})
    with pytest.raises(CanvasError, match="this BaSiCPy is older than 2"):
        fit_basicpy(tiles()[:5])
    monkeypatch.setitem(sys.modules, "basicpy", None)
    with pytest.raises(
        MissingExtra, match=r"--flat-method basicpy needs BaSiCPy 2: pip install 'canvas-fm\[b"
    ):
        fit_basicpy(tiles()[:5])


def test_basicpy_itself_takes_nine_tenths_of_the_shading():
    pytest.importorskip("basicpy")
    field = fit_basicpy(tiles()[:24])
    assert field.flat.mean() == pytest.approx(1, abs=1e-5)
    assert left(field.flat) < 0.1
    np.testing.assert_array_equal(field.flat, fit_basicpy(iter(tiles()[:24])).flat)


def test_planes_for_the_estimate_are_read_one_at_a_time(tmp_path, monkeypatch):
    source, held = write_planes(tmp_path / "planes", tiles()[:40]), []
    read = cf.Volume.read

    def counting(self, origin, size):
        plane = read(self, origin, size)
        held.append(weakref.ref(plane))
        assert sum(each() is not None for each in held) < 4
        return plane

    monkeypatch.setattr(cf.Volume, "read", counting)
    corrections_of(
        open_source(source, ConvertOptions.of(voxel_um=(4, 2, 2))), ConvertOptions(flat_field=True)
    )
    assert len(held) == 40


def test_what_cannot_be_estimated_is_refused(tmp_path):
    with pytest.raises(CanvasError, match="3 planes are too few to estimate a shading from; give 4 or more"):
        estimate_flat_field(np.ones((3, 20, 20)))
    with pytest.raises(CanvasError, match=r"the flat image is nowhere to be darker than the dark one"):
        given_flat_field(np.ones((4, 4), np.float32), 2.0)
    with pytest.raises(CanvasError, match=r"the dark image has shape \(2, 3\), the flat image \(4, 4\)"):
        given_flat_field(np.ones((4, 4), np.float32), np.zeros((2, 3), np.float32))
    with pytest.raises(CanvasError, match=r"the dark image has shape \(2, 3\), the planes \(128, 128\)"):
        estimate_flat_field(tiles()[:5], dark=np.zeros((2, 3), np.float32))
    planes = write_planes(tmp_path / "planes", tiles()[:5, :64])
    np.save(tmp_path / "flat.npy", np.ones((SIDE, SIDE), np.float32))
    with pytest.raises(CanvasError, match=r"the flat image has shape \(128, 128\), the planes \(64, 128\)"):
        cf.convert(planes, tmp_path / "a.zarr", voxel_um=(1, 1, 1), flat=tmp_path / "flat.npy")
    with pytest.raises(CanvasError, match="--flat-field estimates what --flat gives: give one of them"):
        cf.convert(planes, tmp_path / "b.zarr", flat=tmp_path / "flat.npy", flat_field=True)
