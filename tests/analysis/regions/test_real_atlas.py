"""Annotations and registrations as their tools wrote them."""

from __future__ import annotations

import csv
import shutil

import numpy as np
import pytest
import tifffile

from canvas_fm.analysis.regions.atlas_positions import place
from canvas_fm.analysis.regions.cells_per_region import count_regions, region_volumes
from canvas_fm.analysis.regions.read_atlas import open_atlas
from canvas_fm.data.points.points import Points
from canvas_fm.errors import CanvasError

pytest.importorskip("nrrd")


@pytest.fixture(scope="module")
def folder(real_data):
    return real_data / "atlas"


@pytest.fixture(scope="module")
def ccf(folder):
    return open_atlas(
        folder / "ccf_100um" / "annotation_100.nrrd",
        table=folder / "ccf_25um" / "allen2017_colours.csv",
        atlas_orientation="asl",
    )


@pytest.fixture(scope="module")
def cells(ccf):
    """Ten thousand positions in voxels of 10 µm, uniform over the annotation's tissue."""
    random = np.random.default_rng(0)
    at = np.argwhere(ccf.labels > 0)
    at = at[random.integers(0, len(at), 10_000)]
    return (at + random.uniform(0.01, 0.99, at.shape)) * 10 - 0.5


def test_the_annotation_is_counted_voxel_by_voxel(ccf, cells):
    assert ccf.voxel_um == (100.0, 100.0, 100.0)
    table = count_regions(Points(cells), ccf, voxel_um=(10, 10, 10)).table()
    label = ccf.labels[tuple(((cells + 0.5) // 10).astype(int).T)]
    ids, voxels = np.unique(ccf.labels, return_counts=True)
    both = table["hemisphere"] == "both"
    assert table["own_volume_mm3"][both].sum() == pytest.approx((ccf.labels > 0).sum() * 1e-3)
    for region in np.unique(label)[::40]:
        (row,) = np.flatnonzero(both & (table["id"] == region))
        assert table["own_count"][row] == (label == region).sum()
        assert table["own_volume_mm3"][row] == pytest.approx(voxels[ids == region][0] * 1e-3)


def test_hemispheres_and_roll_up_are_independent_sums(ccf, cells, folder, tmp_path):
    """The real table has no tree: every region becomes part of one of seven, these of one."""
    groups, root = 2_000_000_000, 1_999_999_999
    lines = ["id,name,parent_structure_id", f"{root},everything,"]
    lines += [f"{groups + rest},group {rest},{root}" for rest in range(7)]
    ids = np.unique(ccf.labels[ccf.labels > 0]).tolist()
    lines += [f"{one},region {one},{groups + one % 7}" for one in ids]
    (tmp_path / "tree.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    atlas = open_atlas(
        folder / "ccf_100um" / "annotation_100.nrrd", table=tmp_path / "tree.csv", atlas_orientation="asl"
    )
    table = count_regions(Points(cells), atlas, voxel_um=(10, 10, 10)).table()
    at = ((cells + 0.5) // 10).astype(int)
    of, left = ccf.labels[tuple(at.T)], at[:, 2] < ccf.labels.shape[2] / 2  # asl: x begins at the left
    voxel_left = np.arange(ccf.labels.shape[2]) < ccf.labels.shape[2] / 2
    for side, mask, voxels in (
        ("both", np.ones(len(of), bool), np.ones_like(voxel_left)),
        ("left", left, voxel_left),
        ("right", ~left, ~voxel_left),
    ):
        part = ccf.labels[:, :, voxels]
        for rest in range(7):
            (row,) = np.flatnonzero((table["id"] == groups + rest) & (table["hemisphere"] == side))
            assert table["count"][row] == (mask & (of % 7 == rest)).sum()
            inside = (part > 0) & (part % 7 == rest)
            assert table["volume_mm3"][row] == pytest.approx(inside.sum() * 1e-3)
            assert table["own_count"][row] == 0
        (row,) = np.flatnonzero((table["id"] == root) & (table["hemisphere"] == side))
        assert table["count"][row] == mask.sum()


@pytest.mark.slow
def test_the_same_cells_in_the_annotation_of_other_axes(ccf, cells, folder):
    """Both headers say the same axes. By the orientations four fifths lie in the same region; without them
    the points are refused."""
    fine = open_atlas(
        folder / "ccf_25um" / "annotation_25_reoriented_2017.nrrd",
        table=folder / "ccf_25um" / "allen2017_colours.csv",
        atlas_orientation="lpi",
    )
    size = (10.0, 10.0, 10.0)
    coarse = ccf.tree.ids[place(ccf, cells, size).row]
    shape = [10 * size for size in ccf.labels.shape]
    same = fine.tree.ids[place(fine, cells, size, orientation="asl", shape_zyx=shape).row] == coarse
    assert same.mean() > 0.75
    with pytest.raises(CanvasError, match="axes look swapped: reading them as"):
        place(fine, cells, size)


def test_axes_in_another_order_are_refused(ccf, cells):
    with pytest.raises(CanvasError, match="axes look swapped: reading them as"):
        place(ccf, cells[:, [2, 0, 1]], (10.0, 10.0, 10.0))


def test_a_real_folder_without_annotation_and_fields_is_refused(folder):
    with pytest.raises(CanvasError, match=r"lacks registered_atlas\.tiff, deformation_field_0\.tiff"):
        open_atlas(folder / "brainreg_100um")


@pytest.fixture(scope="module")
def section(folder):
    """One oblique section, so 2D, in the atlas' resolution."""
    table = folder / "ccf_25um" / "allen2017_colours.csv"
    return open_atlas(folder / "brainglobe_registration_section", table=table)


def test_areas_of_a_real_section_are_those_that_the_tool_wrote(folder, section):
    """brainglobe-registration's table calls label 2 left; to BrainGlobe's atlases, and here, 1 is."""
    areas = region_volumes(section) / 0.025  # planes of 25 µm
    row = {region.name: at for at, region in enumerate(section.tree.regions)}
    compared = 0
    path = folder / "brainglobe_registration_section" / "areas.csv"
    with open(path, newline="", encoding="utf-8") as file:
        for theirs in csv.DictReader(file):
            if (name := theirs["structure_name"]) in row:
                sides = float(theirs["right_area_mm2"]), float(theirs["left_area_mm2"])
                assert areas[row[name], 1:] == pytest.approx(sides, abs=1e-6), name
                compared += 1
    assert compared > 150


def test_a_real_section_without_names_is_refused(folder, tmp_path):
    names = tmp_path / "names.csv"
    names.write_text("id,name\n997,root\n", encoding="utf-8")
    with pytest.raises(CanvasError, match="labels have no name in the table of regions"):
        open_atlas(folder / "brainglobe_registration_section", table=names)


def test_hemispheres_of_a_real_registration(folder, tmp_path):
    """Points of the right of the sample are right by the folder's own hemispheres: high x is left."""
    real = folder / "brainreg_100um"
    shutil.copytree(real, tmp_path / "reg")
    sides = tifffile.imread(real / "registered_hemispheres.tiff")
    inside = (sides > 0).astype(np.uint32)
    tifffile.imwrite(tmp_path / "reg" / "registered_atlas.tiff", inside)
    (tmp_path / "names.csv").write_text("id,name\n1,brain\n", encoding="utf-8")
    atlas = open_atlas(tmp_path / "reg", table=tmp_path / "names.csv", atlas_voxel_um=(100, 100, 100))
    at = np.argwhere(inside)[::501]
    side = place(atlas, at.astype(float), (100.0, 100.0, 100.0)).side
    assert np.array_equal(side, sides[tuple(at.T)])
    assert at[side == 1, 2].mean() > at[side == 2, 2].mean()
