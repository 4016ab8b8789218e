"""A study runs each step of each brain once, whatever kills it, and again where its inputs changed."""

from __future__ import annotations

import json
import os

import pytest
import tifffile
import yaml

from canvas_fm.cli import main
from canvas_fm.data.points.points import Points
from canvas_fm.errors import CanvasError
from canvas_fm.inference.detect.detect import detect
from canvas_fm.inference.embed.store.embedding_store import Embeddings
from canvas_fm.inference.search.index.index import Index
from canvas_fm.models.load_model import load
from canvas_fm.pipeline.study import study as runner
from canvas_fm.pipeline.study.finished_steps import Record, begin, folder_digest, write_record
from canvas_fm.pipeline.study.settings import StudySettings
from canvas_fm.pipeline.study.steps import page, profiles
from canvas_fm.pipeline.study.study import study
from canvas_fm.viewing.brain_report import report
from tests.pipeline.study.tiny import settings, write_inputs

SMALL = {"refine": None, "embed": None, "index": None}  # what takes long is left out
OF_BRAIN = ("convert", "detect", "refine", "embed", "regions")


class Killed(BaseException):
    """Ends the work wherever it is, as a kill."""


PNG = b"\x89PNG of no size"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, _own_cache):
    return write_inputs(tmp_path_factory.mktemp("inputs"), 4)


@pytest.fixture
def figures_not_drawn(monkeypatch):
    """Figures are half of the time, and what they show is not what these tests look at."""
    draw_no_brains(monkeypatch)
    monkeypatch.setattr(report, "planes_png", lambda *_: PNG)
    monkeypatch.setattr(profiles, "profile_figure", lambda _, path: path.write_bytes(PNG))


def draw_no_brains(monkeypatch):
    monkeypatch.setattr(page, "section_png", lambda *_: (PNG, "a plane"))
    monkeypatch.setattr(page, "count_figure", lambda _, path: path.write_bytes(PNG))


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory):
    """The study that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "study"
    run = study(StudySettings.model_validate(settings(2)), out, data=inputs)
    assert len(run.ran) == 2 * len(OF_BRAIN) + 2
    return out


@pytest.fixture
def finished(monkeypatch):
    """Names of the tasks whose record said that they were done, in order."""
    names: list[str] = []
    true = runner.write_record

    def write(path, record: Record) -> None:
        if record.state == "done":
            names.append(f"{path.parent.name} of {path.stem}")
        true(path, record)

    monkeypatch.setattr(runner, "write_record", write)
    return names


def digests(out):
    """A hash of what each step left; the page shows when that was."""
    return {
        str(folder.relative_to(out)): folder_digest(folder)
        for step in ("convert", "detect", "refine", "embed", "index")
        for folder in sorted((out / step).iterdir())
    } | {path.parent.name: path.read_bytes() for path in sorted(out.glob("regions/*/regions.csv"))}


def run_with_kills(inputs, out, places, monkeypatch):
    """Runs that die at their n-th flush to the disk, one after the other, then one to the end."""
    true = os.fsync
    for place in places:
        flushes = 0

        def fsync(handle, place=place):
            nonlocal flushes
            flushes += 1
            if flushes == place:
                raise Killed
            true(handle)

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", fsync)
            with pytest.raises(Killed):
                study(StudySettings.model_validate(settings(2)), out, data=inputs)
    return study(StudySettings.model_validate(settings(2)), out, data=inputs)


@pytest.mark.slow
@pytest.mark.usefixtures("figures_not_drawn")
def test_killed_at_several_places_nothing_is_done_twice(inputs, whole, finished, monkeypatch, tmp_path):
    run = run_with_kills(inputs, tmp_path / "s", (2, 25, 31, 60), monkeypatch)
    assert sorted(finished) == sorted(set(finished))
    assert len(finished) == 2 * len(OF_BRAIN) + 2
    assert 0 < len(run.kept) < len(finished)
    assert digests(tmp_path / "s") == digests(whole)
    finished.clear()
    again = study(StudySettings.model_validate(settings(2)), tmp_path / "s", data=inputs)
    assert (again.ran, finished) == ((), [])


def test_steps_are_the_public_functions(inputs, whole):
    cells = Points.read(whole / "detect/b1/cells.csv")
    from canvas_fm.data.volume.volume import Volume

    volume = Volume.open(whole / "convert/b1/b1.zarr")
    assert volume.name == "b1"
    assert (volume.read((3, 0, 0), (1, *volume.shape_zyx[1:]))[0] == tifffile.imread(
        inputs / "raw/1/p_0003.tif"
    )).all()  # fmt: skip
    python = detect(load(inputs / "models/det", kind="detector"), volume, device="cpu")
    assert len(python) == len(cells) > 10
    assert (python.zyx == cells.zyx).all()
    refined = Points.read(whole / "refine/b1/cells.csv")
    embedded = Embeddings.open(whole / "embed/b1/cells.emb.zarr")
    assert len(refined) == len(embedded) == len(cells)
    index = Index.open(whole / "index/cells.index")
    assert len(index) == len(embedded) + len(Points.read(whole / "refine/b0/cells.csv"))
    assert {row["brain"] for row in index.describe(range(len(index)))} == {"b0", "b1"}


@pytest.mark.usefixtures("figures_not_drawn")
def test_what_changed_is_done_again_and_what_it_changes(inputs, finished, tmp_path):
    def run(**sections):
        finished.clear()
        study(StudySettings.model_validate(settings(2, **SMALL, **sections)), tmp_path / "s", data=inputs)
        return finished

    assert len(run()) == 7
    assert run() == []
    higher = {"detector": "models/det", "threshold": 0.6}
    changed = ["detect of b0", "regions of b0", "detect of b1", "regions of b1", "report of all"]
    assert run(detect=higher) == changed
    # How many threads there are decides nothing; the page shows the settings.
    assert run(detect=higher, convert=settings(2)["convert"] | {"threads": 1}) == ["report of all"]
    plane = inputs / "raw/1/p_0002.tif"
    before = plane.stat()
    os.utime(plane, (before.st_atime, before.st_mtime + 5))
    try:
        found = run(detect=higher)
    finally:
        os.utime(plane, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "convert of b1" in found
    assert "convert of b0" not in found


@pytest.mark.usefixtures("figures_not_drawn")
def test_a_table_that_somebody_changed_is_neither_used_nor_lost(inputs, tmp_path):
    small = SMALL | {"regions": None}
    chosen = StudySettings.model_validate(settings(1, **small))
    study(chosen, tmp_path / "s", data=inputs)
    table = tmp_path / "s/detect/b0/cells.csv"
    table.write_bytes(table.read_bytes()[:-4])
    run = study(chosen, tmp_path / "s", data=inputs)
    assert "is not as the study wrote it" in run.failed["b0"]
    other = StudySettings.model_validate(
        settings(1, **small, detect={"detector": "models/det", "threshold": 0.7})
    )
    assert "is not as the study wrote it" in study(other, tmp_path / "s", data=inputs).failed["b0"]
    for path in table.parent.iterdir():
        path.unlink()
    assert study(chosen, tmp_path / "s", data=inputs).ran == ("detect of b0",)
    (tmp_path / "t/detect/b0").mkdir(parents=True)
    (tmp_path / "t/detect/b0/mine.csv").write_text("z,y,x\n")
    assert "was not made by this study" in study(chosen, tmp_path / "t", data=inputs).failed["b0"]


def test_what_a_kill_left_half_written_does_not_stay(tmp_path):
    folder, record = tmp_path / "detect/b0", tmp_path / "records/detect/b0.json"
    folder.mkdir(parents=True)
    write_record(record, Record("begun", {"a": 1}))
    for name in (".cells.csv.x1y2.tmp", "cells.csv"):
        (folder / name).write_text("z,y,x\n", encoding="utf-8")
    begin(folder, record, {"a": 1})
    assert [path.name for path in folder.iterdir()] == ["cells.csv"]
    begin(folder, record, {"a": 2})
    assert list(folder.iterdir()) == []


@pytest.mark.usefixtures("figures_not_drawn")
def test_only_some_steps_use_nothing_outdated(inputs, tmp_path):
    def run(**chosen):
        return study(
            StudySettings.model_validate(settings(2, **SMALL)), tmp_path / "s", data=inputs, **chosen
        )

    sentence = "detect of b0 reads convert of b0, which is not up to date; run that step too"
    assert run(only=["detect"]).failed["b0"].endswith(sentence)
    assert run(only=["convert", "detect"], brains=["b1"]).ran == ("convert of b1", "detect of b1")
    assert run(only=["convert", "detect"]).ran == ("convert of b0", "detect of b0")
    assert run(start="regions").ran == ("regions of b0", "regions of b1", "report")
    with pytest.raises(CanvasError, match="has no step embed; it has convert, detect, regions, report"):
        run(only=["embed"])


def test_a_brain_that_fails_does_not_stop_the_others(inputs, tmp_path):
    content = settings(2, **SMALL, regions=None)
    content["brains"]["b0"]["source"] = "raw/nowhere"
    run = study(StudySettings.model_validate(content), tmp_path / "s", data=inputs)
    assert run.ran == ("convert of b1", "detect of b1")
    assert "raw/nowhere does not exist" in run.failed["b0"]


def test_dry_run_says_what_would_run_and_writes_nothing(inputs, whole, tmp_path, capsys):
    path = inputs / "s.yaml"
    path.write_text(yaml.safe_dump(settings(2)), encoding="utf-8")
    assert main(["study", str(path), "--out", str(tmp_path / "s"), "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert not (tmp_path / "s").exists()
    assert (found["tasks"], found["done"]) == (12, 0)
    rows = {row["task"]: row for row in found["steps"]}
    assert rows["convert of b0"]["bytes"] > 1000
    assert rows["embed of b1"]["bytes"] > 1000
    assert rows["detect of b0"] | {"minutes": 0, "bytes": 0} == {
        "task": "detect of b0", "state": "waits", "because": "convert of b0", "minutes": 0, "bytes": 0,
    }  # fmt: skip
    assert main(["study", str(path), "--out", str(whole), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["done"] == 12
    page = (whole / "report/index.html").read_text(encoding="utf-8")
    assert page.count("A plane of b") == 2
    assert "data:image/png" in page
    assert "<script" not in page


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"detect": None}, "refine reads what detect writes; add a section detect"),
        ({"detct": {}}, "unknown key 'detct'; did you mean 'detect'"),
        ({"groups": {}, "regions": None}, "groups reads what regions writes"),
        ({"profiles": {}, "embed": None, "index": None}, "profiles reads what embed writes"),
        ({"brains": {"a/b": {"source": "x"}}}, "the brain 'a/b' names folders"),
        ({"regions": {}}, "the brain b0 has no atlas"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_runs(tmp_path, capsys, change, sentence):
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump(settings(1) | change), encoding="utf-8")
    with pytest.raises(SystemExit, match="1"):
        main(["study", str(path)])
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


@pytest.fixture(scope="module")
def compared(inputs, tmp_path_factory):
    """Four volumes in two groups, with groups, profiles and the printable page; and how to run it again."""
    content = settings(4, title="Two groups", convert=None, refine=None, index=None)
    for at, brain in enumerate(content["brains"].values()):
        brain["source"] = f"source{at}.zarr"
    out = tmp_path_factory.mktemp("compared") / "study"

    def run(**sections):
        return study(StudySettings.model_validate(content | sections), out, data=inputs).ran

    with pytest.MonkeyPatch.context() as patched:
        draw_no_brains(patched)
        ran = run()
    assert ran[-4:] == ("groups", "profiles", "brain_report", "report")
    return out, run


def test_profiles_are_those_of_the_verb(compared, tmp_path):
    out, _ = compared
    words = ["profiles", str(out / "profiles/study.csv"), "--out", str(tmp_path / "p.csv")]
    assert main([*words, "--min-cells", "1", "--clusters", "2"]) == 0
    written = (out / "profiles/profiles.csv").read_text(encoding="utf-8")
    assert written == (tmp_path / "p.csv").read_text(encoding="utf-8")
    assert {"F,novelty", "B,cluster 1"} <= {",".join(line.split(",")[:2]) for line in written.splitlines()}
    assert len(Points.read(out / "profiles/examples.csv")) > 0


def test_the_printable_page_has_all_brains_groups_and_provenance(compared, inputs):
    out, _ = compared
    text = (out / "brain_report/report.html").read_text(encoding="utf-8")
    for at in range(4):
        name = f"b{at}, {('control', 'treated')[at % 2]}"
        assert f"<h2>{name}</h2>" in text
        assert f"Densities and cells of {name} on the borders" in text
    for name in ("Volcano plot", "Regions by brains", "What the cells look like"):
        assert f"<h2>{name}</h2>" in text
    sha256 = json.loads((inputs / "models/det/config.json").read_text(encoding="utf-8"))["sha256"]
    for words in ("<h1>Two groups</h1>", sha256, "min_count: 0", "regions differ at a false", "To cite"):
        assert words in text
    assert text.count("data:image/png") == 4 + 3


@pytest.mark.usefixtures("figures_not_drawn")
def test_other_profiles_repeat_neither_cells_nor_groups(compared):
    _, run = compared
    ran = run(profiles={"min_cells": 1, "clusters": 3})
    assert ran == ("profiles", "brain_report", "report")
    assert run(profiles={"min_cells": 1, "clusters": 3}) == ()
