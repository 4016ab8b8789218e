"""Precision `auto`: bf16 where the processor has it, recorded as what it was, never mixed in one result."""

from __future__ import annotations

import pytest
import torch

import canvas_fm as cf
from canvas_fm.inference.detect.detect import detector_job
from canvas_fm.inference.run_flags import DetectorRun, EncoderRun
from canvas_fm.models import device as devices
from tests.inference.detect.nets import blobs, make_detector, write


@pytest.fixture(autouse=True)
def by_the_processor(monkeypatch):
    monkeypatch.delenv(devices.AUTO_VARIABLE)


@pytest.fixture
def detector(tmp_path):
    return make_detector(tmp_path / "run" / "detector")


@pytest.mark.parametrize(("instructions", "expected"), [(False, "fp32"), (True, "bf16")])
def test_auto_is_the_default_and_goes_by_the_processor(
    instructions, expected, detector, tmp_path, monkeypatch
):
    monkeypatch.setattr(devices, "native_bf16", lambda device: instructions)
    assert DetectorRun().precision == EncoderRun().precision == "auto"
    assert devices.resolved_precision("auto", torch.device("cpu")) == expected
    assert devices.resolved_precision("int8", torch.device("cpu")) == "int8"
    job = detector_job(detector, write(tmp_path / "a.zarr", blobs()), device="cpu")
    assert (job.heat.precision, job.inputs["precision"]) == (expected, expected)


@pytest.mark.parametrize("check", ["_is_avx512_bf16_supported", "_is_amx_tile_supported"])
def test_either_set_of_instructions_is_enough(check, monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name == check, raising=False)
    assert devices.pick_precision("auto", torch.device("cpu")) == torch.bfloat16


@pytest.mark.parametrize(("named", "expected"), [("fp32", "fp32"), ("bf16", "bf16"), ("", "bf16")])
def test_the_environment_says_what_auto_is_on_every_machine(named, expected, monkeypatch):
    monkeypatch.setattr(devices, "native_bf16", lambda device: True)
    monkeypatch.setenv(devices.AUTO_VARIABLE, named)
    assert devices.resolved_precision("auto", torch.device("cpu")) == expected
    assert devices.resolved_precision("fp32", torch.device("cpu")) == "fp32"
    monkeypatch.setenv(devices.AUTO_VARIABLE, "fp16")
    with pytest.raises(cf.CanvasError, match="CANVAS_FM_PRECISION is 'fp16'; give one of auto, fp32, bf16"):
        devices.pick_precision("auto", torch.device("cpu"))


def test_what_auto_takes_here_finds_the_cells_of_fp32():
    """In bf16 where the processor has it, whatever the tiles."""
    detector, volume = cf.load("detector-microglia", kind="detector"), cf.sample("microglia").volume
    exact = cf.detect(detector, volume, device="cpu", precision="fp32", show=False)
    auto = cf.detect(detector, volume, device="cpu", tile_zyx=(32, 96, 96), show=False)
    score = {tuple(zyx): score for zyx, score in zip(exact.zyx, exact.columns["score"], strict=True)}
    both = [place for place in map(tuple, auto.zyx) if place in score]
    assert len(both) > 0.9 * max(len(exact), len(auto)) > 50
    near = dict(zip(map(tuple, auto.zyx), auto.columns["score"], strict=True))
    assert max(abs(score[place] - near[place]) for place in both) < 0.01


def test_a_detection_begun_in_one_precision_is_not_resumed_in_another(detector, tmp_path, monkeypatch):
    """As where the processor of the second run has other instructions."""
    volume = write(tmp_path / "a.zarr", blobs())
    cf.detect(detector, volume, out=tmp_path / "cells.csv", device="cpu", precision="fp32")
    monkeypatch.setattr(devices, "native_bf16", lambda device: True)
    with pytest.raises(cf.CanvasError, match="was made from other inputs"):
        cf.detect(detector, volume, out=tmp_path / "cells.csv", device="cpu")
