"""Damage is found and named: manifests, missing and undecodable chunks, links, unfinished stores."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numcodecs
import numpy as np
import pytest
import zarr

from canvas_fm.data.store.checked_store import MANIFEST, CheckedStore, write_manifest
from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError, DamagedStore

SHAPE = (16, 32, 32)


@pytest.fixture
def ours(position_volume) -> Path:
    return position_volume(SHAPE, chunk_zyx=(8, 16, 16), shard_zyx=(8, 16, 16))[0]


@pytest.fixture
def foreign(tmp_path) -> Path:
    """A plain Zarr v2 array in Blosc, as zarr-python 2 wrote it."""
    path = tmp_path / "foreign.zarr"
    blosc = numcodecs.Blosc("zstd", 5, numcodecs.Blosc.SHUFFLE)
    array = zarr.create_array(
        path, shape=SHAPE, chunks=(8, 16, 16), dtype="uint16", zarr_format=2, compressors=blosc
    )
    array[...] = np.arange(1, 1 + np.prod(SHAPE)).reshape(SHAPE)
    return path


def open_foreign(path: Path, **options) -> Volume:
    return Volume.open(path, voxel_um=(1, 1, 1), **options)


def everything(volume: Volume) -> np.ndarray:
    return volume.read((0, 0, 0), volume.shape_zyx)


def flip(path: Path, at: int = -9, bit: int = 3) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    path.write_bytes(content)


def test_the_manifest_lists_every_file(ours):
    store = CheckedStore(ours)
    assert set(store.listed) == {
        str(path.relative_to(ours)) for path in ours.rglob("*") if path.is_file() and path.name != MANIFEST
    }
    assert store.verify_all() == 10
    assert Volume.open(ours).checksums


def test_a_changed_chunk_is_named(ours):
    flip(ours / "0/c/1/0/1")
    volume = Volume.open(ours)
    with pytest.raises(DamagedStore, match="does not match its checksum") as caught:
        everything(volume)
    assert (caught.value.array, caught.value.chunk) == ("0", "c/1/0/1")
    assert str(caught.value).startswith(f"{ours}: array '0', chunk 'c/1/0/1'")
    np.testing.assert_array_equal(volume.read((0, 0, 0), (8, 32, 16)).shape, (8, 32, 16))


@pytest.mark.parametrize("change", ["cut", "longer", "gone", "swapped", "renamed", "a folder"])
def test_no_change_to_a_chunk_is_silent(ours, change):
    chunk, other = ours / "0/c/0/0/0", ours / "0/c/1/1/1"
    content = chunk.read_bytes()
    if change == "cut":
        chunk.write_bytes(content[:-4])
    elif change == "longer":
        chunk.write_bytes(content + b"\0")
    elif change == "gone":
        chunk.unlink()
    elif change == "swapped":
        chunk.write_bytes(other.read_bytes())
        other.write_bytes(content)
    elif change == "renamed":
        chunk.rename(ours / "0/c/0/0/7")
    else:
        chunk.unlink()
        chunk.mkdir()
    with pytest.raises(DamagedStore, match="c/0/0/0"):
        Volume.open(ours).read_chunk((0, 0, 0))
    with pytest.raises(DamagedStore):
        CheckedStore(ours).verify_all()


def test_a_change_after_a_file_was_compared_is_seen_too(ours):
    volume = Volume.open(ours)
    everything(volume)
    flip(ours / "0/c/0/0/0")
    with pytest.raises(DamagedStore, match=r"c/0/0/0.*changed after it was written"):
        everything(volume)


def test_a_chunk_that_was_never_written_is_zero_and_one_that_appears_is_damage(tmp_path):
    with Volume.create(
        tmp_path / "a.zarr", SHAPE, voxel_um=(1, 1, 1), chunk_zyx=(8, 16, 16), shard_zyx=(8, 16, 16)
    ) as w:
        w.write((0, 0, 0), np.ones((8, 16, 16), np.uint16))
    volume = Volume.open(tmp_path / "a.zarr")
    assert everything(volume).sum() == 8 * 16 * 16
    chunk = tmp_path / "a.zarr/0/c/1/1/1"
    chunk.parent.mkdir(parents=True)
    shutil.copy(tmp_path / "a.zarr/0/c/0/0/0", chunk)
    with pytest.raises(DamagedStore, match="not in the list of checksums"):
        everything(Volume.open(tmp_path / "a.zarr"))


@pytest.mark.parametrize("name", ["zarr.json", "0/zarr.json", MANIFEST])
@pytest.mark.parametrize("change", ["flip", "gone", "empty", "space"])
def test_changed_metadata_refuses_to_open(ours, name, change):
    path = ours / name
    if change == "flip":
        flip(path, at=len(path.read_bytes()) // 2, bit=0)
    elif change == "gone":
        path.unlink()
    elif change == "empty":
        path.write_bytes(b"")
    else:
        path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(CanvasError):
        Volume.open(ours)


def test_attributes_and_manifest_demand_each_other(ours, tmp_path):
    without = shutil.copytree(ours, tmp_path / "without.zarr")
    (without / MANIFEST).unlink()
    with pytest.raises(DamagedStore, match="list of checksums is missing"):
        Volume.open(without)
    metadata = json.loads((ours / "zarr.json").read_text())
    del metadata["attributes"]["canvas_fm"]
    (ours / "zarr.json").write_text(json.dumps(metadata))
    with pytest.raises(DamagedStore, match="attributes 'canvas_fm' are missing"):
        Volume.open(ours)


def test_altered_attributes_are_damage(ours):
    metadata = json.loads((ours / "zarr.json").read_text())
    metadata["attributes"]["canvas_fm"]["window"][1] += 1
    (ours / "zarr.json").write_text(json.dumps(metadata, indent=2))
    with pytest.raises(DamagedStore, match=r"chunk 'zarr\.json'"):
        Volume.open(ours)


def test_an_unfinished_store_does_not_open(tmp_path):
    writer = Volume.create(tmp_path / "a.zarr", SHAPE, voxel_um=(1, 1, 1))
    writer.write((0, 0, 0), np.ones(SHAPE, np.uint16))
    with pytest.raises(CanvasError, match=r"a\.zarr was never finished"):
        Volume.open(tmp_path / "a.zarr")
    writer.close()
    assert everything(Volume.open(tmp_path / "a.zarr")).all()


def test_one_level_of_ours_is_not_opened_unchecked(ours):
    with pytest.raises(CanvasError, match="is one level of"):
        Volume.open(ours / "0", voxel_um=(1, 1, 1))


@pytest.mark.parametrize("case", ["our chunk", "our folder", "foreign chunk", "foreign folder", "metadata"])
def test_a_link_that_leaves_the_store_is_refused(ours, foreign, tmp_path, case):
    store = foreign if case.startswith("foreign") else ours
    inside = {
        "our chunk": "0/c/0/0/0",
        "our folder": "0/c",
        "foreign chunk": "0.0.0",
        "metadata": "zarr.json",
    }
    if case == "foreign folder":  # an image whose level lies elsewhere
        group = zarr.open_group(tmp_path / "image.zarr", mode="w", zarr_format=2)
        axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
        steps = [{"type": "scale", "scale": [1, 1, 1]}]
        levels = [{"path": "0", "coordinateTransformations": steps}]
        group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": levels}]
        (tmp_path / "image.zarr/0").symlink_to(foreign)
        store = tmp_path / "image.zarr"
    else:
        place = store / inside[case]
        place.rename(tmp_path / "elsewhere")
        place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DamagedStore, match="a link leads out of the store"):
        everything(open_foreign(store, follow_links=False))
    assert everything(open_foreign(store)).any()  # by default followed, as git-annex and DataLad need it


def test_a_link_inside_the_store_and_a_link_to_it_are_followed(foreign, tmp_path):
    expected = everything(open_foreign(foreign))
    (foreign / "0.0.0").rename(foreign / "moved")
    (foreign / "0.0.0").symlink_to("moved")
    (tmp_path / "link.zarr").symlink_to(foreign)
    np.testing.assert_array_equal(everything(open_foreign(tmp_path / "link.zarr")), expected)


def test_missing_chunks_of_a_foreign_store_are_counted(foreign):
    (foreign / "0.1.1").unlink()
    (foreign / "1.1.1").unlink()
    volume = open_foreign(foreign)
    assert not volume.checksums
    with pytest.raises(
        DamagedStore, match=r"as 2 of the array's 8 chunks are.*--missing-chunks empty"
    ) as caught:
        everything(volume)
    assert caught.value.chunk == "0.1.1"
    empty = everything(open_foreign(foreign, missing_chunks="empty"))
    assert not empty[:8, 16:, 16:].any()
    assert empty[:8, :16].all()


def test_missing_chunks_that_are_meant_to_be_empty_hold_the_fill_value(tmp_path):
    zarr.create_array(tmp_path / "a.zarr", shape=SHAPE, chunks=(8, 16, 16), dtype="int16", fill_value=-7)
    volume = open_foreign(tmp_path / "a.zarr", missing_chunks="empty")
    assert (everything(volume) == -7).all()
    assert not volume.read((-5, 0, 0), (5, 2, 2)).any()


def test_missing_is_damage_in_ours_even_if_empty_is_asked_for(ours):
    (ours / "0/c/0/0/0").unlink()
    with pytest.raises(DamagedStore, match="missing"):
        everything(Volume.open(ours, missing_chunks="empty"))


@pytest.mark.parametrize("change", ["cut", "longer", "empty", "header", "garbage"])
def test_what_shows_in_a_foreign_chunk_is_an_error(foreign, change):
    chunk = foreign / "1.0.1"
    content = chunk.read_bytes()
    chunk.write_bytes(
        {
            "cut": content[:-2],
            "longer": content + b"abc",
            "empty": b"",
            "header": content[:6] + bytes([content[6] ^ 1]) + content[7:],
            "garbage": b"hello world" * 50,
        }[change]
    )
    with pytest.raises(DamagedStore) as caught:
        everything(open_foreign(foreign))
    assert caught.value.chunk == "1.0.1"
    assert "--on-bad-chunk skip" in str(caught.value)


@pytest.mark.parametrize("codec", ["zstd", "gzip", "raw"])
def test_undecodable_chunks_of_other_codings(tmp_path, codec):
    codecs = {"zstd": [zarr.codecs.ZstdCodec()], "gzip": [zarr.codecs.GzipCodec()], "raw": None}
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=SHAPE, chunks=(8, 16, 16), dtype="uint16", compressors=codecs[codec]
    )
    array[...] = 9
    chunk = tmp_path / "a.zarr/c/1/1/0"
    chunk.write_bytes(chunk.read_bytes()[:-3])
    with pytest.raises(DamagedStore, match=r"chunk 'c/1/1/0': cannot be decoded"):
        everything(open_foreign(tmp_path / "a.zarr"))


def test_a_damaged_inner_chunk_of_a_foreign_shard_costs_only_itself(tmp_path):
    array = zarr.create_array(
        tmp_path / "a.zarr",
        shape=SHAPE,
        chunks=(8, 16, 16),
        shards=SHAPE,
        dtype="uint16",
        compressors=zarr.codecs.GzipCodec(),
    )
    array[...] = np.arange(1, 1 + np.prod(SHAPE)).reshape(SHAPE)
    flip(tmp_path / "a.zarr/c/0/0/0", at=40)
    with pytest.raises(DamagedStore, match=r"c/0/0/0 \(inner chunk 0/0/0\)"):
        everything(open_foreign(tmp_path / "a.zarr"))
    volume = open_foreign(tmp_path / "a.zarr", on_bad_chunk="skip")
    box = everything(volume)
    assert not box[:8, :16, :16].any()
    assert np.count_nonzero(box) == np.prod(SHAPE) - 8 * 16 * 16
    assert len(volume.bad_chunks) == 1


def test_skipped_chunks_are_zero_and_reported_once(ours, foreign, caplog):
    for path, bad in [(ours, "0/c/1/0/0"), (foreign, "1.0.0")]:
        caplog.clear()
        flip(path / bad, at=6)
        (path / bad.replace("1", "0", 1)).unlink()
        volume = open_foreign(path, on_bad_chunk="skip")
        for _ in range(2):
            box = everything(volume)
            assert not box[:, :16, :16].any()
            assert box[:, 16:].all()
            assert not volume.read_chunk((1, 0, 0)).any()
        assert len(volume.bad_chunks) == 2
        assert sum("read as zeros" in record.message for record in caplog.records) == 2


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"{",
        b"[]",
        b"3",
        b'{"zarr_format": 2}',
        b'{"zarr_format": 2, "shape": "abc"}',
        b"[" * 100_000,
    ],
)
@pytest.mark.parametrize("name", [".zarray", ".zattrs", "zarr.json", ".zgroup"])
def test_garbage_for_metadata_is_a_sentence(foreign, name, content):
    if name in ("zarr.json", ".zgroup"):
        (foreign / ".zarray").unlink()
    (foreign / name).write_bytes(content)
    if name == ".zattrs" and content.startswith(b'{"'):
        assert open_foreign(foreign).shape_zyx == SHAPE
        return
    with pytest.raises(CanvasError) as caught:
        open_foreign(foreign)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [16, -1, 32]},
        {"shape": [16, 32]},
        {"shape": [16, 32, "x"]},
        {"shape": [16.5, 32, 32]},
        {"chunks": [0, 16, 16]},
        {"chunks": [8, 16]},
        {"chunks": None},
        {"dtype": "<q9"},
        {"dtype": 5},
        {"compressor": {"id": "nonsense"}},
        {"order": "Q"},
        {"fill_value": "many"},
        {"zarr_format": 7},
        {"filters": [{"id": "nonsense"}]},
        {"dimension_separator": "#"},
    ],
)
def test_absurd_array_metadata_is_a_sentence(foreign, change):
    metadata = json.loads((foreign / ".zarray").read_text())
    (foreign / ".zarray").write_text(json.dumps(metadata | change))
    with pytest.raises(CanvasError) as caught:
        everything(open_foreign(foreign))
    assert "\n" not in str(caught.value)


def test_an_absurdly_large_shape_opens_and_its_missing_chunks_are_told(foreign):
    metadata = json.loads((foreign / ".zarray").read_text())
    (foreign / ".zarray").write_text(json.dumps(metadata | {"shape": [10**15, 10**15, 10**15]}))
    volume = open_foreign(foreign)
    with pytest.raises(DamagedStore, match="missing"):
        volume.read((10**14, 0, 0), (2, 2, 2))


def test_a_damaged_zip_is_a_sentence(ours, tmp_path):
    whole = Path(shutil.make_archive(str(tmp_path / "a"), "zip", ours))
    content = whole.read_bytes()
    for number, damaged in enumerate([content[:-30], content[:200], b"PK\5\6" + b"\xff" * 30]):
        path = tmp_path / f"{number}.zip"
        path.write_bytes(damaged)
        with pytest.raises(CanvasError):
            Volume.open(path)
    changed = bytearray(content)
    at = content.index(b"0/c/1/0/1") + 60
    changed[at] ^= 4
    whole.write_bytes(changed)
    with pytest.raises(DamagedStore):
        everything(Volume.open(whole))


def test_a_store_that_cannot_be_read_is_a_sentence(ours):
    chunk = ours / "0/c/0/0/0"
    chunk.unlink()
    os.mkfifo(chunk)
    with pytest.raises(DamagedStore, match="missing"):
        everything(Volume.open(ours))


def test_a_manifest_for_any_folder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/data.bin").write_bytes(b"123456789")
    (tmp_path / ".hidden").write_text("x")
    write_manifest(tmp_path, {"later.json": b"{}"})
    store = CheckedStore(tmp_path)
    assert store.listed == {"a/data.bin": (9, 0xCBF43926), "later.json": (2, store.listed["later.json"][1])}
    with pytest.raises(DamagedStore, match="missing"):
        store.verify_all()
    (tmp_path / "later.json").write_text("{}")
    assert store.verify_all() == 2
    (tmp_path / "extra").write_text("")
    with pytest.raises(DamagedStore, match="not in the list"):
        store.verify_all()
