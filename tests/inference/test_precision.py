"""Precision `auto`: bf16 where the processor has it, recorded as what it was, never mixed in one result."""

from __future__ import annotations

import pytest
import torch

import canvas_fm as cf
from canvas_fm.inference.detect.detect import detector_job
from canvas_fm.inference.options import DetectorRun, EncoderRun
from canvas_fm.models import device as devices
from tests.inference.detect.nets import blobs, make_detector, write


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


def test_a_detection_begun_in_one_precision_is_not_resumed_in_another(detector, tmp_path, monkeypatch):
    """As where the processor of the second run has other instructions."""
    volume = write(tmp_path / "a.zarr", blobs())
    cf.detect(detector, volume, out=tmp_path / "cells.csv", device="cpu", precision="fp32")
    monkeypatch.setattr(devices, "native_bf16", lambda device: True)
    with pytest.raises(cf.CanvasError, match="was made from other inputs"):
        cf.detect(detector, volume, out=tmp_path / "cells.csv", device="cpu")
