"""Where numbers go: metrics.jsonl to the byte, TensorBoard and W&B when asked."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from canvas_fm.errors import CanvasError, MissingExtra
from canvas_fm.training.recipe.recipe import Recipe
from canvas_fm.training.run.folder.tracking import MetricsLog, Tracker, open_sinks, read_metrics

Tiny = Callable[..., Recipe]
EVAL = {
    "kind": "eval", "step": 5, "volume": "a", "crops": "random", "held_out": True, "n": 3, "loss": 0.5,
    "psnr_masked": float("inf"), "crop_mean": {"psnr_masked": 20.0},
}  # fmt: skip


def row(step: int) -> dict[str, Any]:
    return {"kind": "train", "step": step, "loss": 1 / step}


def test_rows_come_back_and_what_is_not_finite_is_null(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write(row(3))
    log.write(EVAL)
    log.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [row(3), EVAL | {"psnr_masked": None}]


def test_a_resumed_log_is_cut_back_to_its_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.write(row(1))
    kept = log.settle()
    content = path.read_bytes()
    log.write(row(2))
    log.close()
    path.write_bytes(path.read_bytes()[:-4])  # a torn last line
    assert read_metrics(path) == [row(1)]
    resumed = MetricsLog(path, kept)
    assert path.read_bytes() == content
    resumed.write(row(2))
    assert read_metrics(path) == [row(1), row(2)]
    assert resumed.settle()[0] == path.stat().st_size


@pytest.mark.parametrize("damage", ["flipped", "short", "gone"])
def test_a_log_that_lost_rows_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.write(row(1))
    kept = log.settle()
    log.close()
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flipped" else content[:-1])
    with pytest.raises(CanvasError, match=r"metrics\.jsonl is damaged"):
        MetricsLog(path, kept)


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"a": 1}\n{"a": \n{"a": 3}\n')
    with pytest.raises(CanvasError, match="line 2 is damaged"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_tensorboard_gets_every_number(tmp_path: Path, tiny: Tiny) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sinks = open_sinks(tiny("tracking.tensorboard=true"), tmp_path, 0)
    tracker = Tracker(MetricsLog(tmp_path / "metrics.jsonl"), sinks)
    tracker.write(row(4), {"crops_per_s": 60.0})
    tracker.write(EVAL)
    tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Scalars("train/loss")[0].value == 0.25
    assert events.Scalars("train/crops_per_s")[0].value == 60
    assert events.Scalars("eval/a/random/crop_mean/psnr_masked")[0].step == 5
    assert "crops_per_s" not in (tmp_path / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("override", "module", "extra"),
    [
        ("tracking.tensorboard=true", "torch.utils.tensorboard", "canvas-fm[tensorboard]"),
        ("tracking.wandb={}", "wandb", "canvas-fm[wandb]"),
    ],
)
def test_a_missing_extra_is_named(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, override: str, module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match="pip install") as raised:
        open_sinks(tiny(override), tmp_path, 0)
    assert extra in str(raised.value)


def test_wandb_is_offline_and_goes_on_with_the_same_id(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []
    logged: list[tuple[int, dict[str, float]]] = []
    run = types.SimpleNamespace(log=lambda scalars, step: logged.append((step, scalars)), finish=lambda: None)
    fake = types.SimpleNamespace(init=lambda **options: calls.append(options) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for step in (0, 4):
        (sink,) = open_sinks(tiny("tracking.wandb={project: cells}"), tmp_path, step)
        sink.write(step, {"train/loss": 0.5})
        sink.close()
    assert [call["mode"] for call in calls] == ["offline", "offline"]
    assert calls[0]["project"] == "cells"
    assert calls[0]["id"] == calls[1]["id"]
    assert json.dumps(calls[0]["config"])
    assert logged == [(0, {"train/loss": 0.5}), (4, {"train/loss": 0.5})]
