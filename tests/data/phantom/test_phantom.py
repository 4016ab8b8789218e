"""The phantom: the same for one seed whatever the blocks, masks that fit centroids, markers that differ."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import cKDTree

from canvas_fm.data.phantom.cells import KINDS
from canvas_fm.data.phantom.phantom import MARKERS, write_phantom
from canvas_fm.data.phantom.randomised.shapes import draw_cell
from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError

SHAPE = (40, 100, 110)
TOUCHING = np.ones((3, 3, 3))


def everything(folder: Path) -> tuple[np.ndarray, np.ndarray, Points]:
    raw, mask = (Volume.open(folder / name) for name in ("raw.zarr", "mask.zarr"))
    points = Points.read(folder / "centroids.csv")
    return raw.read((0, 0, 0), raw.shape_zyx), mask.read((0, 0, 0), mask.shape_zyx), points


@pytest.fixture(scope="module")
def brains(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_phantom(tmp_path_factory.mktemp("phantom"), shape_zyx=SHAPE, seed=7)


def test_the_files_are_those_of_a_labelled_cube(brains: dict[str, Path]) -> None:
    assert tuple(brains) == MARKERS
    for marker, folder in brains.items():
        assert {path.name for path in folder.iterdir()} == {
            "raw.zarr",
            "mask.zarr",
            "centroids.csv",
            "meta.json",
        }
        meta = json.loads((folder / "meta.json").read_text())
        assert (meta["marker"], meta["shape_zyx"], meta["seed"]) == (marker, list(SHAPE), 7)
        assert meta["source"] == "canvas-fm phantom"
        raw = Volume.open(folder / "raw.zarr")
        assert (raw.name, raw.marker, raw.shape_zyx) == (marker, marker, SHAPE)
        assert raw.voxel_um == (4.0, 1.8, 1.8)
        assert raw.checksums


@pytest.mark.parametrize("marker", MARKERS)
def test_centroids_are_the_masks_centres_of_mass(brains: dict[str, Path], marker: str) -> None:
    _, mask, points = everything(brains[marker])
    numbers = np.arange(1, len(points) + 1)
    assert len(points) >= 3
    np.testing.assert_array_equal(np.unique(mask), np.arange(len(points) + 1))
    np.testing.assert_allclose(points.zyx, ndimage.center_of_mass(mask > 0, mask, numbers))
    np.testing.assert_array_equal(points.columns["n_voxels"], np.bincount(mask.ravel())[1:])


@pytest.mark.parametrize("marker", MARKERS)
def test_masks_are_one_piece_each_and_never_touch(brains: dict[str, Path], marker: str) -> None:
    _, mask, points = everything(brains[marker])
    pieces, count = ndimage.label(mask > 0, TOUCHING)
    assert count == len(points)
    # One number a piece: a merged or a torn mask would give more pairs.
    assert len(np.unique(np.stack([pieces[mask > 0], mask[mask > 0]]), axis=1).T) == count


def test_cells_shine(brains: dict[str, Path]) -> None:
    for folder in brains.values():
        raw, mask, _ = everything(folder)
        tissue = np.median(raw[20, 40:60, 40:60])
        assert 120 < tissue < 300
        assert raw.max() <= 4095
        cells = ndimage.maximum(raw, mask, np.arange(1, mask.max() + 1))
        assert (cells > tissue + 60).mean() > 0.9
        assert np.median(cells) > tissue + 200


@pytest.mark.parametrize("marker", ["NeuN", "TH", "IBA1"])
def test_blocks_do_not_show(tmp_path: Path, brains: dict[str, Path], marker: str) -> None:
    write_phantom(tmp_path, shape_zyx=SHAPE, seed=7, markers=[marker], block_zyx=(32, 64, 64))
    one, many = everything(brains[marker]), everything(tmp_path / marker)
    np.testing.assert_array_equal(one[0], many[0])
    np.testing.assert_array_equal(one[1], many[1])
    np.testing.assert_array_equal(one[2].zyx, many[2].zyx)


def test_another_seed_is_another_brain(tmp_path: Path, brains: dict[str, Path]) -> None:
    for name, seed in (("same", 7), ("other", 8)):
        write_phantom(tmp_path / name, shape_zyx=SHAPE, seed=seed, markers=["cFos"])
    same, other = everything(tmp_path / "same" / "cFos"), everything(tmp_path / "other" / "cFos")
    np.testing.assert_array_equal(same[0], everything(brains["cFos"])[0])
    assert len(other[2]) != len(same[2]) or (other[2].zyx != same[2].zyx).any()
    assert (other[0] != same[0]).mean() > 0.9


def test_the_default_phantom_stays_what_it_is(tmp_path: Path) -> None:
    """A golden number, so that figures made with a seed can be made again: change it knowingly."""
    write_phantom(tmp_path, shape_zyx=(16, 64, 64), markers=["GFAP"], seed=0)
    raw, _, points = everything(tmp_path / "GFAP")
    # No checksum: the last bit of an exponential differs between processors, the picture does not.
    assert len(points) == 6
    np.testing.assert_allclose(points.zyx[0], [9.763636, 44.618182, 4.654545], atol=1e-5)
    assert raw.mean() == pytest.approx(170.628, abs=0.01)


@pytest.mark.parametrize("marker", MARKERS)
def test_no_two_cells_are_closer_than_their_spacing(brains: dict[str, Path], marker: str) -> None:
    _, _, points = everything(brains[marker])
    nearest = cKDTree(points.zyx * (4.0, 1.8, 1.8)).query(points.zyx * (4.0, 1.8, 1.8), k=2)[0][:, 1]
    # Centres of mass lie off the drawn centres, farther with processes in the mask.
    assert nearest.min() > KINDS[marker].spacing_um * (0.6 if KINDS[marker].mask_processes else 0.75)


def test_markers_differ_by_more_than_brightness(brains: dict[str, Path]) -> None:
    looks = {}
    for marker, folder in brains.items():
        raw, mask, points = everything(folder)
        looks[marker] = (len(points), np.median(points.columns["n_voxels"]), raw.mean())
    counts = {marker: look[0] for marker, look in looks.items()}
    assert counts["NeuN"] > 4 * max(counts[marker] for marker in MARKERS if marker != "NeuN")
    assert looks["TH"][1] > 2 * looks["NeuN"][1] > 2 * looks["cFos"][1]
    means = [look[2] for look in looks.values()]
    assert max(means) < 1.25 * min(means)
    # Star and branches: the mask fills little of the box around it; somata fill most of theirs.
    filling = {}
    for marker, folder in brains.items():
        _, mask, points = everything(folder)
        boxes = [np.prod([side.stop - side.start for side in box]) for box in ndimage.find_objects(mask)]
        filling[marker] = np.median(points.columns["n_voxels"] / boxes)
    branched, round_ = ("GFAP", "IBA1"), ("NeuN", "cFos", "PV", "TH")
    assert max(filling[m] for m in branched) < 0.2 < 0.35 < min(filling[m] for m in round_)


def test_stripes_and_shading_can_be_switched_off(tmp_path: Path, brains: dict[str, Path]) -> None:
    options = {"shape_zyx": SHAPE, "seed": 7, "markers": ["cFos"]}
    write_phantom(tmp_path / "plain", stripes=False, shading=False, **options)
    write_phantom(tmp_path / "striped", stripes=True, shading=False, **options)
    plain, striped = (everything(tmp_path / name / "cFos")[0].astype(float) for name in ("plain", "striped"))
    shaded = everything(brains["cFos"])[0].astype(float)
    inner = (slice(5, 35), slice(20, 80), slice(20, 90))

    def row_contrast(voxels: np.ndarray) -> float:
        """How much neighbouring rows differ along y beyond what columns along x do."""
        rows, columns = np.median(voxels[inner], axis=2), np.median(voxels[inner], axis=1)
        return float(np.std(np.diff(rows, axis=1)) / np.std(np.diff(columns, axis=1)))

    assert row_contrast(striped) > 1.5 * row_contrast(plain)

    def fall(voxels: np.ndarray) -> float:
        left, right = (np.median(voxels[5:35, 20:80, part] - 100) for part in (slice(15, 30), slice(80, 95)))
        return float(left / right)

    assert fall(shaded) > 1.15 * fall(striped)


def test_any_shape_and_voxel_size(tmp_path: Path) -> None:
    write_phantom(tmp_path / "a", shape_zyx=(1, 9, 17), markers=["neun"], seed=1)
    assert Volume.open(tmp_path / "a" / "NeuN" / "raw.zarr").shape_zyx == (1, 9, 17)
    write_phantom(tmp_path / "b", shape_zyx=(60, 90, 90), markers=["NeuN"], voxel_um=(2.0, 2.0, 2.0))
    _, mask, points = everything(tmp_path / "b" / "NeuN")
    assert Volume.open(tmp_path / "b" / "NeuN" / "mask.zarr").voxel_um == (2.0, 2.0, 2.0)
    assert ndimage.label(mask > 0, TOUCHING)[1] == len(points) > 20


def test_wrong_wishes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CanvasError, match="no marker 'DAPI' in the phantom; it has NeuN, cFos, TH"):
        write_phantom(tmp_path, markers=["DAPI"])
    with pytest.raises(CanvasError, match="three positive sizes"):
        write_phantom(tmp_path, shape_zyx=(0, 10, 10))
    (tmp_path / "PV").mkdir()
    with pytest.raises(CanvasError, match="PV exists already"):
        write_phantom(tmp_path, shape_zyx=(8, 16, 16), markers=["TH", "PV"])
    assert not (tmp_path / "TH").exists()


def test_a_marker_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("the disk went away")

    monkeypatch.setattr("canvas_fm.data.phantom.phantom.write_text_atomic", fail)
    with pytest.raises(OSError, match="went away"):
        write_phantom(tmp_path, shape_zyx=(8, 16, 16), markers=["PV"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("marker", MARKERS)
def test_masks_keep_to_their_territory_a_voxel_apart(marker: str) -> None:
    kind, voxel_um = KINDS[marker], np.array([4.0, 1.8, 1.8])
    assert kind.spacing_um - 2 * kind.territory_um >= np.linalg.norm(voxel_um)
    for seed in range(12):
        random = np.random.default_rng(seed)
        centre_um = 200 + random.random(3) * 10
        cell = draw_cell(kind, centre_um, voxel_um, (200, 400, 400), random)
        away = (np.argwhere(cell.mask) + cell.origin) * voxel_um - centre_um
        assert np.linalg.norm(away, axis=1).max() <= kind.territory_um
