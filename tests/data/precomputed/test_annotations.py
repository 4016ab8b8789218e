"""Sharded precomputed annotations: read back exactly, by other readers too, and nothing is lost unnoticed."""

from __future__ import annotations

import gzip
import itertools
import json
import shutil

import numpy as np
import pytest

from canvas_fm.data.points.points import Points
from canvas_fm.data.points.tables import PointTable
from canvas_fm.data.precomputed.morton import morton_cells, morton_codes
from canvas_fm.data.precomputed.shards import Sharding, murmurhash3_x86_128, read_shards, write_shards
from canvas_fm.data.precomputed.spatial_levels import spatial_levels
from canvas_fm.data.precomputed.write_annotations import write_precomputed
from canvas_fm.errors import CanvasError

VOXEL_UM = (4.0, 1.8, 1.8)
SHAPE = (300, 900, 1200)


def table(count, seed=0):
    random = np.random.default_rng(seed)
    zyx = random.random((count, 3)) ** [1, 2, 1] * np.array(SHAPE) - 0.5
    columns = {  # neuroglancer's reader in Python finds an uint32 only where it comes first
        "id": random.integers(0, 2**32, count, dtype=np.uint64),
        "score": random.random(count).astype(np.float32),
        "region": random.choice(["", "CA1", "dentate gyrus", "µ"], count),
        "label": random.integers(-3, 4, count),
        "is_cell": random.random(count) < 0.5,
    }
    return PointTable(zyx.astype(np.float32).astype(np.float64), columns, {})


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder, points = tmp_path_factory.mktemp("points") / "a", table(5_000)
    info = write_precomputed(points, folder, voxel_um=VOXEL_UM, shape_zyx=SHAPE, limit=400)
    return folder, points, info


def test_points_are_read_back_in_their_order(written):
    folder, points, _ = written
    back = Points.read(folder)
    rounded = (points.zyx + 0.5).astype(np.float32).astype(np.float64) - 0.5
    assert np.array_equal(back.zyx, rounded)
    assert np.abs(back.zyx - points.zyx).max() < 1e-4
    assert {*back.columns} == {*points.columns}
    for name, values in points.columns.items():
        assert np.array_equal(back.columns[name], values), name
    assert back.meta == {"voxel_um": "4.0 1.8 1.8"}


def test_whole_and_half_voxels_are_exact_and_no_point_is_no_mistake(tmp_path):
    zyx = np.array([[8_388_000.0, 0.5, 19_999.5], [0.0, -7.0, 3.25]])
    write_precomputed(PointTable(zyx, {}, {}), tmp_path / "a", voxel_um=VOXEL_UM)
    assert np.array_equal(Points.read(tmp_path / "a").zyx, zyx)
    write_precomputed(PointTable(np.empty((0, 3)), {}, {}), tmp_path / "b", voxel_um=VOXEL_UM)
    assert len(Points.read(tmp_path / "b")) == 0
    with pytest.raises(CanvasError, match="exists already"):
        write_precomputed(PointTable(zyx, {}, {}), tmp_path / "a", voxel_um=VOXEL_UM)


def test_neuroglancers_own_reader_finds_the_same(written):
    """Its client's format, read through TensorStore: every cell of every level, and single ids."""
    reader_of = pytest.importorskip("neuroglancer.read_precomputed_annotations")
    folder, points, info = written
    reader = reader_of.AnnotationReader(f"file://{folder}/")
    kinds = {declared["id"]: place for place, declared in enumerate(info["properties"])}
    found = {}
    for level, index in zip(info["spatial"], reader.spatial, strict=True):
        chunk, lower = np.array(level["chunk_size"]), np.array(info["lower_bound"])
        for cell in np.ndindex(*level["grid_shape"]):
            for one in index.get(cell).result() or []:
                assert int(one.id) not in found
                assert np.all(one.point >= lower + np.array(cell) * chunk - 1e-3)
                assert np.all(one.point <= lower + (np.array(cell) + 1) * chunk + 1e-3)
                found[int(one.id)] = one.point, one.props[kinds["score"]]
    assert sorted(found) == list(range(1, len(points.zyx) + 1))
    at = np.array([found[number][0] for number in range(1, len(points.zyx) + 1)])
    assert np.array_equal(at, (points.zyx[:, ::-1] + 0.5).astype(np.float32))
    assert [found[number][1] for number in (1, 7, 5_000)] == points.columns["score"][[0, 6, 4_999]].tolist()
    for number in (1, 4096, 4097, 5_000):
        assert np.array_equal(reader.by_id[number].point, at[number - 1])
    assert reader.by_id.get(5_001).result() is None


def test_every_level_is_a_fair_sample_and_holds_no_more_than_its_limit():
    positions = table(50_000).zyx[:, ::-1].astype(np.float32)
    upper = np.array(SHAPE[::-1], np.float32)
    levels = list(spatial_levels(positions, np.full(3, -0.5, np.float32), upper, (1.8, 1.8, 4.0), limit=500))
    rows = np.concatenate([level.rows for level in levels])
    assert np.array_equal(np.sort(rows), np.arange(len(positions)))
    assert all(level.counts.max() < 500 + 4 * 500**0.5 for level in levels)
    shapes = [level.grid_shape for level in levels]
    assert shapes[0] == (1, 1, 1)
    assert all(np.all(np.array(a) <= b) for a, b in itertools.pairwise(shapes))
    # The dense end of the second axis is not thinned more than the rest of it.
    dense = positions[:, 1] < 90
    for level in levels[1:3]:
        share = np.isin(np.arange(len(positions)), level.rows)
        assert abs(share[dense].mean() / share[~dense].mean() - 1) < 0.2


def test_the_sample_is_fair_where_the_points_were_drawn_with_the_same_seed():
    """Layers by the first draws of a generator of seed 0, as in many simulations."""
    random = np.random.default_rng(0)
    count = 60_000
    positions = random.choice([20.0, 30.0, 70.0], (count, 1)) + np.zeros((1, 3))
    positions += random.normal(0, 3, (count, 3))
    upper = np.full(3, 100, np.float32)
    levels = list(
        spatial_levels(positions.astype(np.float32), np.zeros(3, np.float32), upper, (1, 1, 1), limit=500)
    )
    assert max(level.limit for level in levels[:-1]) < 600
    sample = positions[levels[0].rows]
    assert (sample[:, 0] > 50).mean() == pytest.approx(1 / 3, abs=0.08)


def test_points_at_one_place_end_in_the_last_level():
    positions = np.full((2_000, 3), 7, np.float32)
    levels = list(
        spatial_levels(positions, np.zeros(3, np.float32), np.full(3, 99, np.float32), (1, 1, 1), limit=10)
    )
    assert len(levels) <= 9
    assert len(levels[-1].rows) > 1_900
    assert sum(len(level.rows) for level in levels) == 2_000


@pytest.mark.parametrize("hash", ["identity", "murmurhash3_x86_128"])
@pytest.mark.parametrize("encoding", ["raw", "gzip"])
def test_shards_are_those_of_tensorstore(tmp_path, hash, encoding):
    """What we write it reads, and what it writes we read."""
    ts = pytest.importorskip("tensorstore")
    random = np.random.default_rng(1)
    keys = np.unique(random.integers(0, 2**63, 300, dtype=np.uint64))
    values = {int(key): random.bytes(int(key % 50)) for key in keys}
    sharding = Sharding(3, 4, 5, hash, encoding, encoding)

    def packed(rows):
        each = [values[int(keys[row])] for row in rows]
        each = [gzip.compress(value) for value in each] if encoding == "gzip" else each
        return b"".join(each), np.array([len(value) for value in each])

    def open_store(folder):
        base = {"driver": "file", "path": f"{folder}/"}
        kind = "neuroglancer_uint64_sharded"
        return ts.KvStore.open({"driver": kind, "metadata": sharding.to_json(), "base": base}).result()

    write_shards(tmp_path / "ours", sharding, keys, packed)
    store = open_store(tmp_path / "ours")
    for key, value in values.items():
        assert store[key.to_bytes(8, "big")] == value
    theirs = open_store(tmp_path / "theirs")
    with ts.Transaction() as all_at_once:
        for key, value in values.items():
            theirs.with_transaction(all_at_once)[key.to_bytes(8, "big")] = value
    assert dict(read_shards(tmp_path / "theirs", sharding)) == values
    assert {path.name for path in (tmp_path / "ours").iterdir()} == {
        path.name for path in (tmp_path / "theirs").iterdir()
    }


def test_the_hash_is_the_one_of_its_reference():
    mmh3 = pytest.importorskip("mmh3")
    keys = np.array([0, 1, 2**32, 2**64 - 1, 123_456_789_012_345], np.uint64)
    expected = [
        int.from_bytes(mmh3.hash_bytes(int(key).to_bytes(8, "little"), 0, x64arch=False)[:8], "little")
        for key in keys
    ]
    assert murmurhash3_x86_128(keys).tolist() == expected


def test_morton_codes_are_a_numbering_of_the_grid():
    grid = (5, 1, 9)
    cells = np.array(list(np.ndindex(*grid)))
    codes = morton_codes(cells, grid)
    assert len(set(codes.tolist())) == len(cells)
    assert np.array_equal(morton_cells(codes, grid), cells)
    assert morton_codes(np.array([[4, 0, 8]]), grid).tolist() == [0b1010000]


def test_lost_and_damaged_files_are_noticed(written, tmp_path):
    folder, _, info = written
    copy = tmp_path / "a"
    shutil.copytree(folder, copy)
    fine = copy / info["spatial"][1]["key"] / "0.shard"
    content = fine.read_bytes()
    fine.unlink()
    with pytest.raises(CanvasError, match="files are missing"):
        Points.read(copy)
    fine.write_bytes(content[: len(content) // 2])
    with pytest.raises(CanvasError, match="damaged or cut"):
        Points.read(copy)
    flipped = bytearray(content)
    flipped[len(content) // 3] ^= 64
    fine.write_bytes(flipped)
    with pytest.raises(CanvasError, match="damaged"):
        Points.read(copy)
    fine.write_bytes(content)
    (copy / "info").write_text(
        json.dumps(info | {"spatial": [{"key": "spatial0", "sharding": {"@type": "other"}}]})
    )
    with pytest.raises(CanvasError, match="expected a neuroglancer_uint64_sharded_v1"):
        Points.read(copy)


def test_text_of_many_blocks_is_one_enumeration(tmp_path):
    count = 150_000  # more than are sorted at once, and a text that the last block alone has
    region = np.array([f"region {row % 7}" for row in range(count)])
    region[-1] = "a rare"
    points = PointTable(np.zeros((count, 3)), {"region": region}, {})
    info = write_precomputed(points, tmp_path / "points", voxel_um=(4.0, 1.8, 1.8))
    assert info["properties"][0]["enum_labels"] == [
        "a rare",
        *(f"region {number}" for number in range(7)),
    ]
    assert Points.read(tmp_path / "points").columns["region"].tolist() == region.tolist()
