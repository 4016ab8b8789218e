"""Stripes put into clean planes on purpose are taken out again, and cells stay what they were."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

import canvas_fm as cf
from canvas_fm.data.phantom.phantom import write_phantom
from canvas_fm.errors import CanvasError
from canvas_fm.prepare.convert_flags import DestripeOptions
from canvas_fm.prepare.corrections.destripe import Destriper, band_stripes, decibels, stripe_energy
from canvas_fm.prepare.corrections.report import compare_peaks
from tests.prepare.planes import write_planes

SHAPE, UM, DARK = (10, 384, 512), (4.0, 1.8, 1.8), 100.0


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """A phantom without stripes, its true cells, and the folder that it is in."""
    folder = write_phantom(
        tmp_path_factory.mktemp("phantom"), shape_zyx=SHAPE, markers=("cFos",), stripes=False, progress=False
    )["cFos"]
    return cf.Volume.open(folder / "raw.zarr").read((0, 0, 0), SHAPE), cf.Points.read(
        folder / "centroids.csv"
    )


def stripes(seed=0, shape=SHAPE):
    """Gains of ± 10 % by row, 1 to 6 voxels wide, other ones in every plane, that fade along their way."""
    depth, height, width = shape
    random = np.random.default_rng(seed)
    rows = sum(
        gaussian_filter1d(random.standard_normal((depth, height, 1)), s, axis=1) * s**0.5 for s in (1, 2)
    )
    rows = rows - gaussian_filter1d(rows, 6, axis=1)
    return np.exp(0.1 * rows / rows.std() * np.linspace(1, 0.6, width))


def striped(planes, gains):
    return np.rint((planes - DARK) * gains + DARK).clip(0).astype(np.uint16)


def test_stripes_along_y_are_those_along_x_of_the_turned_plane(clean):
    plane = striped(clean[0], stripes())[4].astype(np.float32)[:200]
    turned = Destriper(DestripeOptions(stripes_along=("y",)), DARK).remove(np.ascontiguousarray(plane.T))
    straight = Destriper(DestripeOptions(), DARK).remove(plane)
    np.testing.assert_allclose(turned.T, straight, rtol=1e-3)
    assert np.abs(straight - plane).max() > 20


@pytest.mark.parametrize("axis", ["x", "y"])
def test_stripes_fall_by_20_db_and_peaks_stay(clean, axis):
    """Along the shorter axis too, where fewer voxels tell of a stripe."""
    voxels, _ = clean
    dirty = striped(
        voxels, stripes() if axis == "x" else stripes(shape=(SHAPE[0], *SHAPE[:0:-1])).swapaxes(1, 2)
    )
    destriper = Destriper(DestripeOptions(stripes_along=(axis,)), DARK)
    before = after = 0.0
    heights, stayed = [], []
    for z in range(2, 8):
        plain, spoilt = (stack[z].astype(np.float32) for stack in (voxels, dirty))
        kept, removed = destriper.remove(plain), destriper.remove(spoilt)
        tissue = gaussian_filter1d(gaussian_filter1d(plain, 3, axis=0), 3, axis=1) > DARK + 40
        before += ((spoilt - plain)[tissue] ** 2).sum()
        after += ((removed - kept)[tissue] ** 2).sum()
        for corrected in (kept, removed):
            ratio, in_place = compare_peaks(plain, corrected, DARK)
            heights.append(ratio)
            stayed.append(in_place)
    assert decibels(float(before), float(after)) >= 20
    assert len(np.concatenate(heights)) > 100
    assert abs(np.median(np.concatenate(heights)) - 1) < 0.01
    assert np.median(np.abs(np.concatenate(heights) - 1)) < 0.01
    assert np.concatenate(stayed).mean() > 0.99


def test_detection_is_no_worse_than_on_the_striped_volume(clean):
    voxels, truth = clean
    dirty = striped(voxels, stripes())[:, :160, :256]
    truth = cf.Points(truth.zyx[(truth.zyx[:, 1] < 160) & (truth.zyx[:, 2] < 256)])
    destriper = Destriper(DestripeOptions(), DARK)
    mended = (
        np.stack([destriper.remove(plane.astype(np.float32)) for plane in dirty]).clip(0).astype(np.uint16)
    )
    found = []
    for stack in (dirty, mended):
        volume = cf.Volume.from_array(stack, voxel_um=UM)
        points = cf.detect_log(volume, sigma_um=4.0, threshold=0.05, show=False)
        found.append(cf.evaluate(points, truth, voxel_um=UM, tolerance_um=8.0).counts.f1)
    assert found[1] >= found[0]


def test_a_plane_without_stripes_and_an_empty_one_are_left_alone():
    random = np.random.default_rng(0)
    plain = (DARK + 200 + 5 * random.standard_normal((128, 200))).astype(np.float32)
    destriper = Destriper(DestripeOptions(), DARK)
    np.testing.assert_allclose(destriper.remove(plain), plain, rtol=0.02)
    empty = np.full((128, 200), DARK, np.float32)
    np.testing.assert_array_equal(destriper.remove(empty), empty)


def test_the_filter_takes_rows_and_leaves_columns():
    rows = np.sin(np.arange(128) * 1.1)[:, None] * np.ones((1, 160))
    found = band_stripes(rows.astype(np.float32), 1.0, 0, "db3")
    assert decibels(float((rows**2).mean()), float(((rows - found)[8:-8] ** 2).mean())) > 25
    columns = np.ascontiguousarray(rows[:, :128].T).astype(np.float32)
    assert np.abs(band_stripes(columns, 1.0, 0, "db3")).max() < 0.05


def test_convert_destripes_and_reports(clean, tmp_path):
    voxels, _ = clean
    dirty = striped(voxels, stripes())[3:7]
    source = write_planes(tmp_path / "planes", dirty)
    done = cf.destripe(source, tmp_path / "a.zarr", voxel_um=UM, verify=True)
    read = cf.Volume.open(done.path).read((2, 0, 0), (1, *SHAPE[1:]))[0].astype(np.float32)
    assert decibels(stripe_energy(dirty[2].astype(np.float32), DARK), stripe_energy(read, DARK)) > 10
    numbers = json.loads((tmp_path / "a.corrections.json").read_text())["channel 0"]
    assert numbers["stripes along x, dB removed"] > 10
    assert abs(numbers["peak height after / before, median"] - 1) < 0.05
    assert (tmp_path / "a.corrections.png").stat().st_size > 10_000


def test_what_does_not_fit_is_refused():
    with pytest.raises(CanvasError, match="there is no wavelet 'haa'"):
        Destriper(DestripeOptions(wavelet="haa"))
    with pytest.raises(CanvasError, match="are too small for the wavelet sym4; do not destripe"):
        Destriper(DestripeOptions()).remove(np.arange(9, dtype=np.float32).reshape(3, 3))
    with pytest.raises(CanvasError, match="--stripes-along is x x; give x, y or both, each once"):
        DestripeOptions.of(stripes_along=("x", "x"))
    with pytest.raises(CanvasError, match="--stripe-sigma has 2 values for 1 axes"):
        DestripeOptions.of(stripe_sigma=(1, 2))
