"""Several processes under torchrun make the steps of one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from canvas_fm.training.mae.pretrain import pretrain
from canvas_fm.training.recipe.recipe import Recipe
from canvas_fm.training.run.folder.checkpoint import load_checkpoint
from canvas_fm.training.run.folder.run_folder import Run

SCRIPT = """
import sys
import torch
torch.set_num_threads(1)
from canvas_fm.training.mae.pretrain import pretrain
recipe, out, *cubes = sys.argv[1:]
pretrain(recipe, cubes, out=out, held_out=["b"], device="cpu", show=False)
"""


def under_torchrun(folder: Path, cubes: list[Path], recipe: Recipe, processes: int) -> Run:
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    (folder / "train.py").write_text(SCRIPT)
    run = Run(folder / "several")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += [str(folder / "train.py"), str(folder / "recipe.yaml"), str(run.path), *map(str, cubes)]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return run


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["distil.layers=1"]], ids=["plain", "distilled"])
def test_two_processes_make_the_run_of_one(
    tmp_path: Path, cubes: list[Path], tiny: Callable[..., Recipe], more: list[str]
) -> None:
    """Uneven micro-batches, clipping and the batch's scale: all have to see both halves of the batch."""
    recipe = tiny("training.micro_batch=3", "training.clip=0.05", "evaluation.every=4", *more)
    several = under_torchrun(tmp_path, cubes, recipe, 2)
    alone = pretrain(recipe, cubes, out=tmp_path / "alone", held_out=["b"], device="cpu")
    for one, other in zip(several.metrics(), alone.metrics(), strict=True):
        assert {k: one[k] for k in ("kind", "step")} == {k: other[k] for k in ("kind", "step")}
        assert one.keys() == other.keys()
        for loss in one.keys() & {"loss", "distillation"}:
            assert one[loss] == pytest.approx(other[loss], rel=1e-4)
    states = [load_checkpoint(run.checkpoint)["stepper"]["model"] for run in (several, alone)]
    for name, weight in states[0].items():
        torch.testing.assert_close(weight, states[1][name], atol=1e-4, rtol=0)
