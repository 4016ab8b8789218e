"""A small volume, a small encoder and the command line in this process."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from canvas_fm.cli import main

VOXEL_UM = (4.0, 1.8, 1.8)


@pytest.fixture
def run(capsys):
    """`run("info", path)` → (exit code, stdout, stderr)."""

    def go(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main([str(word) for word in words])
        except SystemExit as end:  # argparse
            code = int(end.code or 0)
        return code, *capsys.readouterr()

    return go


@pytest.fixture
def result(run):
    """`result("info", path)` → what the verb prints with --json; it has to succeed."""

    def go(*words: object) -> dict:
        code, out, err = run(*words, "--json")
        assert code == 0, err
        return json.loads(out)

    return go


@pytest.fixture
def refusal(run):
    """`refusal("info", path)` → the one sentence on stderr; exit code 1, nothing on stdout, no traceback."""

    def go(*words: object) -> str:
        code, out, err = run(*words)
        assert code == 1, (code, out, err)
        assert out == ""
        lines = [line for line in err.splitlines() if not line.startswith(("INFO", "WARNING"))]
        assert len(lines) == 1, err
        assert lines[0].startswith("canvas-fm: "), err
        return lines[0].removeprefix("canvas-fm: ")

    return go


@pytest.fixture
def wrong(run):
    """`wrong("info", path, "--x")` → what is wrong with the flags, after the usage; exit code 2."""

    def go(*words: object) -> str:
        code, out, err = run(*words)
        assert (code, out) == (2, ""), err
        return err.partition(": error: ")[2]

    return go


@pytest.fixture(scope="session")
def brain(tmp_path_factory) -> Path:
    """A volume of noise with a bright half, (24, 64, 72) voxels."""
    from canvas_fm.data.volume.volume import Volume

    path = tmp_path_factory.mktemp("brains") / "brain.zarr"
    voxels = np.random.default_rng(0).integers(90, 400, (24, 64, 72), dtype=np.uint16)
    voxels[:, 20:40, 20:40] += 2000
    options = {"voxel_um": VOXEL_UM, "chunk_zyx": (8, 32, 32), "marker": "PV"}
    with Volume.create(path, voxels.shape, **options) as writer:
        writer.write((0, 0, 0), voxels)
    return path


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    """An untrained encoder with its decoder, a few thousand weights."""
    import torch

    from canvas_fm.models.encoder.mae import DecoderConfig, MaskedAutoencoder
    from canvas_fm.models.encoder.vit import EncoderConfig
    from canvas_fm.models.load_model import save_encoder

    torch.manual_seed(0)
    mae = MaskedAutoencoder(EncoderConfig(dim=24, depth=1, heads=2), DecoderConfig(dim=12, depth=1, heads=2))
    folder = tmp_path_factory.mktemp("models") / "tiny"
    provenance = {"trained_on": [{"name": "somewhere"}], "recipe": {"model": {"mask_ratio": 0.55}}}
    save_encoder(folder, mae, voxel_um=VOXEL_UM, provenance=provenance)
    return folder


@pytest.fixture
def points(tmp_path) -> Path:
    """Four points of `brain`, with a column."""
    path = tmp_path / "cells.csv"
    path.write_text("z,y,x,score\n12,30,30,0.5\n8,40,20,0.25\n20,10.4,60,1\n12,30,31,0\n", encoding="utf-8")
    return path


@pytest.fixture
def recipe(tmp_path) -> Path:
    """A training of a few steps."""
    path = tmp_path / "tiny.yaml"
    path.write_text(
        "model:\n"
        "  encoder: {dim: 24, depth: 1, heads: 2}\n"
        "  decoder: {dim: 12, depth: 1, heads: 2}\n"
        "data: {crops: 16}\n"
        "training: {steps: 3, batch: 4, log_every: 1, precision: fp32}\n"
        "evaluation: {crops: 4, figures: false}\n",
        encoding="utf-8",
    )
    return path
