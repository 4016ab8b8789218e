"""The volume view: planes as they are stored, cells over them, counts at a threshold."""

from __future__ import annotations

import numpy as np
import pytest

import canvas_fm as cf
from canvas_fm.data.points.points import Points
from tests.ui.browser import Page
from tests.ui.views import look_at

pytestmark = pytest.mark.ui


@pytest.fixture
def cells(spots, tmp_path):
    """The spots as a refined table, half of them above 0.5."""
    zyx = spots[1]
    p = np.linspace(0.02, 0.98, len(zyx))
    path = tmp_path / "cells.csv"
    rows = "\n".join(f"{z:g},{y:g},{x:g},{each:.4f}" for (z, y, x), each in zip(zyx, p, strict=True))
    path.write_text(f"z,y,x,p_cell\n{rows}\n")
    return path, p


def test_it_begins_at_a_bright_place_and_moves_by_keys(page: Page, url: str, spots) -> None:
    look_at(page, url, "volume")
    at = page.run("document.querySelector('#volume-box canvas').getAttribute('aria-label')")
    z, y, x = (
        int(part.split()[1]) for part in at.replace("Plane ", "").replace(" of spots around", ",").split(",")
    )
    volume = cf.Volume.open(spots[0])
    voxels = volume.read((0, 0, 0), volume.shape_zyx)
    assert voxels[z].max() == voxels.max()
    size = "document.querySelector('#volume-box canvas').client"
    seen = volume.shape_zyx[2] * float(page.run(f"{size}Height / {size}Width"))  # rows, where all columns are
    assert abs(x - (volume.shape_zyx[2] - 1) / 2) <= 0.5
    bright = int(np.argwhere(voxels == voxels.max())[0, 1])
    assert abs(y - bright) <= seen / 2 + 1
    assert seen / 2 - 2 <= y <= volume.shape_zyx[1] - seen / 2 + 1
    page.run("document.querySelector('#volume-box canvas').focus()")
    page.press("PageUp")
    page.wait(f"document.querySelector('#volume-controls output').textContent.startsWith('{z - 1} of')")
    page.wait("performance.getEntriesByName, document.querySelector('#volume-box canvas')")
    assert page.problems == []


def test_a_threshold_keeps_cells_and_the_count_has_its_interval(page: Page, url: str, cells) -> None:
    path, p = cells
    look_at(page, url, "volume")
    page.upload("#volume-side input[type=file]", path)
    page.wait("document.querySelector('#volume-counts').innerText.includes('Kept')")
    for threshold in (0.5, 0.8):
        page.fill("#volume-side input[aria-label=Threshold]", str(threshold))
        kept = p[np.round(p, 4) >= threshold]
        half = 1.645 * np.sqrt((kept * (1 - kept)).sum())
        text = page.shown("#volume-counts")
        assert f"{len(kept)} of {len(p)}" in text
        low, high = round(kept.sum() - half), round(min(len(kept), kept.sum() + half))
        assert f"{round(kept.sum())} ({low} to {high})" in text


def test_all_cells_are_kept_at_the_lowest_threshold(page: Page, url: str, tmp_path) -> None:
    # Of the least score the slider keeps 15 digits, which are above it.
    score = np.array([0.1879526525735855, 0.5, 0.9], np.float32)
    Points(np.full((3, 3), 9.0) + np.arange(3)[:, None], {"score": score}).write(tmp_path / "scores.csv")
    look_at(page, url, "volume")
    page.upload("#volume-side input[type=file]", tmp_path / "scores.csv")
    page.wait("document.querySelector('#volume-counts').innerText.includes('Kept')")
    assert "3 of 3" in page.shown("#volume-counts")


def test_a_click_on_a_cell_shows_its_crop_p_cell_and_nearest_cells(
    page: Page, url: str, cells, spots
) -> None:
    z, y, x = (int(value) for value in spots[1][200])
    page.go(f"{url}/ui/#volume?volume=spots&z={z}&y={y}&x={x}")
    page.wait("document.querySelector('#volume-side output').textContent")
    page.upload("#volume-side input[type=file]", cells[0])
    page.wait("document.querySelector('#volume-counts').innerText.includes('Kept')")
    page.fill("#volume-side input[aria-label=Threshold]", "0.02")
    page.run("document.querySelector('#volume-box canvas').focus()")
    page.press("Enter")
    page.wait("document.querySelector('#volume-side .gallery li')")
    text = page.shown("#volume-side")
    assert f"{z}, {y}, {x}" in text
    assert "P(cell) of the file" in text
    assert "P(cell) by spot" in text
    assert page.problems == []
