"""A data set is written, checked, read by name, and every fault of it is found at once."""

from __future__ import annotations

import io
import shutil
import tarfile

import numpy as np
import pytest
import tifffile

import canvas_fm as cf
from canvas_fm.cli import main
from canvas_fm.data.dataset.check import check_dataset
from canvas_fm.data.dataset.write_synthetic import write_dataset
from canvas_fm.data.points.boxes import read_boxes
from canvas_fm.data.points.points import Points
from canvas_fm.errors import CanvasError

SHAPE = (12, 48, 72)
REGIONS = [f"TRAIN/region_{k}" for k in (1, 2, 3)]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    room = tmp_path_factory.mktemp("sets")
    how = {"shape_zyx": SHAPE, "markers": ("NeuN", "IBA1"), "seed": 3, "progress": False}
    return write_dataset(room / "brains", **how), write_dataset(room / "brains.tar", **how)


def test_what_is_written_has_no_fault_in_a_folder_and_in_a_tar(written):
    for path in written:
        found = check_dataset(path, progress=False)
        assert found.faults == ()
        assert list(found.brains) == ["IBA1_phantom", "NeuN_phantom"]
        for brain in found.brains.values():
            assert (brain["shape_zyx"], brain["dtype"], brain["channels"]) == (list(SHAPE), "uint16", [1])
            assert sorted(brain["regions"]) == [*(f"TEST/region_{k}" for k in (4, 5, 6)), *REGIONS]


def test_brains_and_regions_are_opened_by_name(written, tmp_path):
    """The planes are the phantom's voxels; all regions together hold its cells, each once, in their boxes."""
    folder = written[0]
    (phantom,) = cf.write_phantom(
        tmp_path, shape_zyx=SHAPE, markers=["NeuN"], seed=3, progress=False
    ).values()
    truth, cells = cf.Volume.open(phantom / "raw.zarr"), Points.read(phantom / "centroids.csv")
    for root in written:
        for name in ("NeuN", "neun_phantom", "NeuN_phantom/TEST/region_5"):
            brain = cf.Volume.open(f"{root}:{name}")
            np.testing.assert_array_equal(brain.read((0, 0, 0), SHAPE), truth.read((0, 0, 0), SHAPE))
            assert (brain.marker, brain.name) == ("NeuN", "NeuN_phantom")
            assert brain.voxel_um == pytest.approx((4.0, 1.8, 1.8), rel=1e-4)
        parts = [Points.read(f"{root}:NeuN/region_{k}") for k in range(1, 7)]
        both = np.concatenate([part.zyx for part in parts])
        np.testing.assert_allclose(np.sort(both, axis=0), np.sort(cells.zyx, axis=0), atol=1e-3)
    labels = folder / "NeuN_phantom/label/TRAIN"
    (box,) = read_boxes(labels / "NeuN_phantom_region2_box.json")
    inside = Points.read(labels / "NeuN_phantom_region2_gt.csv").zyx
    assert len(inside)
    assert ((inside >= box[:3] - 0.5) & (inside < box[3:] - 0.5)).all()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("PV", "no brain is called 'PV' in .*; it holds IBA1_phantom, NeuN_phantom"),
        ("NeuN/TRAIN/region_4", "names no region of NeuN_phantom; it has TEST/region_4"),
    ],
)
def test_a_name_that_is_not_there_lists_those_that_are(written, name, message):
    with pytest.raises(CanvasError, match=message):
        Points.read(f"{written[0]}:{name}")


def test_a_number_in_both_splits_is_no_name_by_itself(written, tmp_path):
    root = shutil.copytree(written[0], tmp_path / "brains")
    labels = root / "NeuN_phantom/label"
    (labels / "TEST/NeuN_phantom_region5_gt.csv").rename(labels / "TEST/NeuN_phantom_region2_gt.csv")
    with pytest.raises(
        CanvasError, match="may be any of several regions of NeuN_phantom; it has TEST/region_2"
    ):
        Points.read(f"{root}:NeuN/region_2")
    assert len(Points.read(f"{root}:NeuN/TEST/region_2"))


def test_all_faults_are_found_at_once(written, tmp_path, capsys):
    root = shutil.copytree(written[0], tmp_path / "brains")
    image = root / "NeuN_phantom/image"
    planes = sorted(image.iterdir())
    planes[3].unlink()
    planes[5].write_bytes(b"")
    planes[6].write_bytes(planes[7].read_bytes()[:600])
    tifffile.imwrite(planes[8], np.zeros((48, 70), np.uint16))
    tifffile.imwrite(planes[9], np.zeros((48, 72), np.uint8))
    tifffile.imwrite(planes[10], np.zeros((2, 48, 72), np.uint16), photometric="minisblack")
    shutil.copy(planes[1], image / planes[1].name.replace("000010", "00010"))
    (image / "notes.tif").write_bytes(planes[1].read_bytes())
    (root / "NeuN_phantom/label/TRAIN/NeuN_phantom_region1_gt.csv").write_text(
        "x,y,z\n700,2,3\n1,2,3\n1,2,3\n"
    )
    (root / "NeuN_phantom/label/TRAIN/NeuN_phantom_region2_gt.csv").write_text("a,b\n1,2\n")
    shutil.rmtree(root / "IBA1_phantom/label")
    (root / "IBA1_phantom").rename(root / "Iba2_phantom")
    expected = [
        "1 plane is missing between",
        "is empty: 0 bytes",
        "000060_ch1.tiff': cannot be decoded (ValueError: it ends before",
        "has shape (48, 70), uint16",
        "has shape (48, 72), uint8",
        "are the same plane",
        "notes.tif is not named",
        "000100_ch1.tiff holds 2 planes; each file is one",
        "1 of 3 annotations lie outside",
        "1 of 3 annotations repeat the position of another",
        "region2_gt.csv:",
        "Iba2_phantom: the marker of its name is unknown",
        "Iba2_phantom: there are no annotations",
    ]
    faults = check_dataset(root, progress=False).faults
    for words in expected:
        assert any(words in fault for fault in faults), (words, faults)
    assert len(faults) == len(expected)
    assert main(["dataset", "check", str(root)]) == 1
    shown = capsys.readouterr()
    assert "are the same plane" in shown.out
    assert "13 faults" in shown.err


def test_the_verbs_write_and_check(tmp_path, capsys):
    words = ["dataset", "write", tmp_path / "a.tar", "--shape", 8, 32, 48, "--markers", "PV", "--regions", 1]
    assert main(list(map(str, words))) == 0
    assert main(["dataset", "check", str(tmp_path / "a.tar")]) == 0
    assert "PV_phantom" in capsys.readouterr().out
    assert main(["info", f"{tmp_path / 'a.tar'}:PV"]) == 0
    assert "8  32  48" in capsys.readouterr().out
    region = f"{tmp_path / 'a.tar'}:PV/TEST/region_2"
    assert main(["points", "convert", region, str(tmp_path / "region.csv")]) == 0
    assert len(Points.read(tmp_path / "region.csv")) == len(Points.read(region)) > 0
    with pytest.raises(CanvasError, match="exists already"):
        write_dataset(tmp_path / "a.tar", markers=("PV",))


def test_one_fault_is_not_called_faults(written, tmp_path, capsys):
    root = tmp_path / "one"
    shutil.copytree(written[0], root)
    next(root.glob("*/image/*.tiff")).write_bytes(b"")
    assert main(["dataset", "check", str(root)]) == 1
    assert f"{root} has 1 fault, listed above" in capsys.readouterr().err


@pytest.mark.parametrize("lost", [[2], [1, 4], [3, 4, 5]])
def test_a_gap_between_few_planes_is_a_fault_as_it_is_to_every_verb(tmp_path, lost):
    folder = tmp_path / "NeuN_1" / "image"
    folder.mkdir(parents=True)
    for z in set(range(7)) - set(lost):
        tifffile.imwrite(folder / f"1_2_{z}_ch0.tiff", np.zeros((4, 5), np.uint16))
    assert any("missing between" in fault for fault in check_dataset(tmp_path, progress=False).faults)
    with pytest.raises(CanvasError, match="missing between"):
        cf.Volume.open(folder, voxel_um=(4, 2, 2))


def member(name, content=b"", kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(content), kind, link
    return info, io.BytesIO(content)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (member("../out.tif", b"x"), "a path that leads out of it"),
        (member("/etc/out.tif", b"x"), "a path that leads out of it"),
        (member("NeuN_1/image/a.tif", kind=tarfile.SYMTYPE, link="/etc/passwd"), "a link to '/etc/passwd'"),
        (member("NeuN_1/image/a.tif", kind=tarfile.LNKTYPE, link="b.tif"), "a link to 'b.tif'"),
        (member("NeuN_1/image/a.tif", kind=tarfile.FIFOTYPE), "neither a plain file nor a folder"),
    ],
)
def test_an_archive_that_reaches_out_is_not_read(tmp_path, bad, message):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(*member("NeuN_1/image/b.tif", b"xx"))
        tar.addfile(*bad)
    for read in (check_dataset, lambda path: cf.Volume.open(path, voxel_um=(1, 1, 1))):
        with pytest.raises(CanvasError, match=message):
            read(tmp_path / "a.tar")


def test_a_cut_or_compressed_archive_is_a_sentence(written, tmp_path):
    (tmp_path / "cut.tar").write_bytes(written[1].read_bytes()[:70_000])
    with pytest.raises(CanvasError, match=r"is cut off|cannot be read as a tar"):
        check_dataset(tmp_path / "cut.tar")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.addfile(*member("b.tif", b"xx"))
    for name in ("a.tar.gz", "a.tar.gz:NeuN"):
        with pytest.raises(CanvasError, match="is compressed: nothing in it can be read by itself; unpack"):
            cf.Volume.open(tmp_path / name)


def test_a_data_set_in_a_lone_folder_is_found(written, tmp_path):
    """`tar cf brains.tar brains/` puts a folder before every name."""
    with tarfile.open(tmp_path / "packed.tar", "w") as archive:
        archive.add(written[0], arcname="canvas/")
    outer = tmp_path / "outer"
    outer.mkdir()
    (outer / "canvas").symlink_to(written[0])
    for root in (tmp_path / "packed.tar", outer):
        assert list(check_dataset(root, progress=False).brains) == ["IBA1_phantom", "NeuN_phantom"]
        assert cf.Volume.open(f"{root}:NeuN").shape_zyx == SHAPE
        assert len(Points.read(f"{root}:NeuN/TRAIN/region_1"))


def test_several_data_sets_and_other_archives_are_said_as_that(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "PV_1/image").mkdir(parents=True)
        tifffile.imwrite(tmp_path / name / "PV_1/image/1_1_000000_ch0.tiff", np.zeros((2, 2), np.uint16))
    with pytest.raises(CanvasError, match="holds data sets in a, b; give one of these folders"):
        check_dataset(tmp_path, progress=False)
    (tmp_path / "a.zip").touch()
    with pytest.raises(CanvasError, match=r"is no folder and no \.tar archive; unpack it first"):
        check_dataset(tmp_path / "a.zip", progress=False)
