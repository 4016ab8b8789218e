"""Tiles cut out of a known volume at known errors are put back where they were."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from scipy.ndimage import gaussian_filter, shift

import canvas_fm as cf
from canvas_fm.cli import main
from canvas_fm.errors import CanvasError
from canvas_fm.prepare.convert_flags import StitchOptions
from canvas_fm.prepare.stitch.fuse import FusedTiles
from canvas_fm.prepare.stitch.offsets import Pair, find_shift, solve, unplaced
from canvas_fm.prepare.stitch.tiles import Tile, find_tiles
from tests.prepare.planes import bytes_of
from tests.support.dask_cluster import cluster_of_threads

UM = (4.0, 2.0, 2.0)
TILE, STEP = (10, 96, 96), 72
ERRORS = {(0, 0): (0, 0, 0), (0, 1): (1, -4, 3), (1, 0): (-1, 5, 2), (1, 1): (0, 3, -6)}  # z, y, x


@pytest.fixture(scope="module")
def scene():
    """Cells of a voxel or two on a slow background, 24 planes of 200 × 200."""
    random = np.random.default_rng(0)
    spots = gaussian_filter((random.random((24, 200, 200)) > 0.998).astype(np.float32), (0.8, 1.5, 1.5))
    slow = gaussian_filter(random.random((24, 200, 200)).astype(np.float32), 20)
    return (200 + 30_000 * spots + 2_000 * slow).astype(np.uint16)


def write_tiles(folder, scene, errors=ERRORS, shading=None):
    """Tiles whose voxels lie `error` away from where their folder says, in tenths of a micrometre."""
    places = {}
    for (row, column), error in errors.items():
        start = np.array((6, 12 + row * STEP, 12 + column * STEP)) + error
        y, x = (int(n * STEP * UM[1] * 10) for n in (row, column))
        tile = folder / f"{x:06d}" / f"{x:06d}_{y:06d}"
        tile.mkdir(parents=True)
        box = scene[tuple(slice(a, a + n) for a, n in zip(start, TILE, strict=True))]
        if shading is not None:
            box = np.rint(box * shading).astype(np.uint16)
        for z, plane in enumerate(box):
            tifffile.imwrite(tile / f"{z * 40:06d}.tiff", plane)
        places[tile.name] = tuple(int(n) for n in start)
    return places


def test_tiles_go_back_to_their_place_and_the_volume_is_the_scene(scene, tmp_path):
    true = write_tiles(tmp_path / "tiles", scene)
    done = cf.stitch(
        tmp_path / "tiles", tmp_path / "a.zarr", voxel_um=UM, ramp=16, verify=True, progress=False
    )
    names = list(true)
    for name in names[1:]:
        found = np.subtract(done.positions_zyx[name], done.positions_zyx[names[0]])
        np.testing.assert_array_equal(found, np.subtract(true[name], true[names[0]]))
    assert (done.overlaps, done.untrusted, done.unplaced) == (6, (), ())
    low, high = (end(list(true.values()), axis=0) for end in (np.min, np.max))
    brain = cf.Volume.open(tmp_path / "a.zarr")
    assert (brain.shape_zyx, brain.voxel_um) == (tuple(high - low + TILE), UM)
    part = brain.read((0, 0, 0), brain.shape_zyx)
    expected = scene[tuple(slice(a, a + n) for a, n in zip(low, brain.shape_zyx, strict=True))]
    covered = part > 0
    assert covered.mean() > 0.75
    np.testing.assert_array_equal(part[covered], expected[covered])
    assert (tmp_path / "a.stitch.png").stat().st_size > 1000
    pairs = json.loads((tmp_path / "a.stitch.json").read_text())["pairs"]
    assert all(pair["used"] for pair in pairs)
    assert min(pair["correlation"] for pair in pairs) > 0.7
    again = cf.stitch(
        tmp_path / "tiles", tmp_path / "b.zarr", voxel_um=UM, positions=tmp_path / "a.positions.csv",
        keep_positions=True, ramp=16, progress=False,
    )  # fmt: skip
    assert list(again.positions_zyx.values()) == [
        tuple(np.subtract(place, np.min(list(done.positions_zyx.values()), axis=0)))
        for place in done.positions_zyx.values()
    ]
    np.testing.assert_array_equal(cf.Volume.open(tmp_path / "b.zarr").read((0, 0, 0), part.shape), part)


def test_shading_of_tiles_is_divided_out_before_they_are_blended(scene, tmp_path):
    """By a flat image exactly; an estimate comes from the planes of all tiles."""
    y, x = np.mgrid[-1 : 1 : TILE[1] * 1j, -1 : 1 : TILE[2] * 1j]
    shading = (1 - 0.3 * (y - 0.2) ** 2) * (1 - 0.3 * (x + 0.3) ** 2)
    np.save(tmp_path / "flat.npy", 20_000 * shading / shading.mean())
    np.save(tmp_path / "dark.npy", np.zeros(TILE[1:]))
    true = write_tiles(tmp_path / "tiles", scene, shading=shading / shading.mean())
    how = {"voxel_um": UM, "ramp": 16, "progress": False}
    flat = {"flat": tmp_path / "flat.npy", "dark": tmp_path / "dark.npy"}
    done = cf.stitch(tmp_path / "tiles", tmp_path / "a.zarr", **how, **flat)
    low = np.min(list(true.values()), axis=0)
    part = cf.Volume.open(tmp_path / "a.zarr").read((0, 0, 0), done.conversion.shape_zyx)
    expected = scene[tuple(slice(a, a + n) for a, n in zip(low, part.shape, strict=True))]
    covered = part > 0
    assert covered.mean() > 0.75
    np.testing.assert_allclose(part[covered], expected[covered].astype(float), atol=1.5)
    assert (tmp_path / "a.corrections.png").is_file()
    cf.stitch(tmp_path / "tiles", tmp_path / "b.zarr", **how, flat_field=True, destripe=True)
    (numbers,) = json.loads((tmp_path / "b.corrections.json").read_text()).values()
    assert numbers["shading, darkest to brightest"][0] < 0.9
    assert "stripes along x, dB removed" in numbers
    with pytest.raises(CanvasError, match="was made from another source or with other options"):
        cf.stitch(tmp_path / "tiles", tmp_path / "a.zarr", **how)


def test_workers_blend_the_bytes_that_one_process_blends(scene, tmp_path, monkeypatch, caplog):
    """Also where paths are relative, a table places the tiles and their planes are corrected."""
    write_tiles(tmp_path / "tiles", scene)
    how = {"voxel_um": UM, "progress": False, "chunk_zyx": (4, 32, 32), "flat_field": True, "flat_degree": 2}
    done = cf.stitch(tmp_path / "tiles", tmp_path / "a.zarr", **how, threads=1)
    assert (done.conversion.shape_zyx[0], "reading boxes" in caplog.text) == (12, False)
    monkeypatch.chdir(tmp_path)
    again = {"positions": Path("a.positions.csv"), "keep_positions": True}
    with cluster_of_threads(2) as local:
        cf.stitch("tiles", "b.zarr", **how, **again, scheduler=local.scheduler_address)
    alone, workers = (
        {key: data for key, data in bytes_of(tmp_path / name).items() if "/c/" in key}
        for name in ("a.zarr", "b.zarr")
    )
    assert len([key for key in alone if key.startswith("0/c/")]) == 3
    assert workers == alone
    with pytest.raises(CanvasError, match="workers is 0; give at least 1"):
        cf.stitch("tiles", "e.zarr", **how, workers=0)


@pytest.mark.parametrize(
    "injected", [(0.0, 0.0, 0.0), (1.0, -7.4, 5.3), (-2.0, 0.5, 11.25), (0.4, 20.0, -3.7)]
)
def test_a_shift_is_found_to_less_than_half_a_voxel_in_noise(scene, injected):
    random = np.random.default_rng(1)
    moved = shift(scene.astype(np.float32), injected, order=1, mode="nearest")
    first, second = (
        part[2:22, 40:150, 60:120] + random.normal(0, 40, (20, 110, 60)) for part in (moved, scene)
    )
    found, correlation = find_shift(first, second, 32)
    np.testing.assert_allclose(found, injected, atol=0.5)
    assert correlation > 0.3


def test_a_pair_that_lies_is_dropped_and_a_loose_tile_named():
    """Four tiles in a square, the diagonal contradicts; a fifth correlates with nothing."""
    true = np.array([(0, 0, 0), (0, 2, 1), (1, -3, 0), (0, 1, -4), (0, 0, 0)], float)
    pairs = [Pair(a, b, tuple(true[b] - true[a]), 0.9) for a, b in ((0, 1), (1, 3), (0, 2), (2, 3))]
    solution = solve(5, [*pairs, Pair(0, 3, (0, 30, 0), 0.4), Pair(3, 4, (9, 9, 9), 0.1)], 0.3)
    shifts = solution.shifts_zyx
    np.testing.assert_allclose(shifts[:4] - shifts[0], true[:4], atol=1e-9)
    assert [(pair.first, pair.second) for pair in solution.dropped] == [(3, 4), (0, 3)]
    assert unplaced(5, solution.used) == [4]
    np.testing.assert_array_equal(shifts[4], 0)


def test_an_empty_overlap_is_named_and_its_tile_stays(scene, tmp_path):
    write_tiles(tmp_path / "tiles", scene)
    name = "001440_001440"
    for plane in (tmp_path / "tiles/001440" / name).iterdir():
        tifffile.imwrite(plane, np.full(TILE[1:], 200, np.uint16))
    done = cf.stitch(tmp_path / "tiles", tmp_path / "a.zarr", voxel_um=UM, progress=False)
    assert done.unplaced == (name,)
    assert len(done.untrusted) == 3
    assert all(name in pair for pair in done.untrusted)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("tile,z,y,x\na,0,0,0\nb,0,0,500\n", "the tiles a, b overlap with no other by 8 voxels"),
        ("tile,z,y,x\na,0,0,0\nc,0,0,5\n", "there is no tile c in"),
        ("tile,z,y,x\na,0,0,0\na,0,0,5\n", "tile a, is there twice"),
        ("tile,z,y\na,0,0\nb,0,0\n", "expected the columns tile, z, y, x"),
        ("tile,z,y,x\na,0,0,0\n", "names 1 tiles; two or more"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(scene, tmp_path, table, message):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for z in range(3):
            tifffile.imwrite(tmp_path / name / f"{z}.tif", scene[z, :40, :40])
    (tmp_path / "t.csv").write_text(table)
    with pytest.raises(CanvasError, match=message):
        cf.stitch(tmp_path, tmp_path / "o.zarr", voxel_um=UM, positions=tmp_path / "t.csv")
    assert not list(tmp_path.glob("o.*"))


def test_the_verb(scene, tmp_path, capsys):
    write_tiles(tmp_path / "tiles", scene)
    words = [
        "stitch",
        tmp_path / "tiles",
        tmp_path / "a.zarr",
        "--voxel-um",
        *UM,
        "--marker",
        "cFos",
        "--json",
    ]
    assert main(list(map(str, words))) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["overlaps"], found["untrusted"]) == (6, [])
    assert cf.Volume.open(tmp_path / "a.zarr").marker == "cFos"
    (tmp_path / "empty").mkdir()
    with pytest.raises(CanvasError, match="holds 0 tiles; expected folders X/X_Y"):
        cf.stitch(tmp_path / "empty", tmp_path / "b.zarr", voxel_um=UM)


def test_an_overlap_passes_from_one_tile_to_the_other():
    """Two flat tiles of 100 and 200 that overlap by half: no step there, each alone elsewhere."""
    greys, places = (100, 200), [(0, 0, 0), (0, 0, 20)]
    tiles = [
        Tile(str(grey), cf.Volume.from_array(np.full((1, 8, 40), grey, np.uint16), voxel_um=UM), place)
        for grey, place in zip(greys, places, strict=True)
    ]
    fused = FusedTiles(tiles, places, ramp=20)
    line = fused.read((0, 4, 0), (1, 1, 60))[0, 0].astype(int)
    assert (line[:20] == 100).all()
    assert (line[40:] == 200).all()
    assert (np.diff(line[19:41]) > 0).all()
    assert np.diff(line).max() <= 10


@pytest.mark.parametrize(("lost", "z"), [(0, 1), (9, 0), (None, 0)])
def test_a_tile_without_its_first_planes_begins_below_the_others(scene, tmp_path, caplog, lost, z):
    write_tiles(tmp_path / "tiles", scene)
    folder = tmp_path / "tiles/001440/001440_000000"
    if lost is not None:
        (folder / f"{lost * 40:06d}.tiff").unlink()
    tiles = find_tiles(tmp_path / "tiles", StitchOptions.of(voxel_um=UM))
    assert {tile.name: tile.position_zyx[0] for tile in tiles if tile.position_zyx[0]} == (
        {folder.name: z} if z else {}
    )
    assert ("tile 001440_000000 has planes" in caplog.text) == (lost is not None)


def test_numbers_of_one_series_through_all_tiles_are_no_depths(scene, tmp_path):
    write_tiles(tmp_path / "tiles", scene)
    for place, folder in enumerate(sorted((tmp_path / "tiles").glob("*/*"))):
        for file in sorted(folder.iterdir(), reverse=True):
            file.rename(folder / f"{int(file.stem) + 400 * place:06d}.tiff")
    tiles = find_tiles(tmp_path / "tiles", StitchOptions.of(voxel_um=UM))
    assert {tile.position_zyx[0] for tile in tiles} == {0}
