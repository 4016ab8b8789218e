"""From raw striped, shaded tiles to cells and a page, a command a step, on a phantom of known cells."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import tifffile
from scipy.ndimage import gaussian_filter1d

import canvas_fm as cf
from canvas_fm.cli import main
from canvas_fm.data.phantom.phantom import write_phantom
from canvas_fm.prepare.corrections.destripe import decibels, stripe_energy

UM, DARK = (4.0, 1.8, 1.8), 100.0
SHAPE, TILE, STEP, ROWS, COLUMNS = (40, 560, 640), (32, 224, 256), (160, 184), 3, 3
MARGIN = (4, 8, 8)  # voxels by which a tile may lie off its place
TOLERANCE_UM = 8.0


def shading() -> np.ndarray:
    """Light of a tile, bright off its middle."""
    y, x = (np.linspace(-1, 1, n) for n in TILE[1:])
    surface = np.outer(1 - 0.25 * (y - 0.2) ** 2, 1 - 0.35 * (x + 0.3) ** 2)
    return surface / surface.mean()


def stripes(random: np.random.Generator) -> np.ndarray:
    """Gains of ± 10 % by row, other ones in every plane, that fade along x."""
    depth, height, width = TILE
    rows = gaussian_filter1d(random.standard_normal((depth, height, 1)), 1.5, axis=1)
    rows -= gaussian_filter1d(rows, 6, axis=1)
    return np.exp(0.1 * rows / rows.std() * np.linspace(1, 0.6, width))


def write_tiles(folder, voxels):
    """Tiles as SmartSPIM writes them, each off its place; the true first voxel of each by its name."""
    random, true = np.random.default_rng(0), {}
    for row in range(ROWS):
        for column in range(COLUMNS):
            off = [0, 0, 0] if row == column == 0 else [int(random.integers(-m, m + 1)) for m in MARGIN]
            start = np.add(np.add(MARGIN, off), (0, row * STEP[0], column * STEP[1]))
            box = voxels[tuple(slice(a, a + n) for a, n in zip(start, TILE, strict=True))]
            y, x = (
                round(n * um * 10) for n, um in zip((row * STEP[0], column * STEP[1]), UM[1:], strict=True)
            )
            tile = folder / f"{x:06d}" / f"{x:06d}_{y:06d}"
            tile.mkdir(parents=True)
            raw = (box - DARK).clip(0) * shading() * stripes(random) + DARK
            for z, plane in enumerate(np.rint(raw).astype(np.uint16)):
                tifffile.imwrite(tile / f"{z * 40:06d}.tiff", plane)
            true[tile.name] = start
    return true


def run(*words: object) -> None:
    assert main([str(word) for word in words]) == 0, words


def ratio(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Logarithm of what is left of shading, by columns and rows of blocks of 16 lit voxels."""
    light = [
        np.median(stack.reshape(len(stack), found.shape[1] // 16, 16, -1, 16), axis=(0, 2, 4)) - DARK
        for stack in (found, expected)
    ]
    lit = light[1] > 30
    logs = np.log(np.maximum(light[0], 1) / np.maximum(light[1], 1))[lit]
    return logs - np.median(logs)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_from_raw_tiles_to_cells_and_a_page(tmp_path):
    phantom = write_phantom(
        tmp_path / "phantom", shape_zyx=SHAPE, markers=("cFos",), stripes=False, shading=False, progress=False
    )["cFos"]
    clean = cf.Volume.open(phantom / "raw.zarr").read((0, 0, 0), SHAPE)
    true = write_tiles(tmp_path / "tiles", clean)
    brain, raw = tmp_path / "brain.zarr", tmp_path / "raw.zarr"
    run("stitch", tmp_path / "tiles", raw, "--voxel-um", *UM, "--ramp", 24)
    run(
        "stitch", tmp_path / "tiles", brain, "--voxel-um", *UM, "--ramp", 24, "--flat-field", "--destripe",
        "--marker", "cFos",
    )  # fmt: skip
    with (tmp_path / "brain.positions.csv").open(encoding="utf-8") as file:
        found = {
            row["tile"].split("/")[-1]: [int(row[axis]) for axis in "zyx"] for row in csv.DictReader(file)
        }
    first = next(iter(true))
    errors = np.array([np.subtract(found[t], found[first]) - np.subtract(true[t], true[first]) for t in true])
    assert np.abs(errors).max() < 0.5

    low = np.min(list(true.values()), axis=0)
    volumes = {name: cf.Volume.open(path) for name, path in (("raw", raw), ("brain", brain))}
    shape = volumes["brain"].shape_zyx
    truth = clean[tuple(slice(a, a + n) for a, n in zip(low, shape, strict=True))]
    inside = np.s_[10:26, 16 : shape[1] // 16 * 16 - 16, 16 : shape[2] // 16 * 16 - 16]
    stacks = {
        name: volume.read((0, 0, 0), shape)[inside].astype(np.float32) for name, volume in volumes.items()
    }
    expected = truth[inside].astype(np.float32)
    left = {name: float(np.var(ratio(stack, expected))) for name, stack in stacks.items()}
    lines = {name: float(np.mean([stripe_energy(p, DARK) for p in stack])) for name, stack in stacks.items()}
    stripes_down = decibels(lines["raw"], lines["brain"])

    run("convert", brain, tmp_path / "copy.zarr", "--ome", "0.4", "--verify")
    detector, refiner = "detector-phantoms", "refiner-cfos"
    scores = {}
    for name, path in (("raw", raw), ("brain", tmp_path / "copy.zarr")):
        run("detect", detector, path, "--resample", "--out", tmp_path / f"{name}.csv")
        cells = cf.Points.read(phantom / "centroids.csv").zyx - low
        cells = cells[((cells >= 0) & (cells < np.asarray(shape) - 1)).all(axis=1)]
        detections = cf.Points.read(tmp_path / f"{name}.csv")
        scores[name] = cf.evaluate(
            detections, cf.Points(cells), voxel_um=UM, tolerance_um=TOLERANCE_UM
        ).counts.f1
    run(
        "refine",
        "apply",
        refiner,
        tmp_path / "copy.zarr",
        tmp_path / "brain.csv",
        "--resample",
        "--out",
        tmp_path / "refined.csv",
    )
    halves = np.ones(shape, np.uint8)
    halves[:, shape[1] // 2 :] = 2
    tifffile.imwrite(tmp_path / "halves.tif", halves)
    (tmp_path / "names.csv").write_text("id,name\n1,front\n2,back\n", encoding="utf-8")
    atlas = ["--table", tmp_path / "names.csv", "--atlas-voxel-um", *UM]
    run(
        "regions",
        tmp_path / "refined.csv",
        tmp_path / "halves.tif",
        *atlas,
        "--voxel-um",
        *UM,
        "--out",
        tmp_path / "regions.csv",
        "--cells-out",
        tmp_path / "placed.csv",
    )
    run(
        "brain-report",
        tmp_path / "regions.csv",
        "--out",
        tmp_path / "brain.html",
        "--atlas",
        tmp_path / "halves.tif",
        "--cells",
        tmp_path / "placed.csv",
        *atlas,
    )
    assert "front" in (tmp_path / "brain.html").read_text(encoding="utf-8")
    numbers = json.loads((tmp_path / "brain.corrections.json").read_text())["tiles"]
    print(f"offsets: error {np.abs(errors).max():g} voxels of {np.abs(np.subtract(MARGIN, 0)).max()} at most")
    print(f"shading variance {left['raw']:.5f} to {left['brain']:.5f}; stripe energy {-stripes_down:.1f} dB")
    print(f"F1 {scores}; report {numbers}")
    assert left["brain"] < 0.3 * left["raw"]
    assert stripes_down > 8
    assert scores["brain"] >= scores["raw"] - 0.02
    assert scores["brain"] > 0.5
