"""Randomised phantoms: exact truth, one seed one brain, families that hold real brains well inside."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.ndimage import gaussian_filter

from canvas_fm.data.phantom.randomised.draw_parameters import draw_parameters
from canvas_fm.data.phantom.randomised.draw_phantom import draw_phantom
from canvas_fm.data.phantom.randomised.parameter_ranges import Autofluorescence, Families
from canvas_fm.data.phantom.randomised.rendering import Grid, bodies, keep_apart, paint
from canvas_fm.data.phantom.randomised.write import write_random_phantom
from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError

SMALL = (16, 64, 64)
CLEAR = Families(
    amplitude=(6, 8), amplitude_spread=(0.05, 0.1), photons=(2000, 3000), camera_noise=(0.5, 1), haze=(0, 0),
    specks=(0, 0), fibres=(0, 0), vessels=(0, 0), faint=(0, 0), blur_yx_um=(0.4, 0.6), blur_z_um=(1.2, 1.5),
    attenuation=(0, 0), shading=(0, 0), stripes=(0, 0), seam=(0, 0), layer_contrast=(1, 1), cloud=(0, 0),
)  # fmt: skip


def test_a_seed_is_one_brain_and_another_seed_another():
    one, again, other = (draw_phantom(seed, shape_zyx=SMALL) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.voxels, again.voxels)
    np.testing.assert_array_equal(one.mask, again.mask)
    assert one.look == again.look
    assert one.look != other.look


def test_autofluorescence_is_in_both_channels_and_cells_only_in_the_signal():
    clear = CLEAR.model_copy(
        update={
            "autofluorescence": Autofluorescence(
                bodies=(1, 1), amplitude=(1, 1), ratio=(1, 1), bleed_through=(0, 0), photons=(2000, 3000)
            )
        }
    )
    drawing = {"shape_zyx": SMALL, "voxel_um": (4.0, 1.8, 1.8), "kind": "somata"}
    plain, phantom = (draw_phantom(6, families=families, **drawing) for families in (CLEAR, clear))
    assert plain.background is None
    assert phantom.background is not None
    np.testing.assert_array_equal(phantom.mask, plain.mask)  # what is a cell stays
    np.testing.assert_array_equal(phantom.centres_zyx, plain.centres_zyx)
    tissue = np.median(plain.voxels[plain.mask == 0])
    bodies = phantom.voxels > plain.voxels + tissue
    assert bodies.sum() > 100
    assert bodies[phantom.mask > 0].mean() < 0.05
    background = phantom.background / np.median(phantom.background[~bodies])
    assert np.median(background[bodies]) > 2
    assert np.median(background[phantom.mask > 0]) < 1.2
    assert np.median(phantom.voxels[phantom.mask > 0]) > 2 * tissue


def test_the_texture_of_both_channels_is_shared_as_far_as_is_asked():
    """Residuals of a smooth brain are its texture: the same in both channels, or as good as unrelated."""
    found = []
    for shared in (0.0, 0.6, 1.0):
        one = Autofluorescence(
            bodies=(0, 0), photons=(1e6, 1e6), level_counts=(3000, 3000), texture_shared=(shared, shared)
        )
        bare = {"texture": (0.2, 0.2), "cloud": (0, 0), "layer_contrast": (1, 1), "density_mm3": (1, 1)}
        still = {
            "fibres": (0, 0),
            "vessels": (0, 0),
            "specks": (0, 0),
            "attenuation": (0, 0),
            "shading": (0, 0),
        }
        families = CLEAR.model_copy(
            update=bare | still | {"fewest_cells": 0, "photons": (1e6, 1e6), "autofluorescence": one}
        )
        phantom = draw_phantom(3, shape_zyx=SMALL, voxel_um=(4.0, 1.8, 1.8), families=families)
        assert phantom.look.texture
        assert phantom.background is not None
        boxes = (phantom.voxels, phantom.background)
        signal, background = (
            gaussian_filter(box.astype(float), 1)[2:-2, 4:-4, 4:-4].ravel() for box in boxes
        )
        found.append(np.corrcoef(signal, background)[0, 1])
    none, some, whole = found  # what both share besides, the edge of the tissue, is a quarter here
    assert none < 0.4 < some < 0.9 < 0.97 < whole


def test_a_volume_may_hold_fewer_cells_than_forty():
    drawing = {"shape_zyx": SMALL, "voxel_um": (4.0, 1.8, 1.8), "kind": "nuclei"}
    sparse = CLEAR.model_copy(update={"density_mm3": (10, 10), "fewest_cells": 2})
    assert max(len(draw_phantom(seed, families=sparse, **drawing).centres_zyx) for seed in range(3)) < 10
    assert "fewest_cells" not in Families().model_dump(mode="json")


def test_families_without_autofluorescence_are_written_as_before():
    assert "autofluorescence" not in Families().model_dump(mode="json")
    both = Families(autofluorescence=Autofluorescence())
    assert Families.model_validate(both.model_dump()) == both
    with pytest.raises(ValidationError, match="rises from 0"):
        Autofluorescence(ratio=(2.0, 1.0))


def test_every_cell_has_its_number_in_the_mask_where_its_centre_lies():
    for seed in range(6):
        phantom = draw_phantom(seed, shape_zyx=SMALL)
        at = np.floor(phantom.centres_zyx + 0.5).astype(int)
        assert ((at >= 0) & (at < SMALL)).all()
        assert len(phantom.centres_zyx) == len(phantom.diameter_um) > 0
        # Where two centres share a voxel only the later can have its number there.
        _, first = np.unique(at[::-1], axis=0, return_index=True)
        last = len(at) - 1 - first
        np.testing.assert_array_equal(phantom.mask[tuple(at[last].T)], last + 1)
        assert phantom.mask.max() <= len(at)


def test_cells_are_bright_where_the_truth_says_and_nowhere_else():
    for kind in ("nuclei", "somata"):
        phantom = draw_phantom(5, shape_zyx=SMALL, voxel_um=(4.0, 1.8, 1.8), kind=kind, families=CLEAR)
        inside = phantom.voxels[phantom.mask > 0].astype(float)
        outside = phantom.voxels[phantom.mask == 0].astype(float)
        assert np.median(inside) > 2 * np.median(outside)
        at = tuple(np.floor(phantom.centres_zyx + 0.5).astype(int).T)
        assert (phantom.voxels[at] > 1.5 * np.median(outside)).mean() > 0.9


def test_masks_hold_the_volume_of_their_ellipsoids():
    grid = Grid((30, 60, 60), (1.0, 1.0, 1.0))
    centre = np.array([[15.0, 30.0, 30.0]])
    shapes = bodies(centre, np.array([20.0]), 1.8, np.random.default_rng(0))
    light, mask = np.zeros(grid.shape_zyx, np.float32), np.zeros(grid.shape_zyx, np.int32)
    paint(light, shapes, np.array([2.0]), grid, mask=mask)
    assert (mask == 1).sum() == pytest.approx(np.pi / 6 * 20**3, rel=0.03)
    assert light.max() == pytest.approx(2.0)
    np.testing.assert_allclose(np.argwhere(mask).mean(axis=0), centre[0], atol=0.1)


def test_no_two_places_are_nearer_than_allowed():
    random = np.random.default_rng(1)
    places, least = random.random((400, 3)) * 60, random.uniform(5, 9, 400)
    kept = keep_apart(places, least)
    off = np.linalg.norm(places[kept][:, None] - places[kept][None], axis=2)
    needed = (least[kept][:, None] + least[kept][None]) / 2
    assert (off + 1e9 * np.eye(len(off)) >= needed).all()
    # And none is left out without need: each dropped one is too near to one that was kept.
    near = np.linalg.norm(places[~kept][:, None] - places[kept][None], axis=2)
    assert (near < (least[~kept][:, None] + least[kept][None]) / 2).any(axis=1).all()


def test_real_nuclei_and_microglia_lie_inside_the_families():
    looks = [draw_parameters(Families(), np.random.default_rng(seed)) for seed in range(600)]
    nuclei = [look for look in looks if look.kind == "nuclei"]
    somata = [look for look in looks if look.kind == "somata"]

    def spans(part, name, low, high):
        values = np.array([getattr(look, name) for look in part])
        return (values < low).mean() > 0.02 and (values > high).mean() > 0.02

    assert spans(nuclei, "diameter_um", 6.0, 10.0)
    assert spans(nuclei, "amplitude", 0.5, 3.0)
    assert spans(somata, "diameter_um", 10.0, 20.0)
    assert spans(somata, "amplitude", 2.0, 12.0)
    planes = np.array([look.voxel_um[0] for look in looks])
    pixels = np.array([look.voxel_um[1] for look in looks])
    assert planes.min() < 4 < 6 < planes.max()
    assert pixels.min() < 1.62 < 1.8 < pixels.max()


def test_a_phantom_is_written_and_read_back(tmp_path):
    folder = write_random_phantom(tmp_path, 7, shape_zyx=SMALL)
    phantom = draw_phantom(7, shape_zyx=SMALL)
    volume = Volume.open(folder / "raw.zarr")
    np.testing.assert_array_equal(volume.read((0, 0, 0), SMALL), phantom.voxels)
    np.testing.assert_array_equal(Volume.open(folder / "mask.zarr").read((0, 0, 0), SMALL), phantom.mask)
    np.testing.assert_allclose(Points.read(folder / "centroids.csv").zyx, phantom.centres_zyx, atol=1e-3)
    assert json.loads((folder / "meta.json").read_text())["look"]["kind"] == volume.marker
    assert not (folder / "background.zarr").exists()
    with pytest.raises(CanvasError, match="exists already"):
        write_random_phantom(tmp_path, 7, shape_zyx=SMALL)
    families = Families(autofluorescence=Autofluorescence())
    two = write_random_phantom(tmp_path / "two", 7, shape_zyx=SMALL, families=families)
    background = draw_phantom(7, shape_zyx=SMALL, families=families).background
    np.testing.assert_array_equal(Volume.open(two / "background.zarr").read((0, 0, 0), SMALL), background)


def test_a_range_that_falls_is_refused():
    with pytest.raises(ValidationError, match="rises from 0"):
        Families(haze=(2.0, 1.0))
