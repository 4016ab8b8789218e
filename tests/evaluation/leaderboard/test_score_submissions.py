"""The leaderboard from folders on disk: every fault told, truth never carried along, ranks and a page."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile

import numpy as np
import pytest
import yaml

from canvas_fm.data.points.points import Points
from canvas_fm.errors import CanvasError
from canvas_fm.evaluation.leaderboard.score_submissions import read_entries, score_board, submit, write_page
from canvas_fm.evaluation.leaderboard.submission import check_submission

BENCHMARK = {
    "title": "Cells <of> brains",
    "voxel_um": [4.0, 1.8, 1.8],
    "regions": [
        {"name": "th_1", "marker": "TH", "shape_zyx": [50, 60, 70], "tolerance_um": 8.0},
        {"name": "th_2", "marker": "TH", "shape_zyx": [50, 60, 70], "within": [[0, 0, 0, 50, 60, 30]]},
        {"name": "pv_1", "marker": "PV", "tolerance_voxels": 3.0},
    ],
}
CARD = {"name": "My <b>model</b>", "authors": ["Ä. One"], "method": "Magic.", "date": "2026-03-31"}


def cells(seed, n=40):
    return np.random.default_rng(seed).random((n, 3)) * [49, 59, 69]


def write_card(folder, **changes):
    (folder / "card.yaml").write_text(yaml.safe_dump(CARD | changes))


@pytest.fixture
def truth(tmp_path):
    folder = tmp_path / "truth"
    folder.mkdir()
    for seed, name in enumerate(("th_1", "th_2", "pv_1")):
        Points(cells(seed)).write(folder / f"{name}.csv")
    return folder


@pytest.fixture
def board(tmp_path):
    folder = tmp_path / "board"
    folder.mkdir()
    (folder / "benchmark.yaml").write_text(yaml.safe_dump(BENCHMARK))
    return folder


@pytest.fixture
def make(tmp_path):
    """`make("name", keep=0.8)`: a submission that found that share of the cells of each region."""

    def go(name="mine", keep=1.0, regions=("th_1", "th_2", "pv_1"), **card):
        folder = tmp_path / name
        (folder / "cells").mkdir(parents=True)
        write_card(folder, **card)
        for seed, region in enumerate(("th_1", "th_2", "pv_1")):
            if region in regions:
                found = cells(seed)[: round(40 * keep)]
                Points(found, {"score": np.linspace(1, 0.5, len(found))}).write(
                    folder / "cells" / f"{region}.csv"
                )
        return folder

    return go


# --- what is handed in


def test_a_sound_submission_is_copied_with_nothing_else(make, board):
    folder = make()
    target = submit(folder, board)
    assert sorted(p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file()) == [
        "card.yaml", "cells/pv_1.csv", "cells/th_1.csv", "cells/th_2.csv",
    ]  # fmt: skip
    assert (target / "cells/th_1.csv").read_bytes() == (folder / "cells/th_1.csv").read_bytes()
    with pytest.raises(CanvasError, match="called 'mine' is there already"):
        submit(folder, board)
    (folder / "cells/th_1.csv").write_text("z,y,x\n")
    submit(folder, board, replace=True)
    assert (target / "cells/th_1.csv").read_text() == "z,y,x\n"
    assert [path.name for path in (board / "submissions").iterdir()] == ["mine"]


def test_every_fault_is_told_at_once(make, board):
    folder = make(date="31.3.2026", url="javascript:alert(1)", autors=["me"], markers=["TH", "Iba1"])
    (folder / "cells/th_1.csv").write_text("z,y,x,score\n1,2,3,1\n1,2\none,2,3,1\n1,nan,3,1\n1,2,3,x\n")
    Points(np.array([[1.0, 2, 3], [1, 2, 3], [60, 2, 40]])).write(folder / "cells/th_2.csv")
    (folder / "cells/th1.csv").write_text("z,y,x\n")
    (folder / "notes.txt").write_text("hello")
    (folder / "cells/pv_1.csv").unlink()
    submission, faults = check_submission(folder, board)
    assert submission is None
    text = "\n".join(faults)
    for wanted in (
        r"card\.yaml: unknown key 'autors'; did you mean 'authors'\?",
        r"card\.yaml: date: '31\.3\.2026' is no date; expected year-month-day",
        r"card\.yaml: url is 'javascript:alert\(1\)'; string should match pattern",
        r"cells/th1\.csv: no region is called 'th1'; did you mean th_1\?",
        r"notes\.txt is not expected",
        r"cells/pv_1\.csv is missing",
        r"cells/th_1\.csv: row 2: 2 values; the column row names 4",
        r"cells/th_1\.csv: row 3: z is 'one', expected a finite number",
        r"cells/th_1\.csv: row 4: y is 'nan', expected a finite number",
        r"cells/th_1\.csv: row 5: score is 'x', expected a finite number",
        r"cells/th_2\.csv: 1 row repeats the position of another row",
        r"cells/th_2\.csv: 1 of 3 cells lie outside the volume \(50, 60, 70\), first in row 3",
    ):
        assert re.search(wanted, text), (wanted, text)
    assert len(faults) == 12
    with pytest.raises(CanvasError, match="12 faults, nothing was submitted; the first: card"):
        submit(folder, board)
    assert not (board / "submissions").exists()


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda f: (f / "card.yaml").unlink(), r"card\.yaml: there is no such file"),
        (lambda f: (f / "card.yaml").write_text("{"), r"card\.yaml: not readable as YAML"),
        (lambda f: shutil.copy(f / "cells/th_1.csv", f / "cells/th_1.tsv"), "th_1.csv is there too"),
        (lambda f: (f / "cells/th_1.csv").write_text("a,b\n1,2\n"), r"th_1\.csv: has no column z, y, x"),
        (lambda f: (f / "cells/th_1.csv").write_bytes(b"\xff\xfe\x00"), r"th_1\.csv: is not UTF-8"),
        (lambda f: (f / "cells/th_1.csv").rename(f / "cells/th_1.doc"), "says no format of points"),
        (lambda f: Points(cells(0)[:, ::-1]).write(f / "cells/th_1.csv"), "as x, y, z all would lie inside"),
        (lambda f: Points(np.array([[1, 2, 60.0]])).write(f / "cells/th_2.csv"), "no cell lies in the boxes"),
        (lambda f: write_card(f, name="a\u202eb"), "holds characters that cannot be shown"),
        (lambda f: write_card(f, markers=["DAPI"]), "the marker 'DAPI' is not in the benchmark"),
    ],
)  # fmt: skip
def test_each_kind_of_fault(spoil, fault, make, board):
    folder = make()
    spoil(folder)
    submission, faults = check_submission(folder, board)
    assert submission is None
    assert re.search(fault, "\n".join(faults)), faults


def test_links_are_refused_whatever_they_lead_to(make, board, truth):
    folder = make()
    (folder / "cells/th_1.csv").unlink()
    (folder / "cells/th_1.csv").symlink_to(truth / "th_1.csv")
    assert check_submission(folder, board) == (None, ["cells/th_1.csv is a link; give the file itself"])


@pytest.mark.parametrize("name", ["../evil", "a/b", "", ".hidden", "UPPER", "a" * 65])
def test_names_that_are_no_plain_names_are_refused(name, make, board):
    with pytest.raises(CanvasError, match="cannot name a submission"):
        submit(make(), board, name=name)


# --- scores


def test_scores_hold_counts_and_checksums_and_come_out_again(make, board, truth):
    submit(make(keep=0.8), board)
    assert score_board(board, truth) == ["mine"]
    scores = json.loads((board / "scores/mine.json").read_text())
    assert [scores["regions"]["th_1"][k] for k in ("tp", "fp", "fn")] == [32, 0, 8]
    assert scores["regions"]["th_1"]["tolerance"] == "8 µm"
    assert scores["regions"]["th_2"]["tolerance"] == "8 voxels, as for TH"
    inside = int((cells(1)[:, 2] < 29.5).sum())
    assert scores["regions"]["th_2"]["tp"] + scores["regions"]["th_2"]["fn"] == inside
    assert set(scores["files"]) == {"card.yaml", "cells/th_1.csv", "cells/th_2.csv", "cells/pv_1.csv"}
    th, pv = scores["markers"]["TH"]["f1"], scores["markers"]["PV"]["f1"]
    assert scores["mean_f1"]["value"] == pytest.approx((th + pv) / 2)
    assert scores["mean_f1"]["low"] < scores["mean_f1"]["value"] < scores["mean_f1"]["high"]
    assert score_board(board, truth, check=True) == ["mine"]
    scores["regions"]["th_1"]["tp"] = 40
    (board / "scores/mine.json").write_text(json.dumps(scores))
    with pytest.raises(CanvasError, match="differ from what is stored: mine"):
        score_board(board, truth, check=True)


def test_no_position_of_the_truth_is_anywhere_in_the_board(make, board, truth, tmp_path):
    marked = cells(0)
    marked[:, 0] = 12.34567
    Points(marked).write(truth / "th_1.csv")
    submit(make(keep=0.5), board)
    score_board(board, truth)
    write_page(board)
    for path in board.rglob("*"):
        if path.is_file():
            text = path.read_text()
            assert "12.34567" not in text, path
            for value in marked[20:, 1:].ravel():
                assert f"{value:.4f}" not in text, path


def test_truth_in_the_published_folder_is_refused(make, board, truth):
    submit(make(), board)
    inside = board / "truth"
    shutil.copytree(truth, inside)
    with pytest.raises(CanvasError, match=r"lies inside .*, which is published"):
        score_board(board, inside)
    (truth / "th_1.csv").unlink()
    (truth / "th_1.csv").symlink_to(inside / "th_1.csv")
    with pytest.raises(CanvasError, match="is a link into"):
        score_board(board, truth)
    (truth / "th_1.csv").unlink()
    with pytest.raises(CanvasError, match="0 files for region th_1; expected one"):
        score_board(board, truth)


def test_a_submission_that_went_bad_is_reported_and_the_others_scored(make, board, truth):
    submit(make("one"), board)
    submit(make("two", keep=0.5), board)
    (board / "submissions/one/cells/th_1.csv").write_text("nothing")
    reported = {}
    assert score_board(board, truth, report=reported.__setitem__) == ["two"]
    assert "has no column z, y, x" in reported["one"][0]
    assert list(read_entries(board)[2]) == ["one"]


# --- ranks and page


def test_ranks_go_by_the_mean_over_markers_and_partial_ones_have_none(make, board, truth):
    submit(make("good", keep=0.9), board)
    submit(make("better"), board)
    submit(make("also-better"), board)
    submit(make("expert", keep=1.0, regions=("pv_1",), markers=["PV"]), board)
    score_board(board, truth)
    _, entries, left_out = read_entries(board)
    assert [entry.name for entry in entries] == ["also-better", "better", "good", "expert"]
    assert left_out == {}
    text = write_page(board).read_text()
    overall = re.search("<h2>All markers.*?</section>", text, re.DOTALL)[0]
    rows = re.findall('<tr><td data-value="(.*?)">.*?<a href="#(.*?)">', overall)
    assert rows == [("1", "also-better"), ("1", "better"), ("3", "good"), ("", "expert")]
    pv = re.search("<h2>PV.*?</section>", text, re.DOTALL)[0]
    assert len(re.findall("<tr><td", pv)) == 4
    th = re.search("<h2>TH.*?</section>", text, re.DOTALL)[0]
    assert "#expert" not in th


def test_the_page_begins_with_who_leads(make, board, truth):
    def conclusion():
        text = write_page(board).read_text()
        (found,) = re.findall('<p class="conclusion">(.*?)</p>', text)
        assert text.index(found) < text.index("<table") if "<table" in text else True
        return found, re.findall('<div class="row( strong)?"><span>(.*?)</span>', text)

    submit(make("expert", regions=("pv_1",), markers=["PV"]), board)
    score_board(board, truth)
    assert "No submission covers all 2 markers" in conclusion()[0]
    worse, whole = make("worse", keep=0.5), make("all")
    write_card(worse, name="Worse")
    write_card(whole, name="All")
    submit(worse, board)
    submit(whole, board)
    score_board(board, truth)
    sentence, rows = conclusion()
    assert re.match(
        r"All leads with a mean F1 of \d\.\d{3} over 2 markers; Worse follows with 0\.\d{3}", sentence
    )
    assert rows == [(" strong", "All"), ("", "Worse")]


def test_the_page_escapes_what_submitters_write_and_runs_only_its_own_script(make, board, truth):
    submit(make(method="<img src=x onerror=alert(1)>", url="https://example.org/?a=1&b="), board)
    score_board(board, truth)
    text = write_page(board).read_text()
    assert "<img" not in text
    assert "My &lt;b&gt;model&lt;/b&gt;" in text
    assert "Cells &lt;of&gt; brains" in text
    assert text.count("<script>") == 1
    assert re.search("script-src 'sha256-[A-Za-z0-9+/=]{44}'", text)
    assert "unsafe-inline'; script" not in text.replace("style-src 'unsafe-inline'", "")
    assert re.findall('href="(?!#|data:|submissions/mine/)(.*?)"', text) == [
        "https://example.org/?a=1&amp;b="
    ]


def test_each_entry_names_its_files_and_how_to_score_them_again(make, board, truth, tmp_path):
    submit(make(), board)
    score_board(board, truth)
    (tmp_path / "site").mkdir()
    text = write_page(board, tmp_path / "site" / "page.html").read_text()
    scores = json.loads((board / "scores/mine.json").read_text())
    for path, digest in scores["files"].items():
        assert f'href="../board/submissions/mine/{path}"' in text
        assert digest in text
    assert "canvas-fm leaderboard score BOARD --truth TRUTH --only mine --check" in text


def test_files_that_changed_since_make_an_entry_out_of_date(make, board, truth):
    submit(make(), board)
    with pytest.raises(CanvasError, match="has no submissions yet"):
        _empty(board)
    assert read_entries(board)[2] == {"mine": "not scored yet"}
    score_board(board, truth)
    assert read_entries(board)[1][0].stale is None
    Points(cells(0)[:3]).write(board / "submissions/mine/cells/th_1.csv")
    assert read_entries(board)[1][0].stale == "its files are not those that were scored"
    assert "Out of date" in write_page(board).read_text()
    (board / "scores/mine.json").write_text("{")
    with pytest.raises(CanvasError, match=r"mine\.json is damaged"):
        read_entries(board)


def test_a_benchmark_is_checked(board, make):
    for change, sentence in (
        ({"region": []}, "unknown key 'region'; did you mean 'regions'"),
        ({"regions": []}, r"regions is \[\]; list should have at least 1"),
        ({"regions": [BENCHMARK["regions"][0]] * 2}, "two regions are called 'th_1'"),
        ({"regions": [{"name": "../x", "marker": "TH"}]}, "is no region's name"),
    ):
        (board / "benchmark.yaml").write_text(yaml.safe_dump(BENCHMARK | change))
        with pytest.raises(CanvasError, match=sentence):
            check_submission("anything", board)


@pytest.mark.slow
def test_a_click_sorts_in_a_real_browser(make, board, truth):
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("no chromium on this machine")
    for name, keep in (("low", 0.5), ("high", 0.9)):
        submit(make(name, keep=keep), board)
    score_board(board, truth)
    text = write_page(board).read_text()
    click = "document.querySelector('table.sortable').tHead.rows[0].cells[3].querySelector('button').click();"
    text = re.sub("<meta http-equiv.*?>", "", text).replace(
        "</body>", f"<script>{click}{click}</script></body>"
    )
    (board / "test.html").write_text(text)
    with tempfile.TemporaryDirectory() as profile:
        flags = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
        flags += "disable-component-update disable-sync"
        words = [browser, *(f"--{flag}" for flag in flags.split()), f"--user-data-dir={profile}"]
        done = subprocess.run(
            [*words, "--dump-dom", f"file://{board}/test.html"],
            capture_output=True,
            text=True,
            timeout=120,
        )
    table = re.search("<tbody>.*?</tbody>", done.stdout, re.DOTALL)[0]
    assert re.findall('<a href="#(.*?)"', table) == ["low", "high"]
    assert 'aria-sort="ascending"' in done.stdout


def _empty(board):
    """A board without submissions."""
    other = board.parent / "empty"
    other.mkdir()
    shutil.copy(board / "benchmark.yaml", other)
    read_entries(other)
