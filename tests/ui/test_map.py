"""The map of the page at /ui in a real browser: where cells lie, what is selected, by pointer and by keys."""

from __future__ import annotations

import json
import math
import re
import time
from typing import Any

import numpy as np
import pytest
from matplotlib.path import Path as Outline
from scipy.ndimage import maximum_filter

import canvas_fm as cf
from tests.ui.browser import Browser, Page
from tests.ui.conftest import MANY
from tests.ui.views import VIEWS, look_at, map_of, picture

pytestmark = pytest.mark.ui


def on_screen(page: Page, xy: np.ndarray) -> np.ndarray:
    """Where points of the map lie in the window, by what the canvas says of its view."""
    cx, cy, scale = map(float, page.run("document.querySelector('#map-box canvas').dataset.view").split(","))
    left, top, width, height = page.box("#map-box canvas")
    x, y = xy.astype(float).T
    return np.stack([left + width / 2 + (x - cx) * scale, top + height / 2 - (y - cy) * scale], axis=1)


def drag(page: Page, places: list[tuple[float, float]], **options: Any) -> None:
    page.mouse("Pressed", *places[0], **options)
    for place in places[1:]:
        page.mouse("Moved", *place, **options)
    page.mouse("Released", *places[-1], **options)


def star(page: Page) -> list[tuple[float, float]]:
    """An outline over the map with corners that point in and out, in whole pixels."""
    left, top, width, height = page.box("#map-box canvas")
    turns = [(i * math.tau / 14, (0.16, 0.38)[i % 2]) for i in range(15)]
    return [
        (round(left + width * (0.5 + r * math.cos(a))), round(top + height * (0.5 + r * math.sin(a))))
        for a, r in turns
    ]


def selected_rows(page: Page) -> list[int]:
    """The rows of the selection, from the request that its CSV button sends."""
    page.click("#selection button[aria-label^=Download]")
    page.wait("document.querySelector('#live').textContent === 'file made'")
    bodies = [json.loads(body) for address, body in page.posted if address.endswith("/v1/cells")]
    return next(body["rows"] for body in reversed(bodies) if "thumbnails" not in body)


def test_a_hundred_thousand_cells_are_drawn_where_they_lie(page: Page, url: str) -> None:
    look_at(page, url, "map")
    page.fill("#map-controls select", "many")
    page.wait(f"document.querySelector('#map-box canvas').dataset.cells === '{MANY}'", 60)
    page.wait("document.querySelector('#map-note').innerText.startsWith('100,000 cells, laid out by PCA')")
    markers = page.run("[...document.querySelectorAll('#legend .word')].map((e) => e.innerText)")
    assert set(markers) == {"NeuN", "cFos", "TH", "PV", "GFAP", "IBA1"}
    time.sleep(0.2)
    places = on_screen(page, map_of(url, "many"))
    seen = picture(page)
    left, top, width, height = (round(value) for value in page.box("#map-box canvas"))
    drawn = np.abs(seen - seen[top + 12, left + 12]).sum(axis=-1) > 40
    inside = places.round().astype(int)
    hit = drawn[inside[:, 1], inside[:, 0]]
    assert hit.mean() > 0.98
    near = np.zeros(drawn.shape, bool)
    near[inside[:, 1], inside[:, 0]] = True
    near = maximum_filter(near, 5)
    box = np.s_[top + 3 : top + height - 3, left + 3 : left + width - 3]
    assert (drawn[box] & ~near[box]).mean() < 0.01  # and nothing where no cell is


def test_a_pan_draws_a_frame_for_each_move(page: Page, url: str) -> None:
    """Counted, not timed: `make bench` tells how long a frame takes."""
    look_at(page, url, "map")
    page.fill("#map-controls select", "many")
    page.wait(f"document.querySelector('#map-box canvas').dataset.cells === '{MANY}'", 60)
    left, top, width, height = page.box("#map-box canvas")
    x, y = left + width / 2, top + height / 2
    before = page.run("({...document.querySelector('#map-box canvas').dataset})")
    page.mouse("Pressed", x, y)
    for step in range(40):
        page.mouse("Moved", x + 4 * step, y + 2 * step)
        page.run("new Promise((done) => requestAnimationFrame(done))")
    page.mouse("Released", x + 156, y + 78)
    after = page.run("({...document.querySelector('#map-box canvas').dataset})")
    assert int(after["frames"]) - int(before["frames"]) >= 38
    moved = np.subtract(*(np.array(said["view"].split(","), float) for said in (before, after)))
    scale = float(after["view"].split(",")[2])
    np.testing.assert_allclose(
        moved[:2] * scale, [156, -78], atol=4
    )  # the first pixels of a drag may be a click's


def test_pointing_at_cells_whose_colours_are_on_their_way(page: Page, url: str) -> None:
    """The colouring of the index before is no longer asked, and the new one is shown when it comes."""
    look_at(page, url, "map")
    held: list[Any] = []
    page.tab.route(
        "**/map/column?*",
        lambda route: route.continue_() if "name=row" in route.request.url else held.append(route),
    )
    page.fill("#map-controls select", "many")
    page.wait(f"document.querySelector('#map-box canvas').dataset.cells === '{MANY}'", 60)
    for x, y in on_screen(page, map_of(url, "many"))[-40:]:  # rows that the first index does not have
        page.mouse("Moved", x, y)
        page.run("new Promise((done) => requestAnimationFrame(done))")
    assert held
    for route in held:
        route.continue_()
    page.tab.unroute("**/map/column?*")
    page.wait("document.querySelector('#map-note').innerText.startsWith('100,000 cells')")
    assert len(page.run("[...document.querySelectorAll('#legend .word')]")) == 6


def test_the_wheel_zooms_around_the_pointer(page: Page, url: str) -> None:
    look_at(page, url, "map")
    xy = map_of(url, "spots")
    before = on_screen(page, xy)
    at = before[17].round().tolist()
    page.mouse("Wheel", *at, wheel=-400)
    page.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    after = on_screen(page, xy)
    assert np.linalg.norm(after[17] - at) < 3
    assert np.ptp(after[:, 0]) > 1.5 * np.ptp(before[:, 0])


@pytest.mark.parametrize("shift", [False, True])
def test_a_lasso_selects_what_lies_inside_it(page: Page, url: str, shift: bool) -> None:
    look_at(page, url, "map")
    if not shift:
        page.click("[data-tool=lasso]")
    places, outline = on_screen(page, map_of(url, "spots")), star(page)
    drag(page, outline, shift=shift)
    page.wait("document.querySelector('#selection-count')")
    expected = np.flatnonzero(Outline(outline).contains_points(places))
    assert 5 < len(expected) < 295
    assert selected_rows(page) == expected.tolist()
    assert f"{len(expected)} cells" in page.shown("#selection-count")
    page.wait("document.querySelectorAll('#selection img').length > 3")


def test_hidden_groups_are_not_drawn_and_not_selected(page: Page, url: str, index: cf.Index) -> None:
    look_at(page, url, "map")
    page.fill("#map-controls label:last-of-type select", "region")
    page.wait("document.querySelector('#legend').innerText.includes('HPF')")
    page.run(
        "[...document.querySelectorAll('#legend label')].find((e) => e.innerText.includes('HPF')).click()"
    )
    page.run("document.querySelector('#map-box canvas').focus()")
    page.press("a")
    page.wait("document.querySelector('#selection-count')")
    expected = [row for row, cell in enumerate(index.describe(range(300))) if cell["region"] != "HPF"]
    assert selected_rows(page) == expected


def test_cells_are_selected_by_a_column_without_a_pointer(page: Page, url: str, index: cf.Index) -> None:
    look_at(page, url, "map")
    page.fill("#where-form select", "score")
    page.fill("#where-form input", "0.5")
    page.run("document.querySelector('#where-form button').focus()")
    page.press("Enter")
    page.wait("document.querySelector('#selection-count')")
    assert selected_rows(page) == [
        row for row, cell in enumerate(index.describe(range(300))) if cell["score"] >= 0.5
    ]


def test_a_click_shows_the_cell_its_crop_and_its_neighbours(page: Page, url: str, index: cf.Index) -> None:
    look_at(page, url, "map")
    places = on_screen(page, map_of(url, "spots"))
    apart = np.linalg.norm(places[:, None] - places, axis=-1) + 1e9 * np.eye(300)
    row = int(apart.min(axis=1).argmax())
    page.mouse("Moved", *places[row].round().tolist())
    page.wait("!document.querySelector('.tip').hidden")
    assert f"row {row}" in page.shown(".tip")
    page.mouse("Pressed", *places[row].round().tolist())
    page.mouse("Released", *places[row].round().tolist())
    page.wait("document.querySelectorAll('#detail .gallery li').length === 12")
    page.wait("document.querySelector('#detail canvas')")
    (cell,) = index.describe([row])
    assert f"cell {cell['id']} of spots" in page.shown("#detail h3")
    expected = [each["id"] for each in index.describe(index.search_ids([f"#{row}"], 12).rows[0])]
    shown = page.run("[...document.querySelectorAll('#detail .caption b')].map((e) => e.innerText)")
    assert shown == [f"spots · {identity}" for identity in expected]
    page.click("#detail button")
    page.wait(VIEWS["crop"])
    assert f"z={cell['z']:g}&y={cell['y']:g}&x={cell['x']:g}" in page.run("location.hash")


def test_by_keys_alone_a_cell_is_found_and_a_lasso_is_closed(page: Page, url: str) -> None:
    look_at(page, url, "map")
    page.run("document.querySelector('#map-box canvas').focus()")
    page.press("n")
    page.wait("document.querySelector('#live').textContent.startsWith('row ')")
    row = int(re.search(r"row (\d+)", page.run("document.querySelector('#live').textContent"))[1])
    page.press("Enter")
    page.wait("document.querySelector('#detail h3')")
    assert f'"rows":[{row}]' in next(body for address, body in reversed(page.posted) if "/cells" in address)
    page.press("0")
    page.press("Escape")
    for keys in (
        "",
        "Up Up Up Up Left Left Left Left Left Left Left Left",
        "Down " * 9,
        "Right " * 16,
        "Up " * 9,
    ):
        for key in keys.split():
            page.press(f"Arrow{key}")
        if keys:
            page.press("l")
    page.wait("document.querySelector('#live').textContent.startsWith('lasso: corner 4')")
    page.press("Enter")
    page.wait("document.querySelector('#selection-count')")
    left, top, width, height = page.box("#map-box canvas")
    x, y = left + width / 2 - 96, top + height / 2 - 48
    corners = [(x, y), (x, y + 108), (x + 192, y + 108), (x + 192, y)]
    expected = np.flatnonzero(Outline(corners).contains_points(on_screen(page, map_of(url, "spots"))))
    assert len(expected) > 0
    assert selected_rows(page) == expected.tolist()


def test_colours_follow_the_theme_and_the_column(page: Page, url: str) -> None:
    look_at(page, url, "map")
    script = "[...document.querySelectorAll('#legend .swatch')].map((e) => e.style.background)"
    page.fill("#map-controls label:last-of-type select", "region")
    page.wait("document.querySelectorAll('#legend .swatch').length === 3")
    light = page.run(script)
    page.tab.emulate_media(color_scheme="dark")
    page.wait(f"JSON.stringify({script}) !== {json.dumps(json.dumps(light, separators=(',', ':')))}")
    assert picture(page).mean() < 90
    page.fill("#map-controls label:last-of-type select", "score")
    page.wait("document.querySelector('.scale-bar')")


def test_without_webgl_the_map_is_the_same(browser: Browser, url: str) -> None:
    seen = []
    for name in ("webgl2", "pixels"):
        with browser.page() as page:
            page.go(f"{url}/ui/?renderer={name}#map")
            page.wait(VIEWS["map"])
            time.sleep(0.2)
            assert page.run("document.querySelector('#map-box canvas').dataset.renderer") == name
            left, top, width, height = (round(value) for value in page.box("#map-box"))
            seen.append(picture(page)[top + 2 : top + height - 2, left + 2 : left + width - 2])
    changed = [np.abs(each - each[5, 5]).sum(axis=-1) > 60 for each in seen]
    assert changed[0].sum() > 1000
    assert (changed[0] & changed[1]).sum() > 0.75 * max(map(np.sum, changed))
