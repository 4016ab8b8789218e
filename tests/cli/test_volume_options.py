"""Each verb that opens a volume takes the same options, and opens the volume with them."""

from __future__ import annotations

import argparse

import numpy as np
import pytest
import zarr

from canvas_fm import Points
from canvas_fm.cli import build_parser

OPTIONS = {"--c", "--t", "--voxel-um", "--missing-chunks", "--on-bad-chunk"}
# Verbs that open no volume of the user's: cells, models, tables, label volumes of an atlas, phantoms.
OTHERS = {
    "list", "phantom", "dataset check", "dataset write", "export", "regions", "coexpress", "proximity",
    "groups", "profiles", "brain-report", "probe fit", "probe apply", "tables", "leaderboard validate",
    "leaderboard submit", "leaderboard score", "leaderboard page", "points convert", "index", "search",
    "store", "demo", "export-onnx", "push",
    "study",  # its file names volumes and their options, brain by brain
}  # fmt: skip


def parsers(parser=None, name=""):
    parser = build_parser() if parser is None else parser
    groups = [each for each in parser.filled()._actions if isinstance(each, argparse._SubParsersAction)]
    for group in groups:
        for verb, inner in group.choices.items():
            yield from parsers(inner, f"{name} {verb}".strip())
    if not groups:
        yield name, parser._option_string_actions


def test_every_verb_that_opens_a_volume_has_the_five_options():
    lacking = {name: OPTIONS - set(flags) for name, flags in parsers() if name not in OTHERS}
    assert {name: left for name, left in lacking.items() if left} == {}
    assert {name for name, _ in parsers()} >= OTHERS


def test_a_background_and_masks_have_a_channel_of_their_own():
    for name, flags in parsers():
        for flag in ("--background", "--masks"):
            assert (flag in flags) == (f"{flag}-c" in flags), name


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A folder with a store of two channels and of two label channels, cells, tiles and planes."""
    folder = tmp_path_factory.mktemp("two")
    voxels = np.random.default_rng(0).integers(100, 900, (2, 12, 20, 30)).astype("uint16")
    for name in ("two.zarr", "labels.zarr"):
        group = zarr.open_group(folder / name, mode="w", zarr_format=2)
        group.create_array("0", data=voxels, chunks=(1, 8, 16, 16))
        axes = [{"name": "c", "type": "channel"}]
        axes += [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"]
        scale = [{"type": "scale", "scale": [1, 4, 1.8, 1.8]}]
        levels = [{"path": "0", "coordinateTransformations": scale}]
        group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": levels}]
    Points(np.full((3, 3), 6.0), {"label": np.array([1, 0, 1])}).write(folder / "cells.csv")
    (folder / "tiles.csv").write_text("tile,z,y,x\ntwo.zarr,0,0,0\nlabels.zarr,0,0,20\n")
    (folder / "roi.json").write_text("[[0, 0, 0, 12, 20, 30]]")
    return folder


STAY = {"serve", "sweep", "review", "view"}  # services that stay, and a sweep, which is tried below

VERBS = {
    "info": "two.zarr",
    "audit": "two.zarr cells.csv --out a.csv",
    "convert": "two.zarr out.zarr",
    "destripe": "two.zarr out.zarr",
    "stitch": ". out.zarr --positions tiles.csv",
    "pretrain": "phantom --volumes two.zarr --out run",
    "embed": "base two.zarr --points cells.csv --out e.emb.zarr",
    "reconstruct": "base two.zarr --out r.png",
    "quantise": "base --calibrate two.zarr --volumes two.zarr --candidates cells.csv --labels label",
    "detect": "detector-cfos two.zarr --out d.csv",
    "train-detector": "detector_cfos --volumes two.zarr --points cells.csv --out run",
    "adapt": "detector-cfos two.zarr --points cells.csv --roi roi.json --out run",
    "domains": "out --volumes two.zarr --points cells.csv --tolerance-um cFos=8",
    "refine fit": "--encoder base --volumes two.zarr --candidates cells.csv --labels label --out r",
    "refine apply": "refiner-microglia two.zarr cells.csv --out r.csv",
    "count": "two.zarr --detector detector-cfos --out n.csv",
    "segment": "two.zarr cells.csv --out l.zarr --table m.csv",
    "evaluate-segmentation": "labels.zarr labels.zarr",
    "report": "--volumes two.zarr --candidates cells.csv --truth cells.csv --tolerance-um 8 --out r",
    "evaluate": "cells.csv cells.csv --tolerance-um 8 --volume two.zarr",
    "feature-benchmark": "base --volumes two.zarr --points cells.csv --labels label",
}


@pytest.mark.parametrize("verb", VERBS)
def test_the_channel_that_is_named_is_the_one_that_is_opened(verb, two, refusal, monkeypatch):
    monkeypatch.chdir(two)
    assert "no c=7" in refusal(*verb.split(), *VERBS[verb].split(), "--c", 7)


def test_every_such_verb_is_tried():
    assert {name for name, _ in parsers()} - OTHERS - STAY == set(VERBS)


def test_a_background_is_another_channel_than_its_volume(two, refusal, monkeypatch):
    monkeypatch.chdir(two)
    words = ["detect", "detector-cfos", "two.zarr", "--out", "d.csv", "--c", 1, "--background"]
    assert "is the volume itself" in refusal(*words, "two.zarr")
    assert "no c=9" in refusal(*words, "two.zarr", "--background-c", 9)
    words += ["two.zarr", "--background-c", 0, "--ignore-voxel-size"]
    assert "leave --background out" in refusal(*words)


def test_a_sweep_opens_its_volumes_as_it_is_told(two, tmp_path, monkeypatch):
    from canvas_fm.data.volume.volume_flags import VolumeOptions
    from canvas_fm.training.recipe.recipe import Recipe
    from canvas_fm.training.sweep.workers import PlannedTraining, train_one

    recipe = Recipe.model_validate({"training": {"steps": 1}})
    for c, message in ((None, "--c 0 to 1"), (7, "no c=7")):
        opening = VolumeOptions() if c is None else VolumeOptions(c=c)
        job = PlannedTraining("one", tmp_path / "run", recipe, (two / "two.zarr",), (), opening)
        assert message in (train_one(job, "cpu").error or "")
