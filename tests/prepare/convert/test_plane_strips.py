"""Uncompressed planes are read in strips: the same store as of whole planes, and the same refusals."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

import canvas_fm as cf
from canvas_fm.data.volume.tiff import plane_bytes
from canvas_fm.data.volume.tiff.planes import Planes
from canvas_fm.errors import CanvasError, DamagedStore
from canvas_fm.prepare.convert import convert as convert_module
from canvas_fm.prepare.convert import layout
from canvas_fm.prepare.convert.reading.plane_strips import PlaneStrips
from tests.prepare.planes import UM, bytes_of, voxels, write_planes

SHAPE = (9, 521, 70)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """So that strips hold 256 rows or 512, and the last one the odd rest."""
    monkeypatch.setattr(layout, "_SHARD_YX", 128)


@pytest.fixture
def strips(monkeypatch) -> list[int]:
    """First rows of what is read in strips."""
    firsts: list[int] = []
    read = PlaneStrips.read

    def noted(self, z, rows, first):
        firsts.append(first)
        read(self, z, rows, first)

    monkeypatch.setattr(PlaneStrips, "read", noted)
    return firsts


def sha256_of(out: Path) -> dict[str, str]:
    listed = json.loads((out / "canvas_fm_sources.json").read_text())["files"]
    return {name: each["sha256"] for name, each in listed.items()}


@pytest.mark.parametrize(
    ("dtype", "how"),
    [
        ("uint16", {"threads": 2}),
        ("uint16", {"ome": "0.4", "chunk_zyx": (8, 32, 32)}),
        ("uint16", {"labels": True, "chunk_zyx": (8, 48, 33)}),
        ("uint8", {"chunk_zyx": (4, 16, 35)}),
        ("float32", {"ome": "0.4"}),
    ],
)
def test_strips_make_the_bytes_that_whole_planes_make(tmp_path, strips, monkeypatch, dtype, how):
    planes = voxels(SHAPE, dtype)
    planes[:, 200:400] = 0  # which the window leaves out, block by block
    planes[:, 400:] //= 4  # so that it is another one without them
    source = write_planes(tmp_path / "planes", planes)
    options: dict[str, Any] = {"voxel_um": UM, "checksums": "sha256", "levels": 3, "threads": 1, **how}
    for folder in ("strips", "whole"):
        (tmp_path / folder).mkdir()
    cf.convert(source, tmp_path / "strips/a.zarr", **options)
    assert len(set(strips)) > 1
    strips.clear()
    monkeypatch.setattr(Planes, "plane_bytes", lambda *_: None)
    cf.convert(source, tmp_path / "whole/a.zarr", **options)
    assert not strips
    assert bytes_of(tmp_path / "strips/a.zarr") == bytes_of(tmp_path / "whole/a.zarr")


def test_the_checksum_of_strips_is_that_of_the_whole_file(tmp_path, strips):
    source = write_planes(tmp_path / "planes", voxels(SHAPE))
    with (source / "plane_0003.tif").open("ab") as file:
        file.write(b"behind the voxels")
    cf.convert(source, tmp_path / "a.zarr", voxel_um=UM, checksums="sha256", verify=True)
    assert strips
    hashes = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in source.iterdir()}
    assert sha256_of(tmp_path / "a.zarr") == hashes


def test_planes_of_all_kinds_in_one_folder_are_read_right(tmp_path, strips):
    """One compressed, one of the other byte order, one in strips of one row, one with a predictor; a slab of
    uncompressed planes before them is read in strips."""
    planes = voxels((40, 521, 70))
    source = write_planes(tmp_path / "planes", planes)
    kinds: list[dict[str, Any]] = [{"compression": "zlib"}, {"byteorder": ">"}, {"rowsperstrip": 1}]
    kinds.append({"compression": "zlib", "predictor": True})
    for z, kind in enumerate(kinds, 33):
        tifffile.imwrite(source / f"plane_{z:04d}.tif", planes[z], **kind)
    cf.convert(source, tmp_path / "a.zarr", voxel_um=UM, checksums="sha256", verify=True)
    assert strips.count(0) == 32
    np.testing.assert_array_equal(cf.Volume.open(tmp_path / "a.zarr")[:], planes)
    hashes = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in source.iterdir()}
    assert sha256_of(tmp_path / "a.zarr") == hashes


@pytest.mark.parametrize(
    ("dtype", "how"),
    [("uint16", {"byteorder": ">"}), ("float32", {"byteorder": ">"}), ("uint16", {"bigtiff": True})],
)
def test_planes_as_fiji_writes_them_and_bigtiffs_are_read_in_strips(tmp_path, strips, dtype, how):
    planes = voxels(SHAPE, dtype)
    (tmp_path / "planes").mkdir()
    for z, plane in enumerate(planes):
        tifffile.imwrite(tmp_path / f"planes/{z:04d}.tif", plane, **how)
    cf.convert(tmp_path / "planes", tmp_path / "a.zarr", voxel_um=UM, checksums="sha256", verify=True)
    np.testing.assert_array_equal(cf.Volume.open(tmp_path / "a.zarr")[:], planes)
    assert len(set(strips)) > 1
    files = (tmp_path / "planes").iterdir()
    assert sha256_of(tmp_path / "a.zarr") == {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files
    }


def test_of_two_channels_each_file_has_its_checksum(tmp_path, strips):
    planes = voxels(SHAPE)
    for channel in (0, 1):
        write_planes(tmp_path / "planes", planes + channel, f"C{channel:02d}_Z{{:04d}}.tif")
    cf.convert(tmp_path / "planes", tmp_path / "a.zarr", voxel_um=UM, checksums="sha256", verify=True)
    assert strips
    assert len(sha256_of(tmp_path / "a.zarr")) == 2 * len(planes)
    np.testing.assert_array_equal(cf.Volume.open(tmp_path / "a.zarr", c=1)[:], planes + 1)


@pytest.mark.parametrize("lost", [1, 40_000])
def test_a_plane_cut_short_is_named_or_read_as_zeros(tmp_path, lost):
    planes = voxels(SHAPE)
    source = write_planes(tmp_path / "planes", planes)
    file = source / "plane_0007.tif"
    file.write_bytes(file.read_bytes()[:-lost])
    with pytest.raises(DamagedStore, match=r"plane_0007\.tif"):
        cf.convert(source, tmp_path / "a.zarr", voxel_um=UM)
    cf.convert(source, tmp_path / "b.zarr", voxel_um=UM, on_bad_chunk="skip")
    assert not cf.Volume.open(tmp_path / "b.zarr")[7].any()
    np.testing.assert_array_equal(cf.Volume.open(tmp_path / "b.zarr")[8], planes[8])


def test_a_plane_of_another_size_or_type_is_named(tmp_path):
    planes = voxels(SHAPE)
    source = write_planes(tmp_path / "planes", planes)
    for n, wrong in enumerate((planes[7, :-1], planes[7].astype(np.uint8), np.stack([planes[7]] * 2))):
        tifffile.imwrite(source / "plane_0007.tif", wrong)
        with pytest.raises(CanvasError, match=r"plane_0007\.tif holds \d planes? of shape"):
            cf.convert(source, tmp_path / f"{n}.zarr", voxel_um=UM)


def test_a_file_that_ends_while_it_is_read_is_named(tmp_path, monkeypatch):
    source = write_planes(tmp_path / "planes", voxels(SHAPE))
    read = PlaneStrips.read

    def cut(self, z, rows, first):
        if first:
            (source / "plane_0002.tif").write_bytes(b"II")
        read(self, z, rows, first)

    monkeypatch.setattr(PlaneStrips, "read", cut)
    with pytest.raises(DamagedStore, match=r"plane_0002\.tif.*changed or could not be read"):
        cf.convert(source, tmp_path / "a.zarr", voxel_um=UM)
    assert not (tmp_path / "a.zarr").exists()


def test_nan_is_named_in_a_later_strip(tmp_path):
    planes = voxels(SHAPE, "float32")
    planes[3, 515, 60] = np.nan
    source = write_planes(tmp_path / "planes", planes)
    with pytest.raises(CanvasError, match=r"NaN or infinite values near \(3, 512, 0\)"):
        cf.convert(source, tmp_path / "a.zarr", voxel_um=UM)


def test_a_read_that_returns_less_than_asked_is_continued(tmp_path, monkeypatch):
    """As from a network folder, or above 2 GB."""
    planes = voxels(SHAPE)
    source, exactly = write_planes(tmp_path / "planes", planes), plane_bytes._exactly

    class Slow:
        def __init__(self, file: Any) -> None:
            self._file = file

        def readinto(self, into: memoryview) -> int:
            return int(self._file.readinto(into[:1000]))

    monkeypatch.setattr(plane_bytes, "_exactly", lambda file, into: exactly(Slow(file), into))
    cf.convert(source, tmp_path / "a.zarr", voxel_um=UM)
    np.testing.assert_array_equal(cf.Volume.open(tmp_path / "a.zarr")[:], planes)


def test_files_without_a_checksum_of_an_earlier_run_are_hashed_at_the_end(tmp_path, monkeypatch):
    source = write_planes(tmp_path / "planes", voxels(SHAPE))
    finish = convert_module.finish

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(convert_module, "finish", stopped)
    with pytest.raises(KeyboardInterrupt):
        cf.convert(source, tmp_path / "a.zarr", voxel_um=UM, checksums="none")
    monkeypatch.setattr(convert_module, "finish", finish)
    cf.convert(source, tmp_path / "a.zarr", voxel_um=UM, checksums="sha256", verify=True)
    assert len(sha256_of(tmp_path / "a.zarr")) == len(voxels(SHAPE))
