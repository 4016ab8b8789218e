"""Checksums of the source files: which algorithm, by its name in each entry, and what `verify` compares."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

import canvas_fm as cf
from canvas_fm.errors import CanvasError, DamagedStore
from canvas_fm.prepare.convert.slab_progress import SlabWork
from tests.prepare.planes import UM, voxels, write_planes


@pytest.fixture
def planes(tmp_path):
    return write_planes(tmp_path / "planes", voxels()[:9])


def checksums(out: Path) -> list[dict[str, Any]]:
    """Entries of the source files without size and time."""
    listed = json.loads((out / "canvas_fm_sources.json").read_text())["files"]
    return [{k: v for k, v in each.items() if k not in ("bytes", "mtime_ns")} for each in listed.values()]


def test_the_checksum_of_sources_is_chosen_and_named_in_each_entry(planes, tmp_path, monkeypatch):
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(planes.iterdir())]
    cf.convert(planes, tmp_path / "a.zarr", voxel_um=UM, checksums="sha256", verify=True)
    assert checksums(tmp_path / "a.zarr") == [{"sha256": digest} for digest in digests]
    cf.convert(planes, tmp_path / "b.zarr", voxel_um=UM, checksums="none", verify=True)
    assert checksums(tmp_path / "b.zarr") == [{}] * len(digests)
    monkeypatch.setattr("canvas_fm.files.checksum._blake3", lambda: None)
    cf.convert(planes, tmp_path / "c.zarr", voxel_um=UM)
    assert checksums(tmp_path / "c.zarr") == checksums(tmp_path / "a.zarr")
    with pytest.raises(CanvasError, match="pip install blake3, or give sha256"):
        cf.convert(planes, tmp_path / "d.zarr", voxel_um=UM, checksums="blake3")


@pytest.mark.parametrize("algorithm", ["blake3", "sha256"])
def test_verify_names_a_source_that_was_changed_under_its_size_and_time(planes, tmp_path, algorithm):
    """A byte of the description, which no voxel shows."""
    cf.convert(planes, tmp_path / "a.zarr", voxel_um=UM, checksums=algorithm)
    file = planes / "plane_0007.tif"
    times, content = file.stat(), file.read_bytes()
    file.write_bytes(content.replace(b'{"shape"', b'{"Shape"'))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert file.read_bytes() != content
    with pytest.raises(DamagedStore, match=rf"plane_0007.tif.*has another {algorithm} than when"):
        cf.convert(planes, tmp_path / "a.zarr", voxel_um=UM, verify=True)


def test_a_conversion_that_an_older_version_began_keeps_its_sha256(tmp_path):
    """Parts of it hold the digest alone."""
    with SlabWork(tmp_path / "a.zarr", {"x": 1}) as work:
        (work.store / "0").mkdir(parents=True)
        work.write("c0-z000000", {}, {"files": {}, "sources": {"a.tif": "ab" * 32}, "bad_chunks": []})
        done = work.done("c0-z000000")
    assert done is not None
    assert done.sources == {"a.tif": {"sha256": "ab" * 32}}


def test_a_plane_that_is_a_link_to_nothing_is_to_be_fetched(planes, tmp_path):
    (planes / "plane_0003.tif").unlink()
    (planes / "plane_0003.tif").symlink_to("../.git/annex/objects/SHA256E-s9.tif")
    with pytest.raises(DamagedStore, match=r"plane_0003.tif.* is a link to .*fetch it: git annex get"):
        cf.convert(planes, tmp_path / "a.zarr", voxel_um=UM)


@pytest.mark.parametrize("given", ["a.zarr", "folder/../a.zarr", "link.zarr", "folder/link/a.zarr"])
def test_files_of_a_store_keep_their_places_however_its_path_is_given(planes, tmp_path, monkeypatch, given):
    """Many files of a store are named alike: `0`, `zarr.json`."""
    cf.convert(planes, tmp_path / "a.zarr", voxel_um=UM)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/link").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "link.zarr").symlink_to("a.zarr", target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    assert cf.convert(given, "b.zarr", verify=True).verified
    store = tmp_path / "a.zarr"
    files = {file.relative_to(store).as_posix() for file in store.rglob("*") if file.is_file()}
    assert set(json.loads((tmp_path / "b.zarr/canvas_fm_sources.json").read_text())["files"]) == files
