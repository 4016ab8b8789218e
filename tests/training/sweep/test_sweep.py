"""Sweeps: the grid, runs that go on after kills, failures that are told, and the comparison."""

from __future__ import annotations

import csv
import json
import os
import signal
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import yaml

from canvas_fm.errors import CanvasError
from canvas_fm.files.locks import take_lock
from canvas_fm.training.recipe.read_recipe import read_recipe
from canvas_fm.training.run.folder.run_folder import Run
from canvas_fm.training.sweep import workers
from canvas_fm.training.sweep.early_stop import EarlyStop
from canvas_fm.training.sweep.grid import (
    EarlyTerminate,
    Metric,
    SweepRecipe,
    expand,
    label_of,
    read_sweep,
    volumes_of,
)
from canvas_fm.training.sweep.results import best_rows, effects
from canvas_fm.training.sweep.sweep import sweep

from ..conftest import TINY  # isort: skip


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The tiny recipe as a file."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


def grid(recipe: Path, **changes: Any) -> SweepRecipe:
    settings: dict[str, Any] = {
        "recipe": str(recipe),
        "overrides": ["training.steps=2"],
        "parameters": {"model.mask_ratio": {"values": [0.5, 0.75]}},
        "volumes": {"one": {"train": ["a/raw.zarr"], "held_out": ["b/raw.zarr"]}},
    }
    return SweepRecipe.model_validate(settings | changes)


def test_the_section_of_the_readout_is_read_by_its_old_name_too(recipe: Path) -> None:
    labelled = {"volumes": ["0/*/raw.zarr", "1/*/raw.zarr"], "few": 20}
    before, today = (grid(recipe, **{key: labelled}).linear_readout for key in ("worth", "linear_readout"))
    assert before is not None
    assert before == today


def test_the_papers_sweep_has_84_runs_with_64_patches_each() -> None:
    runs = expand(read_sweep("canvas_sweep"))
    assert len(runs) == len({run.name for run in runs}) == 84
    assert {run.recipe.model.encoder.tokens for run in runs} == {64}
    assert {run.recipe.model.encoder.dim for run in runs} == {
        384
    }  # merged into the section, not in its place
    assert {run.recipe.model.mask_ratio for run in runs} == {0.15, 0.35, 0.55, 0.75}
    assert {run.labels["volumes"] for run in runs} == {"NeuN", "cFos", "TH", "PV", "GFAP", "IBA1", "all"}


def test_overrides_reach_every_run_and_parameters_win_over_them(recipe: Path) -> None:
    spec = read_sweep(grid(recipe), ["training.steps=5", "model.mask_ratio=0.25"])
    assert [(run.recipe.steps, run.recipe.model.mask_ratio) for run in expand(spec)] == [(5, 0.5), (5, 0.75)]


def test_labels_are_short_and_name_files(recipe: Path) -> None:
    assert label_of({"crop_zyx": [8, 16, 16], "patch_zyx": [2, 4, 4]}) == "8×16×16 2×4×4"
    assert label_of(0.150) == "0.15"
    values = {"model.encoder": {"values": [{"crop_zyx": [8, 16, 16], "dim": 48}]}}
    assert [run.name for run in expand(grid(recipe, parameters=values))] == ["8x16x16_48,one"]


def test_every_wrong_run_is_named_before_anything_is_trained(recipe: Path, tmp_path: Path) -> None:
    spec = grid(recipe, parameters={"model.mask_ratio": {"values": [0.5, 1.5, -1.0]}})
    with pytest.raises(
        CanvasError, match=r"2 of 3 runs have a wrong recipe: 1\.5,one: model\.mask_ratio is 1\.5.*-1"
    ):
        sweep(spec, out=tmp_path / "out", data=tmp_path)
    assert not (tmp_path / "out").exists()


def test_unknown_data_sets_doubled_values_and_globs_without_a_match(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="names two; known: one"):
        grid(recipe, parameters={"volumes": {"values": ["two"]}})
    with pytest.raises(CanvasError, match=r"runs of the same name: 0\.5,one"):
        expand(grid(recipe, parameters={"model.mask_ratio": {"values": [0.5, 0.5]}}))
    with pytest.raises(CanvasError, match=r"no volume matches 'a/raw.zarr' in .*--data"):
        volumes_of(grid(recipe).volumes["one"], tmp_path)
    with pytest.raises(CanvasError, match="the sweep: unknown key 'parameter'; did you mean 'parameters'"):
        read_sweep({"recipe": "phantom", "parameter": {}, "parameters": {}, "volumes": {}})
    with pytest.raises(CanvasError, match="0 workers"):
        sweep(grid(recipe), out=tmp_path / "out", workers=0)


def test_weights_and_biases_sweeps_are_read(tmp_path: Path, recipe: Path) -> None:
    file = tmp_path / "wandb.yaml"
    file.write_text(
        f"program: train.py\nproject: brains\nmethod: grid\nrecipe: {recipe}\n"
        "metric: {name: loss, goal: minimize}\n"
        "parameters: {seed: {values: [0, 1, 2]}}\nrun_cap: 2\nvolumes: {one: {train: ['*.zarr']}}\n"
    )
    assert [run.recipe.seed for run in expand(read_sweep(file))] == [0, 1]
    file.write_text(file.read_text().replace("grid", "bayes"))
    with pytest.raises(CanvasError, match=r"method is 'bayes'; expected 'grid'"):
        read_sweep(file)


def test_a_sweep_trains_compares_and_does_nothing_twice(
    recipe: Path, cubes: list[Path], tmp_path: Path
) -> None:
    spec, data = grid(recipe), cubes[0].parents[1]
    done = sweep(spec, out=tmp_path / "s", data=data, device="cpu", show=False)
    assert not done.failed
    rows = list(csv.DictReader(done.results.open()))
    assert [row["model.mask_ratio"] for row in rows] == ["0.5", "0.75"]
    for row, name in zip(rows, done.runs, strict=True):
        run = Run(done.path / "runs" / name)
        sets = [each for each in run.metrics() if each["kind"] == "eval"]
        assert {each["volume"] for each in sets} == {"b"}
        assert float(row["psnr_masked"]) == pytest.approx(
            sum(each["psnr_masked"] for each in sets) / len(sets)
        )
    assert "2 of 2 runs are done" in done.summary.read_text()
    assert {"curves.png", "pareto.png"} < {path.name for path in done.path.iterdir()}
    before = {path: path.stat().st_mtime_ns for path in done.path.glob("runs/**/*")}
    assert sweep(spec, out=tmp_path / "s", data=data, device="cpu", show=False) == done
    assert before == {path: path.stat().st_mtime_ns for path in done.path.glob("runs/**/*")}


@pytest.mark.slow
def test_a_run_that_falls_behind_is_stopped_and_stays_out_of_paired_differences(
    recipe: Path, cubes: list[Path], tmp_path: Path
) -> None:
    more = {
        "overrides": ["training.steps=6", "evaluation.every=2"],
        "parameters": {"training.learning_rate": {"values": [1e-3, 1e-9]}},
        "metric": {"name": "loss", "goal": "minimize"},
        "volumes": {name: {"train": [f"{name}/raw.zarr"]} for name in "ab"},
    }
    spec, data = grid(recipe, **more, early_terminate={"min_iter": 1, "eta": 2}), cubes[0].parents[1]
    done = sweep(spec, out=tmp_path / "s", data=data, device="cpu", show=False)
    assert not done.failed
    steps = {row["run"]: int(row["steps"]) for row in csv.DictReader(done.results.open())}
    assert steps == {"0.001,a": 6, "0.001,b": 6, "1e-09,a": 2, "1e-09,b": 2}
    assert all(Run(done.path / "runs" / name).encoder.is_dir() for name in done.runs)
    assert "1e-09,b: after step 2" in done.summary.read_text()
    assert "## Effect" not in done.summary.read_text()
    state = done.path / "state/1e-09,b.json"
    before = state.read_text()
    sweep(spec, out=tmp_path / "s", data=data, device="cpu", show=False)
    assert state.read_text() == before
    done = sweep(grid(recipe, **more), out=tmp_path / "s", data=data, device="cpu", show=False)
    assert {int(row["steps"]) for row in csv.DictReader(done.results.open())} == {6}
    assert "## Effect" in done.summary.read_text()


@pytest.mark.parametrize(("goal", "stopped"), [("maximize", [1.0, 2.0]), ("minimize", [3.0, 4.0])])
def test_the_worse_half_is_stopped_at_the_evaluations_that_decide(
    tmp_path: Path, goal: Any, stopped: list[float]
) -> None:
    def runs(evaluated: int) -> list[Run]:
        for score in (1.0, 2.0, 3.0, 4.0):
            (tmp_path / str(score)).mkdir(exist_ok=True)
            rows = [
                {"kind": "eval", "step": 10 * n, "score": score + d}
                for n in range(evaluated)
                for d in (-9, 9)
            ]
            (tmp_path / f"{score}/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return [Run(tmp_path / str(score)) for score in (1.0, 2.0, 3.0, 4.0)]

    rule = EarlyTerminate(min_iter=2, eta=2)
    assert [n for n in range(20) if rule.decides_after(n)] == [2, 4, 8, 16]
    paths = tuple(run.path for run in runs(2))
    stop = EarlyStop(rule, Metric(name="score", goal=goal), paths)
    assert [float(run.path.name) for run in runs(2) if stop(run)] == stopped
    assert not any(stop(run) for run in runs(3))
    alone = EarlyStop(rule, Metric(name="score", goal=goal), paths[:1])
    assert not alone(runs(2)[0])


def test_early_stopping_that_could_never_act_is_refused(recipe: Path) -> None:
    spec = grid(recipe, overrides=["training.steps=6", "evaluation.every=3"], early_terminate={"min_iter": 2})
    with pytest.raises(CanvasError, match="after 2 evaluations, but they have 1 before their last step"):
        expand(spec)


def test_failed_runs_are_told_and_tried_again(
    recipe: Path, cubes: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, data = grid(recipe), cubes[0].parents[1]
    tried: list[float] = []
    real = workers.pretrain

    def breaks(run: Any, *args: Any, **options: Any) -> Run:
        tried.append(run.model.mask_ratio)
        if run.model.mask_ratio == 0.75:
            raise RuntimeError("out of\nmemory")
        return real(run, *args, **options)

    monkeypatch.setattr(workers, "pretrain", breaks)
    first = sweep(spec, out=tmp_path / "s", data=data, device="cpu", show=False)
    assert tried == [0.5, 0.75, 0.75]
    assert first.failed == {"0.75,one": "RuntimeError: out of memory"}
    assert "0.75,one: RuntimeError: out of memory" in first.summary.read_text()
    assert json.loads((tmp_path / "s/state/0.75,one.json").read_text())["attempts"] == 2
    monkeypatch.setattr(workers, "pretrain", real)
    assert not sweep(spec, out=tmp_path / "s", data=data, device="cpu", show=False).failed


def test_other_volumes_under_the_same_name_are_another_run(
    recipe: Path, cubes: list[Path], tmp_path: Path
) -> None:
    data = cubes[0].parents[1]
    parameters = {"seed": {"values": [0]}}
    sweep(grid(recipe, parameters=parameters), out=tmp_path / "s", data=data, device="cpu", show=False)
    other = grid(recipe, parameters=parameters, volumes={"one": {"train": ["b/raw.zarr"]}})
    failed = sweep(other, out=tmp_path / "s", data=data, device="cpu", show=False).failed
    assert "0,one" in failed
    assert "held_out" in failed["0,one"]


def test_two_sweeps_in_one_folder_are_refused(recipe: Path, cubes: list[Path], tmp_path: Path) -> None:
    (tmp_path / "s" / "state").mkdir(parents=True)
    lock = take_lock(tmp_path / "s" / "state", tmp_path / "s")
    with pytest.raises(CanvasError, match="another process is writing"):
        sweep(grid(recipe), out=tmp_path / "s", data=cubes[0].parents[1])
    os.close(lock)


def some_jobs(recipe: Path, folder: Path, n: int) -> list[workers.PlannedTraining]:
    """Trainings of no volume, named by their number."""
    return [workers.PlannedTraining(str(number), folder, read_recipe(recipe), (), ()) for number in range(n)]


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_worker_that_dies_is_replaced_and_its_run_reported(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(job: workers.PlannedTraining, device: str) -> workers.Outcome:
        if job.name == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return workers.Outcome(job.name, None, 1.0, float(os.getpid()))

    monkeypatch.setattr(workers, "train_one", train)
    monkeypatch.setattr(workers, "get_context", lambda kind: get_context("fork"))
    jobs = some_jobs(recipe, tmp_path, 5)
    outcomes = {outcome.name: outcome for outcome in workers.train_all(jobs, 2, "cpu")}
    assert {name for name, outcome in outcomes.items() if outcome.error is None} == {"0", "2", "3", "4"}
    assert outcomes["1"].error == "its process ended with exit code -9"
    assert os.getpid() not in {outcome.cpu_s for outcome in outcomes.values()}


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_workers_end_when_the_sweep_is_left(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "train_one", _sleep)
    monkeypatch.setattr(workers, "get_context", lambda kind: get_context("fork"))
    jobs = some_jobs(recipe, tmp_path, 2)
    pool = workers._Pool(2, "cpu")
    began = time.monotonic()
    for _ in pool.run(jobs):
        break
    pool.close()
    assert time.monotonic() - began < 30
    assert not any(worker.process.is_alive() for worker in pool._workers)


def _sleep(job: workers.PlannedTraining, device: str) -> workers.Outcome:
    time.sleep(60 if job.name == "1" else 0)
    return workers.Outcome(job.name, None, 0.0, 0.0)


def row(mask: str, data: str, seed: str, psnr: float) -> dict[str, Any]:
    return {
        "run": f"{mask}{data}{seed}",
        "model.mask_ratio": mask,
        "seed": seed,
        "volumes": data,
        "psnr_masked": psnr,
    }


def test_effects_are_paired_over_all_else(recipe: Path) -> None:
    """Data sets differ by far more than the setting does, and its effect is found all the same."""
    values = {"model.mask_ratio": {"values": [0.5, 0.75]}, "seed": {"values": [0, 1]}}
    spec = grid(recipe, parameters=values)
    levels = {("x", "0"): 10.0, ("x", "1"): 12.0, ("y", "0"): 30.0, ("y", "1"): 35.0}
    gains = {("x", "0"): 1.0, ("x", "1"): 1.2, ("y", "0"): 0.8, ("y", "1"): 1.0}
    rows = [row("0.5", *key, level) for key, level in levels.items()]
    rows += [row("0.75", *key, levels[key] + gain) for key, gain in gains.items()]
    (effect,) = effects(spec, rows, ["psnr_masked"])
    assert (effect.parameter, effect.value, effect.against, effect.pairs) == (
        "model.mask_ratio",
        "0.75",
        "0.5",
        4,
    )
    assert effect.mean == pytest.approx(1.0)
    # Student's interval of 1.0, 1.2, 0.8, 1.0: 3.182 × .1633 / 2
    assert (effect.low, effect.high) == pytest.approx((1 - 0.2598, 1 + 0.2598), abs=1e-3)


@pytest.mark.parametrize(("goal", "best"), [("maximize", 3.0), ("minimize", 1.0)])
def test_the_best_of_each_data_set(recipe: Path, goal: str, best: float) -> None:
    spec = grid(recipe, metric={"name": "psnr_masked", "goal": goal})
    rows = [row("0.5", "x", "0", 3.0), row("0.75", "x", "0", 1.0), row("0.75", "y", "0", 2.0)]
    assert [each["psnr_masked"] for each in best_rows(spec, rows)] == [best, 2.0]
