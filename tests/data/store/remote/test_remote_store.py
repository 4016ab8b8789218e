"""Remote stores: the same voxels as on the disk, only from settled addresses, and a sentence for all else."""

from __future__ import annotations

import pickle
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import trustme

from canvas_fm.data.crops.reader import CropReader
from canvas_fm.data.store.remote.pinned_https import Timeouts
from canvas_fm.data.store.remote.remote_store import Remote
from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import DamagedStore, Unreachable
from canvas_fm.inference.embed.point_crops import volume_identity
from tests.conftest import position_values
from tests.data.stores import QUICK, SHAPE, UM, foreign, open_remote, ours, sharded
from tests.support.object_store import NAME, Objects, reply, serving

STORES = {
    "ours": ours,
    "chunks": foreign,
    "shards": sharded,
    "v2": lambda folder: foreign(folder, zarr_format=2),
}


@pytest.mark.parametrize("versions", [True, False])
@pytest.mark.parametrize("make", STORES.values(), ids=STORES)
def test_a_remote_store_reads_as_on_the_disk(
    objects: Objects, tmp_path: Path, make: Callable, versions: bool
):
    voxels = make(tmp_path / "brain.zarr")
    objects.versions = versions
    near, far = Volume.open(tmp_path / "brain.zarr", voxel_um=UM), open_remote(objects)
    assert (far.name, far.shape_zyx, far.voxel_um) == (near.name, near.shape_zyx, near.voxel_um)
    assert far.checksums == near.checksums
    assert far.window == near.window
    np.testing.assert_array_equal(far.read((0, 0, 0), SHAPE), voxels)
    np.testing.assert_array_equal(far.read((-3, 20, 41), (9, 30, 30)), near.read((-3, 20, 41), (9, 30, 30)))
    points = np.random.default_rng(0).uniform((0, 0, 0), SHAPE, (12, 3))
    crops = [CropReader(volume, (8, 16, 16), cache_bytes=0).read_points(points) for volume in (near, far)]
    np.testing.assert_array_equal(*crops)


def test_of_a_foreign_shard_only_the_chunks_asked_for_are_fetched(objects: Objects, tmp_path: Path):
    voxels = sharded(tmp_path / "brain.zarr")
    volume = open_remote(objects)
    del objects.asked[:]
    np.testing.assert_array_equal(volume.read((2, 3, 4), (3, 3, 3)), voxels[2:5, 3:6, 4:7])
    assert [(method, span is not None) for method, _, span in objects.asked] == [
        ("HEAD", False),
        ("GET", True),  # the index
        ("GET", True),
    ]


def test_each_file_is_fetched_once_for_a_read(objects: Objects, tmp_path: Path):
    ours(tmp_path / "brain.zarr")
    open_remote(objects).read((0, 0, 0), SHAPE)
    paths = [path for _, path, _ in objects.asked]
    assert len(paths) == len(set(paths))


def test_no_name_is_looked_up_and_the_host_is_asked_by_its_name(
    objects: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    ours(tmp_path / "brain.zarr")

    def look_up(*_: object, **__: object) -> None:
        raise AssertionError("a name was looked up")

    for name in ("getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, look_up)
    open_remote(objects).read((0, 0, 0), (2, 2, 2))
    assert objects.hosts == {f"{NAME}:{objects.port}"}


def test_the_next_address_is_tried_where_one_does_not_answer(objects: Objects, tmp_path: Path):
    voxels = ours(tmp_path / "brain.zarr")
    with socket.socket() as closed:  # bound and not listening
        closed.bind(("127.0.0.9", objects.port))
        files = Remote(objects.address("brain.zarr"), ["127.0.0.9", "127.0.0.1"], QUICK)
        np.testing.assert_array_equal(Volume.open(files).read((0, 0, 0), SHAPE), voxels)


def test_pickled_it_goes_to_the_same_addresses(objects: Objects, tmp_path: Path):
    voxels = ours(tmp_path / "brain.zarr")
    again = pickle.loads(pickle.dumps(open_remote(objects)))
    np.testing.assert_array_equal(again.read((0, 0, 0), SHAPE), voxels)


def test_a_missing_chunk_follows_the_rule_of_the_volume(objects: Objects, tmp_path: Path):
    voxels = foreign(tmp_path / "brain.zarr")
    (tmp_path / "brain.zarr/c/0/0/0").unlink()
    with pytest.raises(DamagedStore, match=r"chunk 'c/0/0/0': missing.*--missing-chunks empty"):
        open_remote(objects).read((0, 0, 0), SHAPE)
    voxels[:8, :16, :16] = 0
    empty = open_remote(objects, missing_chunks="empty")
    np.testing.assert_array_equal(empty.read((0, 0, 0), SHAPE), voxels)


def test_a_chunk_that_our_manifest_names_is_never_missing(objects: Objects, tmp_path: Path):
    ours(tmp_path / "brain.zarr")
    objects.faults["0/c/0/0/0"] = 404
    with pytest.raises(DamagedStore, match="missing"):
        open_remote(objects, missing_chunks="empty").read((0, 0, 0), (1, 1, 1))


@pytest.mark.parametrize(
    ("status", "passing", "times", "said"),
    [
        (403, False, 1, "forbids it \\(403\\)"),
        (401, False, 1, "forbids it \\(401\\)"),
        (400, False, 1, "answers 400"),
        (301, False, 1, "redirects \\(301 to elsewhere.test\\), which is not followed"),
        (307, False, 1, "redirects \\(307 to elsewhere.test\\), which is not followed"),
        (500, True, 3, "answers 500; try again later"),
        (503, True, 3, "answers 503; try again later"),
        (429, True, 3, "answers 429; try again later"),
    ],
)
@pytest.mark.parametrize("make", [foreign, sharded])
def test_an_answer_that_is_not_the_file_is_never_read_as_zeros(
    objects: Objects, tmp_path: Path, make: Callable, status: int, passing: bool, times: int, said: str
):
    make(tmp_path / "brain.zarr")
    volume = open_remote(objects, missing_chunks="empty", on_bad_chunk="skip")
    objects.faults["c/0/0/0"] = status
    del objects.asked[:]
    with pytest.raises(Unreachable, match=said) as found:
        volume.read((0, 0, 0), (4, 4, 4))
    assert found.value.passing == passing
    assert len(objects.asked) == times
    assert "secret" not in str(found.value)
    assert not volume.bad_chunks
    np.testing.assert_array_equal(
        volume.read((20, 40, 40), (2, 2, 2)), position_values(SHAPE)[20:22, 40:42, 40:42]
    )


def test_metadata_that_is_forbidden_is_not_missing_either(objects: Objects, tmp_path: Path):
    ours(tmp_path / "brain.zarr")
    objects.faults["canvas_fm_manifest.json"] = 403
    with pytest.raises(Unreachable, match="say so of missing files too"):
        open_remote(objects)


def test_a_fault_that_passes_is_not_noticed(objects: Objects, tmp_path: Path):
    voxels = foreign(tmp_path / "brain.zarr")
    calls: list[str] = []

    def twice_wrong(handler, content: bytes) -> None:
        calls.append(handler.path)
        if len(calls) == 1:
            return reply(handler, 503, b"busy")
        if len(calls) == 2:
            handler.close_connection = True
            return reply(handler, 200, content[:10], length=len(content))
        reply(handler, 200, content)

    objects.faults["c/1/0/0"] = twice_wrong
    np.testing.assert_array_equal(open_remote(objects).read((0, 0, 0), SHAPE), voxels)
    assert len(calls) == 3


def waits_for(count: int) -> Callable:
    """A file that is sent when so many of them were asked for."""
    together = threading.Barrier(count)

    def wait(handler, content: bytes) -> None:
        together.wait(5)
        reply(handler, 200, content)

    return wait


def test_connections_that_were_closed_meanwhile_are_opened_again(objects: Objects, tmp_path: Path):
    voxels = foreign(tmp_path / "brain.zarr")
    volume = open_remote(objects)
    objects.faults = dict.fromkeys((f"c/{z}/0/0" for z in range(5)), waits_for(5))
    volume.read((0, 0, 0), (40, 4, 4))  # over five connections, more than there are attempts
    objects.hang_up()
    np.testing.assert_array_equal(volume.read((0, 40, 40), (4, 4, 4)), voxels[:4, 40:44, 40:44])


def test_damage_that_is_skipped_hides_no_fault_of_the_host(objects: Objects, tmp_path: Path):
    sharded(tmp_path / "brain.zarr")
    (tmp_path / "brain.zarr/c/0/0/0").unlink()
    volume = open_remote(objects, on_bad_chunk="skip")

    def busy(handler, content: bytes) -> None:
        reply(handler, 200 if handler.command == "HEAD" else 503, content)

    objects.faults["c/1/0/0"] = busy
    with pytest.raises(Unreachable, match="answers 503"):
        volume.read((0, 0, 0), (20, 4, 4))


@pytest.mark.parametrize("reader", ["box", "crops"])
def test_chunks_are_fetched_beside_each_other(objects: Objects, tmp_path: Path, reader: str):
    voxels = foreign(tmp_path / "brain.zarr")
    volume = open_remote(objects, Timeouts(attempts=1))
    objects.faults = dict.fromkeys((f"c/{z}/0/0" for z in range(3)), waits_for(3))
    if reader == "box":
        np.testing.assert_array_equal(volume.read((0, 0, 0), (24, 4, 4)), voxels[:24, :4, :4])
    else:
        starts = np.array([[0, 0, 0], [8, 0, 0], [16, 0, 0]])
        crops = CropReader(volume, (8, 4, 4)).read(starts)
        np.testing.assert_array_equal(np.concatenate(list(crops)), voxels[:24, :4, :4])


@pytest.mark.parametrize("make", [foreign, sharded, ours])
def test_a_store_that_changes_while_it_is_open_is_damaged(objects: Objects, tmp_path: Path, make: Callable):
    make(tmp_path / "brain.zarr")
    volume = open_remote(objects)
    volume.read((0, 0, 0), (4, 4, 4))
    (file,) = tmp_path.glob("brain.zarr/**/c/0/0/0")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert volume.remote is not None
    volume.remote._held._values.clear()  # as if others had been read since
    with pytest.raises(DamagedStore, match="another file than before"):
        volume.read((0, 0, 0), (4, 4, 4))


def test_a_flipped_byte_in_transit_is_damage_in_what_we_wrote(objects: Objects, tmp_path: Path):
    ours(tmp_path / "brain.zarr")

    def flip(handler, content: bytes) -> None:
        reply(handler, 200, content[:50] + bytes([content[50] ^ 1]) + content[51:])

    objects.faults["0/c/0/0/0"] = flip
    with pytest.raises(DamagedStore, match="does not match its checksum"):
        open_remote(objects).read((0, 0, 0), (4, 4, 4))


@pytest.mark.parametrize("case", ["another name", "another authority"])
def test_a_wrong_certificate_is_refused_at_once(
    tmp_path: Path, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch, case: str
):
    ours(tmp_path / "brain.zarr")
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    signs, name = (authority, "other.test") if case == "another name" else (trustme.CA(), NAME)
    with serving(tmp_path, signs, name) as objects:
        with pytest.raises(Unreachable, match="certificate is refused") as found:
            open_remote(objects)
        assert not found.value.passing
        assert not objects.asked


def test_the_certificate_of_an_address_is_for_the_address(
    tmp_path: Path, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
):
    voxels = ours(tmp_path / "brain.zarr")
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    with serving(tmp_path, authority, "127.0.0.1") as objects:
        files = Remote(f"https://127.0.0.1:{objects.port}/brain.zarr", ["127.0.0.1"], QUICK)
        np.testing.assert_array_equal(Volume.open(files).read((0, 0, 0), SHAPE), voxels)


def test_a_remote_copy_of_what_we_wrote_is_the_same_volume_and_foreign_ones_differ(
    objects: Objects, tmp_path: Path
):
    ours(tmp_path / "brain.zarr")
    assert volume_identity(open_remote(objects)) == volume_identity(Volume.open(tmp_path / "brain.zarr"))
    named = []
    for name in ("a.zarr", "b.zarr"):
        foreign(tmp_path / name)
        files = Remote(objects.address(name), ["127.0.0.1"], QUICK)
        named.append(volume_identity(Volume.open(files, voxel_um=UM)))
    assert named[0] != named[1]
