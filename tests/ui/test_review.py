"""The review in a real browser: by keyboard, through kills of browser and service, by two annotators."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from canvas_fm.data.points.points import Points
from tests.serving.conftest import model, serve_command  # noqa: F401  fixtures of the service
from tests.ui.browser import Browser, Page

pytestmark = pytest.mark.ui


class Review:
    """A `canvas-fm review` that runs, and the links that it printed."""

    def __init__(self, volume: Path, folder: Path, names: tuple[str, ...]) -> None:
        self.out, log = folder / "labels.csv", folder / f"err-{time.monotonic_ns()}.txt"
        command = [str(Path(sys.executable).parent / "canvas-fm"), "review", str(volume), "candidates.csv"]
        command += ["--out", "labels.csv", "--annotator", *names]
        with log.open("w") as err:
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            self.process = subprocess.Popen(command, cwd=folder, stderr=err, env=environment)
        end = time.monotonic() + 240
        while len(links := re.findall(r"(\w+) reviews at (\S+)", log.read_text())) < len(names):
            assert self.process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        self.links = dict(links)

    def events(self) -> list[dict]:
        text = self.out.with_name("labels.csv.clicks.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()[1:]]


@pytest.fixture
def begin(spots, tmp_path: Path) -> Iterator[Callable[..., Review]]:
    """`begin(*names)`: the review of the spots and of as many empty places."""
    rng = np.random.default_rng(4)
    zyx = np.concatenate([spots[1], rng.uniform(4, 36, (300, 3)) * (1, 4, 4)])
    Points(zyx, {"score": rng.random(len(zyx))}).write(tmp_path / "candidates.csv")
    begun: list[Review] = []

    def go(*names: str) -> Review:
        begun.append(Review(spots[0], tmp_path, names or ("anna",)))
        return begun[-1]

    yield go
    for review in begun:
        if review.process.poll() is None:
            review.process.terminate()
            review.process.wait(60)


def shown(page: Page) -> str:
    return str(page.run("document.body.dataset.row"))


def opened(page: Page, link: str) -> None:
    page.go(link)
    page.wait("document.body.dataset.row && document.querySelectorAll('#projections canvas').length === 3")


def answer(page: Page, count: int, key: Callable[[int], str] = lambda k: "cn"[k % 2]) -> list[int]:
    """Answer by keyboard; the rows, each once the page went on to the next."""
    rows = []
    for k in range(count):
        row = shown(page)
        page.press(key(k))
        page.wait(f"document.body.dataset.row !== {json.dumps(row)}")
        rows.append(int(row))
    return rows


def test_200_labels_by_keyboard_through_kills_of_browser_and_service(begin, browser: Browser):
    review, rows = begin(), []
    with browser.page() as page:
        opened(page, review.links["anna"])
        assert "key=" not in page.run("location.href")
        rows += answer(page, 70)
    # The window is gone in the middle of it; another one goes on.
    with browser.page() as page:
        opened(page, review.links["anna"])
        assert shown(page) not in map(str, rows)
        rows += answer(page, 60)
        review.process.send_signal(signal.SIGKILL)
        review.process.wait(20)
        page.press("c")
        page.wait("!document.getElementById('problem').hidden")
        assert "All answers before this one are saved" in page.shown("#problem")
    assert [event["rows"][0] for event in review.events()] == rows
    review = begin()
    with browser.page() as page:
        opened(page, review.links["anna"])
        rows += answer(page, 70)
        page.wait("/By you/.test(document.getElementById('progress').innerText)")
        assert "100 cells, 100 none" in page.shown("#progress")
        assert page.problems == []
    assert len(set(rows)) == 200
    review.process.terminate()
    assert review.process.wait(60) == 0
    labels = Points.read(review.out).columns["label"]
    assert (labels >= 0).sum() == 200
    assert labels[rows].tolist() == [1, 0] * 35 + [1, 0] * 30 + [1, 0] * 35


def test_two_annotators_have_their_own_links_and_their_agreement_is_shown(begin, browser: Browser):
    review = begin("anna", "ben")
    with browser.page() as page:
        opened(page, review.links["anna"])
        page.tab.select_option("#order", "random")
        page.wait("document.getElementById('order').value === 'random'")
        first = answer(page, 12)
    with browser.page() as page:
        opened(page, review.links["ben"])
        page.tab.select_option("#order", "disagreement")
        page.tab.wait_for_timeout(500)
        page.tab.focus("#main")
        page.wait(f"{json.dumps(first)}.includes(Number(document.body.dataset.row))")
        answer(page, 8, lambda k: "c")
        page.wait("/anna and ben/.test(document.getElementById('progress').innerText)")
    assert {event["by"] for event in review.events()} == {"anna", "ben"}


def test_back_unsure_grid_and_missed_cells(begin, browser: Browser):
    review = begin()
    with browser.page(1400, 900) as page:
        opened(page, review.links["anna"])
        (row,) = answer(page, 1, lambda k: "u")
        page.press("b")
        page.wait(f"document.body.dataset.row === '{row}'")
        page.press("g")
        page.wait("document.querySelectorAll('.tile').length === 40")
        page.press("ArrowRight")
        page.press(" ")
        page.wait("document.querySelectorAll('.tile[aria-pressed=true]').length === 1")
        page.press("Enter")
        page.wait("/39 cells, 1 none/.test(document.getElementById('progress').innerText)")
        page.press("g")
        page.press("s")
        page.wait("!document.getElementById('around').hidden")
        page.tab.wait_for_timeout(800)
        page.tab.focus("#around-canvas")
        for key in ("ArrowRight", "ArrowRight", "ArrowDown", "PageDown"):
            page.press(key)
        page.tab.wait_for_timeout(500)
        page.press("m")
        page.wait("/Missed cells added|saved/.test(document.body.innerText)")
        assert page.problems == []
    events = review.events()
    assert events[1]["undo"] is True
    assert sorted(len(event["rows"]) for event in events if "rows" in event) == [1, 1, 39]
    assert sum("add" in event for event in events) == 1


def test_every_control_has_a_name_and_nothing_is_asked_of_others(begin, browser: Browser):
    review = begin()
    with browser.page() as page:
        opened(page, review.links["anna"])
        page.press("s")
        page.wait("!document.getElementById('around').hidden")
        tree = page.tab.context.new_cdp_session(page.tab).send("Accessibility.getFullAXTree")["nodes"]
        controls = ("button", "combobox", "slider", "checkbox", "image", "progressbar", "link")
        for node in tree:
            if node.get("role", {}).get("value") in controls and not node.get("ignored"):
                assert node.get("name", {}).get("value"), node
        hosts = {address.split("/")[2] for address in page.requests if not address.startswith("data:")}
        assert hosts == {review.links["anna"].split("/")[2]}


@pytest.mark.parametrize("width", [360, 800])
def test_a_narrow_window_does_not_scroll_sideways(begin, browser: Browser, width: int):
    review = begin()
    with browser.page(width, 740) as page:
        opened(page, review.links["anna"])
        for key in ("s", "g"):
            page.press(key)
            page.tab.wait_for_timeout(700)
            assert page.run("document.documentElement.scrollWidth") <= width
        button = page.run("document.getElementById('grid-done').getBoundingClientRect().bottom")
        assert button <= 740  # the answers stay in view


def test_a_stale_link_says_which_one_to_open(begin, browser: Browser):
    review = begin()
    with browser.page() as page:
        page.tolerates = "401"
        page.go(review.links["anna"][:-4] + "0000")
        page.wait("!document.getElementById('problem').hidden")
        assert "open the one that canvas-fm review printed last" in page.shown("#problem")


def test_the_service_has_the_same_page(
    spots,
    model: Path,  # noqa: F811
    serve_command,  # noqa: F811
    browser: Browser,
    tmp_path: Path,
):
    rng = np.random.default_rng(4)
    zyx = np.concatenate([spots[1][:40], rng.uniform(4, 36, (40, 3)) * (1, 4, 4)])
    Points(zyx, {"score": rng.random(len(zyx))}).write(tmp_path / "candidates.csv")
    review = f"spots={tmp_path / 'candidates.csv'}"
    served = serve_command(str(model), "--volume", f"spots={spots[0]}", "--review", review, "--port", "0")
    with browser.page(1400, 900) as page:
        page.go(f"{served.url()}/ui/")
        page.wait("!document.getElementById('review-link').hidden")
        page.click("#review-link")
        page.wait(
            "document.body.dataset.row && document.querySelectorAll('#projections canvas').length === 3"
        )
        rows = answer(page, 6)
        page.screenshot(tmp_path / "review.png")
        assert page.problems == []
    assert served.stop() == 0
    labels = Points.read(tmp_path / "candidates.labels.csv").columns["label"]
    assert labels[rows].tolist() == [1, 0] * 3
