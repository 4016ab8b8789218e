"""The page at /ui in a real browser: what it shows against the library, by pointer and by keys."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import httpx
import numpy as np
import pytest

import canvas_fm as cf
from canvas_fm.inference.search.projection import embedding_map
from tests.ui.browser import Page
from tests.ui.conftest import CROP, KEY
from tests.ui.views import VIEWS, look_at, map_of

pytestmark = pytest.mark.ui
ROOT = Path(__file__).parents[2]
EVIL = "\n\n<img src=x onerror=alert(1)> and a [link](javascript:alert(1))\n"


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
    tree = page.tab.context.new_cdp_session(page.tab).send("Accessibility.getFullAXTree")["nodes"]
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
    page.tab.set_viewport_size({"width": width, "height": 800})
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
    page.tab.emulate_media(reduced_motion="reduce")
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
    page.click("#strip input[type=checkbox]")  # from the crop's own contrast to what the model sees
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
    page.click("#strip input[type=checkbox]")  # from the crop's own contrast to what the model sees
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
        f"import('./views/model/markdown.js').then(({{ markdown }}) => "
        f"document.querySelector('#model-cards').replaceChildren(...markdown({json.dumps(card + EVIL)})))"
    )
    rows = len(re.findall(r"^\| (?!---)", card, re.M))
    assert page.run("document.querySelectorAll('#model-cards tr').length") == rows
    assert page.run("document.querySelector('#model-cards h3').innerText") == "detector-microglia"
    assert page.run("document.querySelectorAll('#model-cards :is(script, img, a)').length") == 0
    assert "<img src=x onerror=alert(1)> and a link" in page.shown("#model-cards")
