"""Cards of models: every number is the report's, and the report is of the model that is shipped."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from canvas_fm.errors import CanvasError
from canvas_fm.evaluation.cards.card import BEGIN, END, check_card, read_report, write_card
from canvas_fm.evaluation.cards.report import Report, figure_of
from canvas_fm.evaluation.detection.score import evaluate
from canvas_fm.files import shipped
from canvas_fm.models.detector.convmixer import ConvMixerConfig, HeatMapNet
from canvas_fm.models.folder.model_folder import checked_config
from canvas_fm.models.load_model import load, save_detector
from canvas_fm.viewing.info.describe import describe

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(shipped.shipped("model"))


def numbers(text: str) -> list[float]:
    """Every number of a table's cell."""
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", text.replace(",", ""))]


def expanded(text: str) -> list[str]:
    """What a shell makes of the braces of a word, the innermost and first of them first."""
    brace = re.search(r"\{([^{}]*)\}", text)
    if brace is None:
        return [text]
    parts = (text[: brace.start()] + part + text[brace.end() :] for part in brace[1].split(","))
    return list(dict.fromkeys(word for part in parts for word in expanded(part)))


def rows_of(block: str) -> list[list[str]]:
    """The cells of the last table of a text, its heads first."""
    lines = [line for line in block.rpartition("\n\n")[2].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "---" not in line]


# --- what is shipped


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_models_command_names_the_volumes_that_it_was_trained_on(name):
    report = read_report(name)
    assert "*" not in report.command
    volumes = [word for word in report.command.split() if word.endswith("/raw.zarr")]
    named = [Path(path).parent.name for word in volumes for path in expanded(word)]
    provenance = checked_config(shipped.find("model", name))["provenance"]
    trained_on = [one["name"] if isinstance(one, dict) else one for one in provenance["trained_on"]]
    assert sorted(named) == sorted(trained_on)
    assert report.licence
    assert report.commit
    assert report.date


@pytest.mark.parametrize("name", SHIPPED or ["none"])
def test_a_shipped_models_card_says_what_its_report_says(name):
    if name == "none":
        pytest.skip("no model is shipped in this version")
    assert check_card(name) == []
    report = read_report(name)
    assert report.sha256 == checked_config(shipped.find("model", name))["sha256"]
    block = shipped.find("card", name).read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    heads, *rows = rows_of(block)
    assert len(rows) == len(report.figures) > 0
    for row, figure in zip(rows, report.figures, strict=True):
        said = dict(zip(heads, row, strict=True))
        assert (said["data"], said["split"], said["metric"]) == (figure.data, figure.split, figure.metric)
        assert numbers(said["cells"]) == [figure.n]
        assert numbers(said["value"]) == [round(figure.value, 3)]
        ends = [end for end in (figure.low, figure.high) if end is not None]
        assert numbers(said["interval"]) == [round(end, 3) for end in ends]
        for other, value in figure.beside.items():
            assert numbers(said[other]) == [round(value, 3)]
    words = report.command.split()
    assert words[0] == "canvas-fm"
    if words[1] != "refine":
        assert words[1] in ("pretrain", "train-detector")
        assert words[2] in shipped.shipped("recipe")


def test_every_card_is_of_a_model_that_is_there():
    assert sorted(shipped.shipped("card")) == SHIPPED


# --- how cards are made


@pytest.fixture
def released(tmp_path, monkeypatch):
    """A package that ships a detector called detector-x, with a folder for its card."""
    net = HeatMapNet(ConvMixerConfig(dim=4, depth=1, kernel_zyx=(3, 3, 3)))
    torch.manual_seed(0)
    provenance = {"trained_on": [{"name": "695"}, {"name": "1008"}]}
    settings = {"voxel_um": (6.0, 1.62, 1.62), "threshold": 0.37, "min_distance_um": 8}
    save_detector(tmp_path / "weights" / "detector-x", net, provenance=provenance, **settings)
    (tmp_path / "cards").mkdir()
    roots = {"model": (tmp_path / "weights",), "card": (tmp_path / "cards",)}
    monkeypatch.setattr(shipped, "_ROOTS", roots | {"recipe": (ROOT / "recipes",)})
    return tmp_path


@pytest.fixture
def report(released):
    truth = np.zeros((8, 3))
    truth[:, 2] = 20 * np.arange(8)
    score = evaluate(truth[:6], truth, tolerance_voxels=2, chance=False)
    figures = [
        figure_of(score, "c-Fos 695, z < 100", "fold", beside={"LoG, carried": 0.655, "LoG, tuned": 0.82}),
        figure_of(score, "microglia 6003", "test", beside={"LoG, carried": 0.95}),
    ]
    return Report(
        model="detector-x",
        sha256=load("detector-x").sha256,
        command="canvas-fm train-detector detector_cfos --volumes A --points B --out RUN",
        seed=3,
        cpu_minutes=41.6,
        machine="2 cores",
        protocol="Within 8 µm.",
        figures=figures,
        versions={"torch": "2.13.0"},
    )


def test_a_card_carries_report_and_config(released, report):
    page = write_card(report, released / "cards", about="Finds cells.")
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# detector-x\n\nFinds cells.\n\n")
    assert check_card("detector-x") == []
    assert read_report("detector-x") == report
    assert "| operating threshold | 0.37 |" in text
    assert "| voxel size z, y, x, µm | 6 × 1.62 × 1.62 |" in text
    assert "| trained on | 695, 1008 |" in text
    assert "| seed and cost | 3, 42 CPU minutes on 2 cores |" in text
    f1 = 2 * 6 / (6 + 8)
    interval = " to ".join(f"{end:.3f}" for end in (report.figures[0].low, report.figures[0].high))
    assert rows_of(text) == [
        ["data", "split", "cells", "metric", "value", "interval", "LoG, carried", "LoG, tuned"],
        ["c-Fos 695, z < 100", "fold", "8", "F1", f"{f1:.3f}", interval, "0.655", "0.820"],
        ["microglia 6003", "test", "8", "F1", f"{f1:.3f}", interval, "0.950", "–"],
    ]


def test_a_card_written_again_keeps_its_prose(released, report):
    page = write_card(report, released / "cards", about="Finds cells.")
    page.write_text(page.read_text() + "\n## Not for\n\nNeurons.\n")
    write_card(report.model_copy(update={"seed": 4}), released / "cards")
    text = page.read_text()
    assert "| seed and cost | 4, " in text
    assert text.endswith("## Not for\n\nNeurons.\n")
    assert text.startswith("# detector-x\n\nFinds cells.\n")


@pytest.mark.parametrize(
    ("old", "new"),
    [("| fold | 8 |", "| fold | 9 |"), ("0.820", "0.920"), ("0.37", "0.38"), ("| 0.950 |", "| 0.95 |")],
)
def test_a_number_changed_by_hand_is_found(released, report, old, new):
    page = write_card(report, released / "cards", about="Finds cells.")
    text = page.read_text()
    assert old in text
    page.write_text(text.replace(old, new, 1))
    assert len(check_card("detector-x")) == 1


def test_a_report_of_other_weights_is_refused(released, report):
    write_card(report, released / "cards", about="Finds cells.")
    torch.manual_seed(1)
    net = HeatMapNet(ConvMixerConfig(dim=4, depth=1, kernel_zyx=(3, 3, 3)))
    settings = {"voxel_um": (6.0, 1.62, 1.62), "threshold": 0.37, "min_distance_um": 8}
    save_detector(released / "weights" / "detector-x", net, **settings)
    assert "score the model that is there" in check_card("detector-x")[0]
    with pytest.raises(CanvasError, match="score the model that is there"):
        write_card(report, released / "cards")


def test_what_no_card_can_be_made_of(released, report):
    with pytest.raises(CanvasError, match=r"give the text that it begins with"):
        write_card(report, released / "cards")
    page = write_card(report, released / "cards", about="Finds cells.")
    page.write_text(page.read_text().replace(END, ""))
    with pytest.raises(CanvasError, match="does not hold the two marks"):
        write_card(report, released / "cards")
    assert "does not hold the two marks" in check_card("detector-x")[0]
    path = released / "cards" / "reports" / "detector-x.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"figures": [content["figures"][0] | {"split": "train"}]}))
    with pytest.raises(CanvasError, match=r"split is 'train'; expected 'fold' or 'test'"):
        read_report("detector-x")


def test_info_of_a_shipped_model_leads_to_its_card(released, report):
    assert "card" not in describe("detector-x")
    page = write_card(report, released / "cards", about="Finds cells.")
    said = describe("detector-x")
    assert said["kind"] == "detector"
    assert said["card"] == str(page)
    assert [figure["value"] for figure in said["figures"]] == [figure.value for figure in report.figures]
    json.dumps(said)
