"""`adapt` from the command line: what it prints, and what it leaves."""

from __future__ import annotations

import json

import numpy as np
import torch

from canvas_fm import Points, Volume, load
from canvas_fm.models.detector.convmixer import HeatMapNet
from canvas_fm.models.folder.network_config import ConvMixerConfig
from canvas_fm.models.load_model import save_detector


def test_adapt_writes_a_detector_and_says_why_it_is_as_it_is(result, refusal, tmp_path):
    torch.manual_seed(0)
    net = HeatMapNet(ConvMixerConfig(dim=8, depth=1, kernel_zyx=(3, 3, 3)), prior=0.3)
    save_detector(tmp_path / "d", net, voxel_um=(4, 2, 2), threshold=0.3, min_distance_um=8.0)
    random = np.random.default_rng(0)
    with Volume.create(tmp_path / "brain.zarr", (16, 48, 64), voxel_um=(4, 2, 2)) as writer:
        writer.write((0, 0, 0), random.integers(90, 200, (16, 48, 64)).astype(np.uint16))
    cells = np.stack(np.meshgrid([8], [10, 30], [8, 24, 40, 56], indexing="ij"), -1).reshape(-1, 3)
    Points(cells.astype(float)).write(tmp_path / "few.csv")
    (tmp_path / "roi.json").write_text("[[0, 0, 0, 16, 48, 64]]")
    command = [
        "adapt", tmp_path / "d", tmp_path / "brain.zarr", "--points", tmp_path / "few.csv",
        "--roi", tmp_path / "roi.json", "--out", tmp_path / "new", "--device", "cpu",
    ]  # fmt: skip
    done = result(*command, "--layers", "last", "--steps", 3, "--folds", 2)
    found = load(tmp_path / "new", kind="detector")
    assert (done["cells"], done["sha256"]) == (8, found.sha256)
    assert done["threshold"] == found.config.threshold
    ways = [row["way"] for row in done["cross_validated"]]
    assert ways == ["unadapted", "threshold", "last layers"]  # eight cells are too few for amplitude
    told = json.loads((tmp_path / "new" / "config.json").read_text())["provenance"]["adaptation"]
    assert (told["chosen"], told["folds"], told["options"]["steps"]) == (done["chosen"], 2, 3)
    assert "too few" in refusal(*command[:4], _one_cell(tmp_path), *command[5:])


def _one_cell(folder):
    Points(np.array([[8.0, 10.0, 8.0]])).write(folder / "one.csv")
    return folder / "one.csv"
