"""Shading put over clean planes on purpose is estimated from the planes and divided out."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

import canvas_fm as cf
from canvas_fm.errors import CanvasError
from canvas_fm.prepare.flat_field import estimate_flat_field, given_flat_field
from tests.prepare.planes import write_planes

DARK, SIDE, TILES = 100.0, 128, 48


def shading(height: int = SIDE, width: int = SIDE) -> np.ndarray:
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    surface = (1.1 - 0.3 * x) * (1 - 0.3 * y**2) * np.exp(-0.25 * (x**2 + y**2))
    return surface / surface.mean()


def tiles(seed: int = 0) -> np.ndarray:
    """Tissue of slow clouds, another in every tile, cells in it, an empty corner, photon noise; uint16."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    made = []
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
        made.append(random.poisson(light * shading()) + DARK + 3 * random.standard_normal(light.shape))
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


def test_what_cannot_be_estimated_is_refused(tmp_path):
    with pytest.raises(CanvasError, match="3 planes are too few to estimate a shading from; give 4 or more"):
        estimate_flat_field(np.ones((3, 20, 20)))
    with pytest.raises(CanvasError, match=r"the flat image is nowhere to be darker than the dark one"):
        given_flat_field(np.ones((4, 4), np.float32), 2.0)
    planes = write_planes(tmp_path / "planes", tiles()[:5, :64])
    np.save(tmp_path / "flat.npy", np.ones((SIDE, SIDE), np.float32))
    with pytest.raises(CanvasError, match=r"the flat image has shape \(128, 128\), the planes \(64, 128\)"):
        cf.convert(planes, tmp_path / "a.zarr", voxel_um=(1, 1, 1), flat=tmp_path / "flat.npy")
    with pytest.raises(CanvasError, match="--flat-field estimates what --flat gives: give one of them"):
        cf.convert(planes, tmp_path / "b.zarr", flat=tmp_path / "flat.npy", flat_field=True)
