"""The page at /ui in a real browser: what it shows against the library, by pointer and by keys."""

from __future__ import annotations

import io
import json
import math
import re
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from matplotlib.path import Path as Outline
from PIL import Image
from scipy.ndimage import maximum_filter

import canvas_fm as cf
from canvas_fm.inference.search_map import embedding_map
from tests.ui.browser import Browser, Page
from tests.ui.conftest import CROP, KEY, MANY

pytestmark = pytest.mark.ui
ROOT = Path(__file__).parents[2]
EVIL = "\n\n<img src=x onerror=alert(1)> and a [link](javascript:alert(1))\n"
VIEWS = {
    "map": "document.querySelector('#legend input')",
    "crop": "document.querySelector('#near li') && document.querySelector('#reconstruction canvas')",
    "search": "document.querySelector('#search-form button')",
    "model": "document.querySelector('#model-cards table')",
}


def look_at(page: Page, url: str, view: str) -> None:
    """Open a view and wait until it shows what it has."""
    page.go(f"{url}/ui/#{view}")
    page.wait(VIEWS[view])


def picture(page: Page) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB")).astype(int)


def voxels(page: Page, canvas: str, count: int) -> np.ndarray:
    """The grey value of each voxel of a strip, (z, y, x), read from the middle of its square."""
    planes, rows, columns = CROP
    script = f"""(() => {{
        const canvas = document.querySelectorAll({json.dumps(canvas)})[{count}];
        const zoom = canvas.height / {rows};
        const all = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        const out = [];
        for (let i = 0; i < {planes * rows * columns}; i++) {{
            const z = Math.floor(i / {rows * columns}), y = Math.floor(i / {columns}) % {rows};
            const place = Math.floor((z * {columns + 1} + i % {columns} + 0.5) * zoom);
            out.push(all.data[4 * (Math.floor((y + 0.5) * zoom) * canvas.width + place)]);
        }}
        return out;
    }})()"""
    return np.array(page.run(script)).reshape(CROP)


def map_of(url: str, name: str) -> np.ndarray:
    reply = httpx.get(f"{url}/v1/map/points?index={name}", timeout=120)
    return np.load(io.BytesIO(reply.content))


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


# --- the page as a whole


def test_every_view_loads_without_a_word_in_the_console_and_asks_nobody_else(page: Page, url: str) -> None:
    page.go(f"{url}/")
    page.wait(VIEWS["map"])
    for view in ("crop", "search", "model", "map"):
        page.click(f"nav a[data-view={view}]")
        page.wait(f"document.querySelector('nav [aria-current]').dataset.view === {view!r}")
        page.wait(VIEWS[view])
    assert {address.split("/")[2] for address in page.requests if not address.startswith("data:")} == {
        url.split("/")[2]
    }
    assert all(status < 400 for status in page.replies.values()), page.replies


def test_the_page_of_the_routes_loads_by_itself(page: Page, url: str) -> None:
    page.go(f"{url}/docs")
    page.wait("document.querySelectorAll('.opblock').length > 10")
    assert {address.split("/")[2] for address in page.requests if not address.startswith("data:")} == {
        url.split("/")[2]
    }


@pytest.mark.parametrize("view", VIEWS)
def test_every_control_has_a_name_and_the_headings_are_in_order(page: Page, url: str, view: str) -> None:
    look_at(page, url, view)
    page.wait("!document.querySelector('#starting:not([hidden])')")
    tree = page.send("Accessibility.getFullAXTree")["nodes"]
    named = (
        "button",
        "link",
        "textbox",
        "combobox",
        "slider",
        "spinbutton",
        "checkbox",
        "image",
        "application",
    )
    found = 0
    for node in tree:
        role = node.get("role", {}).get("value", "").lower()
        if role in (*named, "region", "navigation", "form", "dialog", "table") and not node.get("ignored"):
            found += 1
            if role in named or role == "region":
                assert node.get("name", {}).get("value", "").strip(), node
    assert found > 8
    levels = page.run(
        "[...document.querySelectorAll('h1, h2, h3')].filter((e) => e.checkVisibility())"
        ".map((e) => +e.tagName[1])"
    )
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert max(np.diff(levels)) <= 1
    identities = page.run("[...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(set(identities)) == len(identities)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("width", [360, 800, 1600])
def test_no_view_is_wider_than_the_window(page: Page, url: str, view: str, width: int) -> None:
    page.look(width, 800)
    look_at(page, url, view)
    assert page.run("document.scrollingElement.scrollWidth") <= width


def test_the_keyboard_reaches_every_control_in_the_order_of_the_page(page: Page, url: str) -> None:
    look_at(page, url, "map")
    wanted = page.run(
        "[...document.querySelectorAll('a[href], button, select, input, summary, [tabindex=\"0\"]')]"
        ".filter((e) => e.checkVisibility() && !e.disabled && e.tabIndex >= 0).length"
    )
    seen = []
    for _ in range(wanted + 3):
        page.press("Tab")
        seen.append(
            page.run(
                "(() => { const e = document.activeElement; e.dataset.seen ??= Math.random(); "
                "const b = getComputedStyle(e); return [e.tagName, e.dataset.seen, b.outlineStyle]; })()"
            )
        )
    reached = {mark for tag, mark, _ in seen if tag != "BODY"}
    assert len(reached) >= wanted
    assert all(outline != "none" for tag, _, outline in seen if tag != "BODY")


def test_where_motion_is_unwanted_nothing_moves(page: Page, url: str) -> None:
    script = "getComputedStyle(document.querySelector('nav a')).transitionDuration"
    look_at(page, url, "model")
    assert page.run(script) != "0s"
    page.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
    assert page.run(script) == "0s"


# --- keys


def test_a_service_with_keys_asks_once_and_again_after_a_wrong_one(page: Page, guarded_url: str) -> None:
    page.tolerates = " 401 "  # Chromium itself notes each
    page.go(f"{guarded_url}/ui/#model")
    for key, sentence in (("wrong-wrong-wrong-wrong", "does not know this key"), (KEY, None)):
        page.wait("document.querySelector('#key-dialog').open && document.activeElement.id === 'key-input'")
        page.type(key)
        page.press("Enter")
        if sentence:
            page.wait(f"document.querySelector('#key-note').innerText.includes({sentence!r})")
    page.wait(VIEWS["model"])
    assert page.run("[sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]
    assert KEY not in page.run("document.documentElement.outerHTML + location.href")
    assert not any(KEY in address for address in page.requests)
    page.click("nav a[data-view=map]")
    page.wait(VIEWS["map"])
    page.click("#key-button")
    page.wait("document.querySelector('#key-dialog')?.open")


# --- crops


def test_an_uploaded_crop_is_shown_voxel_by_voxel(page: Page, url: str, tmp_path: Path) -> None:
    look_at(page, url, "crop")
    crops = np.random.default_rng(0).random((2, *CROP), np.float32)
    np.save(tmp_path / "mine.npy", np.asfortranarray(crops))
    page.upload("#crop-source input[type=file]", tmp_path / "mine.npy")
    page.wait("document.querySelector('#strip').innerText.includes('mine.npy')")
    np.testing.assert_allclose(voxels(page, "#strip canvas", 0), 255 * crops[0], atol=1)
    raw = (crops[:1] * 4000 + 500).astype(np.uint16)
    np.save(tmp_path / "raw.npy", raw)
    page.upload("#crop-source input[type=file]", tmp_path / "raw.npy")
    page.wait("document.querySelector('#crop-source').innerText.includes('give the window of its volume')")
    page.fill("#crop-source [aria-label='Window, low']", "500")
    page.fill("#crop-source [aria-label='Window, high']", "4500")
    page.wait("document.querySelector('#strip').innerText.includes('raw.npy')")
    np.testing.assert_allclose(voxels(page, "#strip canvas", 0), 255 * crops[0], atol=1.2)


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (lambda path: path.write_bytes(b"no array at all"), "this is no .npy file"),
        (
            lambda path: np.save(path, np.zeros((1, 4, 4, 4), np.float32)),
            "has shape 1 × 4 × 4 × 4; tiny takes",
        ),
        (
            lambda path: np.save(path, np.full((1, *CROP), 7, np.float32)),
            "this encoder takes values in [0, 1]",
        ),
    ],
)
def test_a_file_that_cannot_be_meant_is_told_in_a_sentence(page, url, tmp_path, made, sentence) -> None:
    page.tolerates = " 422 "  # Chromium itself notes each
    look_at(page, url, "crop")
    path = tmp_path / "given.npy"
    made(path)
    page.upload("#crop-source input[type=file]", path)
    page.wait(f"document.body.innerText.includes({sentence!r})")


def test_a_place_is_shown_moved_by_keys_and_kept_in_the_address(page: Page, url: str, spots) -> None:
    z, y, x = (int(value) for value in spots[1][7])
    page.go(f"{url}/ui/#crop?volume=spots&z={z}&y={y}&x={x}")
    page.wait(VIEWS["crop"])
    volume = cf.Volume.open(spots[0])
    origin = [place - size // 2 for place, size in zip((z, y, x), CROP, strict=True)]
    np.testing.assert_allclose(
        voxels(page, "#strip canvas", 0), 255 * volume.window.apply(volume.read(origin, CROP)), atol=1
    )
    page.run("document.querySelector('.surroundings').focus()")
    page.press("ArrowRight", shift=True)
    page.press("PageDown")
    page.wait(f"document.querySelector('#strip').innerText.includes('z {z + 1}, y {y}, x {x + 1}')")
    assert page.run("location.hash") == f"#crop?volume=spots&z={z + 1}&y={y}&x={x + 1}"


def test_the_slider_hides_so_many_patches_and_changes_the_picture(page: Page, url: str) -> None:
    look_at(page, url, "crop")
    page.wait("document.querySelectorAll('#reconstruction canvas').length === 4")
    tokens = math.prod(size // patch for size, patch in zip(CROP, (2, 4, 4), strict=True))
    seen = []
    for ratio in ("0.25", "0.75"):
        page.fill("#reconstruction input[type=range]", ratio)
        hidden = tokens - int(tokens * (1 - float(ratio)))
        page.wait(f"document.querySelector('#live').textContent.startsWith('{hidden} patches hidden')")
        assert f"{hidden} of {tokens}" in page.shown("#reconstruction")
        original, masked, merged = (voxels(page, "#reconstruction canvas", row) for row in (0, 1, 3))
        visible = np.abs(masked - original) <= 1
        # Framed borders lie on the outermost quarter of a voxel, so the middles tell which were hidden.
        assert np.isclose((~visible).mean(), hidden / tokens, atol=0.04)
        np.testing.assert_allclose(
            merged[visible & (original > 3)], original[visible & (original > 3)], atol=60
        )
        seen.append(masked)
    assert (seen[0] != seen[1]).any()
    page.fill("#reconstruction input[type=number]", "5")
    before = page.shown("#reconstruction p.hint")
    page.wait(f"document.querySelector('#reconstruction p.hint').innerText !== {before!r}")


def test_the_nearest_cells_of_a_crop_are_those_of_the_index(
    page: Page, url: str, spots, index, encoder
) -> None:
    z, y, x = (int(value) for value in spots[1][20])
    page.go(f"{url}/ui/#crop?volume=spots&z={z}&y={y}&x={x}")
    page.wait(VIEWS["crop"])
    vector = cf.embed(encoder, cf.Volume.open(spots[0]), np.array([[z, y, x]], float), device="cpu")
    expected = [cell["id"] for cell in index.describe(index.search(vector, 12).rows[0])]
    shown = page.run("[...document.querySelectorAll('#near .caption b')].map((e) => e.innerText)")
    assert shown == [f"spots · {identity}" for identity in expected]
    assert page.run("[...document.querySelectorAll('#near img')].every((e) => e.naturalWidth === 16)")
    page.wait("document.querySelector('#embedding').innerText.includes('Novelty')")
    assert f"{encoder.dim}, pooled by mean" in page.shown("#embedding")


# --- the map


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
    page.look(1280, 800, dark=True)
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


# --- search


def test_like_these_unlike_those_finds_what_the_index_finds(page: Page, url: str, index: cf.Index) -> None:
    look_at(page, url, "search")
    for identity, kind in (("3", 0), ("9", 0), ("4", 1)):
        page.fill("#example-id", identity)
        page.run(f"document.querySelectorAll('#search-form .row.tight button')[{kind}].click()")
        page.wait(f"document.querySelectorAll('.tray')[{kind}].innerText.includes('spots · {identity}')")
    page.fill("#search-form input[type=number]", "20")
    page.fill("#search-form input[placeholder^=marker]", "score>=0.2 region!=TH")
    page.click("#search-form button.main")
    page.wait("document.querySelectorAll('#hits li').length === 20")
    expected = index.like([3, 9], [4], 20, where=["score>=0.2", "region!=TH"])
    shown = page.run("[...document.querySelectorAll('#hits .caption b')].map((e) => e.innerText)")
    assert shown == [f"spots · {cell['id']}" for cell in index.describe(expected.rows[0])]
    page.click("#hits li:nth-child(2) .unlike")
    page.wait("document.querySelectorAll('.tray')[1].innerText.includes('(2)')")
    assert (
        page.run("document.querySelector('#hits li:nth-child(2) .unlike').getAttribute('aria-pressed')")
        == "true"
    )


def test_the_model_is_described(page: Page, url: str, encoder) -> None:
    look_at(page, url, "model")
    said = page.shown("#model")
    for part in (
        encoder.sha256,
        "8 × 16 × 16",
        "4 × 1.8 × 1.8",
        "percentiles 0.5 and 99.9",
        "mean",
        "48",
        "100,000",
    ):
        assert part in said, part


def test_maps_of_the_page_are_those_of_the_library(url: str, index: cf.Index) -> None:
    np.testing.assert_allclose(map_of(url, "spots"), embedding_map(index).xy)


def test_p_cell_of_a_place_is_that_of_the_refiner(page: Page, url: str, spots) -> None:
    z, y, x = (int(value) for value in spots[1][20])
    page.go(f"{url}/ui/#crop?volume=spots&z={z}&y={y}&x={x}")
    page.wait("document.querySelector('#embedding').innerText.includes('P(cell) by spot')")
    asked = {"volume": "spots", "points_zyx": [[z, y, x]], "refiner": "spot"}
    said = httpx.post(f"{url}/v1/refine", json=asked, headers={"Accept": "application/json"}).json()
    assert f"{said['p_cell'][0]:.4g}"[:5] in page.shown("#embedding")
    assert ("not a cell" in page.shown("#embedding")) is not said["is_cell"][0]


def test_a_card_in_markdown_becomes_headings_tables_and_words(page: Page, url: str) -> None:
    look_at(page, url, "model")
    card = (ROOT / "model_cards" / "detector-microglia.md").read_text(encoding="utf-8")
    page.run(
        f"import('./markdown.js').then(({{ markdown }}) => "
        f"document.querySelector('#model-cards').replaceChildren(...markdown({json.dumps(card + EVIL)})))"
    )
    rows = len(re.findall(r"^\| (?!---)", card, re.M))
    assert page.run("document.querySelectorAll('#model-cards tr').length") == rows
    assert page.run("document.querySelector('#model-cards h3').innerText") == "detector-microglia"
    assert page.run("document.querySelectorAll('#model-cards :is(script, img, a)').length") == 0
    assert "<img src=x onerror=alert(1)> and a link" in page.shown("#model-cards")
