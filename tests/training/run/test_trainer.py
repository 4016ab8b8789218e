"""The training loop with a task that only counts: what is logged, evaluated and saved, and when."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from canvas_fm.errors import CanvasError
from canvas_fm.training.recipe.recipe import Recipe
from canvas_fm.training.run import trainer
from canvas_fm.training.run.batch_order import batch_order
from canvas_fm.training.run.distributed import Ranks
from canvas_fm.training.run.folder.checkpoint import load_checkpoint
from canvas_fm.training.run.folder.run_folder import Run
from canvas_fm.training.run.trainer import Trainer, provenance_of, train
from canvas_fm.version import __version__

Tiny = Callable[..., Recipe]
SCHEDULE = ("training.steps=7", "training.log_every=3", "training.checkpoint_every=5", "evaluation.every=2")


class Counting:
    """A step whose loss is its number; `before` is called with the step, before it is done."""

    losses = ("loss", "part")
    learning_rate = 0.25

    def __init__(self, before: Callable[[int], object]) -> None:
        self.before, self.total, self.rows = before, 0, slice(0, 3)

    def __call__(self, batch: Any, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.before(step)
        self.total += step
        return torch.tensor([step + 1.0, 10.0]), torch.tensor(2.0)

    def state(self) -> dict[str, Any]:
        return {"total": self.total}

    def load_state(self, state: dict[str, Any]) -> None:
        self.total = state["total"]


class CountingTask:
    """A task that notes in `events` what it is asked for."""

    label, folder = "counting", "model"
    recipe: Recipe

    def __init__(self, before: Callable[[int], object] = lambda step: None, **volume: Any) -> None:
        self.before, self.events, self.batches_seen = before, [], []
        self.volumes = [{"name": "a", "sha": 1} | volume]

    def data(self) -> dict[str, list[dict[str, Any]]]:
        return {"trained on": self.volumes, "held out": []}

    def batches(self, ranks: Ranks, show: bool | None) -> Any:
        assert isinstance(ranks, Ranks)
        self.events.append(("batches", show))

        def along(order: Iterator[np.ndarray], first: int = 0) -> Iterator[np.ndarray]:
            self.events.append(("first", first))
            for rows in order:
                self.batches_seen.append(rows.tolist())
                yield rows

        return SimpleNamespace(along=along)

    def order(self, first: int) -> Iterator[np.ndarray]:
        return batch_order(20, self.recipe.training.batch, self.recipe.seed, first, self.recipe.steps)

    def new_step(self, ranks: Ranks, batches: Any) -> Counting:
        assert isinstance(ranks, Ranks)
        self.events.append(("step", batches is not None))
        return Counting(self.before)

    def prepare(self, show: bool | None) -> None:
        self.events.append(("prepare", show))

    def evaluate(self, state: Counting, step: int, tracker: Any, run: Run, report: Any) -> None:
        report(f"evaluating {step}")
        tracker.write({"kind": "eval", "step": step, "total": float(state.total)})
        self.events.append(("evaluate", step))

    def ship(self, state: Counting, step: int, run: Run) -> None:
        self.events.append(("ship", step, state.total))

    def of(self, kind: str) -> list[Any]:
        return [event[1] for event in self.events if event[0] == kind]


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps after which a checkpoint was written."""
    steps, save = [], trainer.save_checkpoint

    def saving(path: Path, state: dict[str, Any]) -> None:
        steps.append(state["step"])
        save(path, state)

    monkeypatch.setattr(trainer, "save_checkpoint", saving)
    return steps


def go(
    recipe: Recipe, out: Path, task: CountingTask, resume: bool = False, show: bool = False, **more: Any
) -> Run:
    task.recipe = recipe
    return train(recipe, out, lambda: task, "cpu", resume, show, **more)


def test_rows_evaluations_and_checkpoints_come_when_they_are_due(
    tmp_path: Path, tiny: Tiny, saved: list[int]
) -> None:
    recipe, task = tiny(*SCHEDULE), CountingTask()
    rows = go(recipe, tmp_path / "run", task).metrics()
    training = [row for row in rows if row["kind"] == "train"]
    assert [(row["step"], row["loss"]) for row in training] == [(3, 2.0), (6, 5.0), (7, 7.0)]
    assert training[0] == {
        "kind": "train", "step": 3, "loss": 2.0, "part": 10.0, "grad_norm": 2.0, "learning_rate": 0.25,
    }  # fmt: skip
    assert (task.of("evaluate"), saved) == ([2, 4, 6, 7], [5, 7])
    assert [row["step"] for row in rows] == [2, 3, 4, 6, 6, 7, 7]
    order = batch_order(20, recipe.training.batch, recipe.seed, 0, 7)
    assert task.batches_seen == [each[:3].tolist() for each in order]
    assert task.events[:4] == [("batches", False), ("step", True), ("prepare", False), ("first", 0)]


def test_without_intervals_all_is_due_at_the_end_alone(tmp_path: Path, tiny: Tiny, saved: list[int]) -> None:
    task = CountingTask()
    recipe = tiny("training.steps=4", "training.log_every=9", "training.checkpoint_every=9")
    assert [row["step"] for row in go(recipe, tmp_path / "run", task).metrics()] == [4, 4]
    assert saved == task.of("evaluate") == [4]


def test_a_killed_training_resumes_to_the_same_rows(tmp_path: Path, tiny: Tiny) -> None:
    def kill(step: int) -> None:
        if step == 5:
            raise MemoryError

    recipe, task = tiny(*SCHEDULE), CountingTask()
    whole = go(recipe, tmp_path / "whole", CountingTask())
    with pytest.raises(MemoryError):
        go(recipe, tmp_path / "run", CountingTask(kill))
    resumed = go(recipe, tmp_path / "run", task, resume=True)
    assert (resumed.path / "metrics.jsonl").read_bytes() == (whole.path / "metrics.jsonl").read_bytes()
    assert (task.of("first"), task.of("evaluate"), len(task.batches_seen)) == ([5], [6, 7], 2)
    assert load_checkpoint(resumed.checkpoint)["stepper"] == {"total": sum(range(7))}


def test_of_a_complete_training_only_a_removed_model_is_written_again(tmp_path: Path, tiny: Tiny) -> None:
    recipe = tiny(*SCHEDULE)
    go(recipe, tmp_path / "run", CountingTask())
    (tmp_path / "run/model").mkdir()
    there = CountingTask()
    go(recipe, tmp_path / "run", there, resume=True)
    assert there.events == []
    (tmp_path / "run/model").rmdir()
    removed = CountingTask()
    go(recipe, tmp_path / "run", removed, resume=True)
    assert removed.events == [("step", False), ("ship", 7, sum(range(7)))]


def test_an_early_stop_is_asked_after_evaluations_and_ends_with_a_checkpoint(
    tmp_path: Path, tiny: Tiny, saved: list[int]
) -> None:
    task, asked_at = CountingTask(), []

    def stop(run: Run) -> bool:
        asked_at.append(run.metrics()[-1]["step"])
        return len(asked_at) == 2

    go(tiny(*SCHEDULE), tmp_path / "run", task, early_stop=stop)
    assert (asked_at, saved, task.of("evaluate")) == ([2, 4], [4], [2, 4])
    assert len(task.batches_seen) == 4


@pytest.mark.parametrize(
    ("number", "end", "code"), [(signal.SIGTERM, SystemExit, 143), (signal.SIGINT, KeyboardInterrupt, None)]
)
def test_a_signal_ends_after_the_step_with_a_checkpoint(
    tmp_path: Path, tiny: Tiny, saved: list[int], number: int, end: type[BaseException], code: int | None
) -> None:
    before = signal.getsignal(number)
    task = CountingTask(lambda step: os.kill(os.getpid(), number) if step == 1 else None)
    with pytest.raises(end) as raised:
        go(tiny(*SCHEDULE), tmp_path / "run", task)
    assert getattr(raised.value, "code", None) == code
    assert (saved, task.of("evaluate")) == ([2], [2])
    assert signal.getsignal(number) is before


def test_a_second_signal_ends_at_once(tmp_path: Path, tiny: Tiny, saved: list[int]) -> None:
    def twice(step: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the step went on")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell runs us behind
    try:
        with pytest.raises(KeyboardInterrupt):
            go(tiny(*SCHEDULE), tmp_path / "run", CountingTask(twice))
    finally:
        signal.signal(signal.SIGINT, before)
    assert saved == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sha": 2}, "volume a has sha 2, and had 1; --resume goes on with the data that .*run was started"),
        ({"name": "b"}, "volumes trained on are b, and were a; --resume goes on"),
    ],
)
def test_other_data_are_refused_by_their_first_difference(
    tmp_path: Path, tiny: Tiny, changes: dict[str, Any], sentence: str
) -> None:
    go(tiny(*SCHEDULE), tmp_path / "run", CountingTask())
    with pytest.raises(CanvasError, match=sentence):
        go(tiny(*SCHEDULE), tmp_path / "run", CountingTask(**changes), resume=True)


def test_speed_counts_all_crops_of_a_row_and_no_evaluation(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, speeds = SimpleNamespace(now=100.0), []

    def step_of_two_seconds(step: int) -> None:
        clock.now += 2

    class SlowEvaluation(CountingTask):
        def evaluate(self, *arguments: Any) -> None:
            clock.now += 50
            super().evaluate(*arguments)

    closed: list[bool] = []
    sink = SimpleNamespace(
        write=lambda step, scalars: speeds.append(scalars.get("train/crops_per_s")),
        close=lambda: closed.append(True),
    )
    monkeypatch.setattr(trainer, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(trainer, "open_sinks", lambda recipe, folder, step: [sink])
    recipe = tiny(*SCHEDULE)
    go(recipe, tmp_path / "run", SlowEvaluation(step_of_two_seconds))
    assert [speed for speed in speeds if speed is not None] == [recipe.training.batch / 2] * 3
    assert closed == [True]


def test_progress_starts_where_the_run_is_and_names_the_loss(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    @contextmanager
    def recording(label: str, total: int, **options: Any) -> Iterator[Callable[..., None]]:
        calls.append((label, total, options))
        yield lambda count, note=None: calls.append((count, note))

    monkeypatch.setattr(trainer, "bar", recording)
    recipe = tiny(*SCHEDULE)
    stop = lambda run: run.metrics()[-1]["step"] == 4  # noqa: E731
    go(recipe, tmp_path / "run", CountingTask(), show=True, early_stop=stop)
    batch = recipe.training.batch
    assert calls[0] == ("counting", 7 * batch, {"unit": "crops", "done": 0, "show": True})
    assert calls[1:5] == [
        (batch, None), (0, "evaluating 2"), (batch, None), (batch, "loss 2.0000"),
    ]  # fmt: skip
    del calls[:]
    go(recipe, tmp_path / "run", CountingTask(), resume=True)
    assert calls[0] == ("counting", 7 * batch, {"unit": "crops", "done": 4 * batch, "show": False})


def test_a_loss_that_is_not_finite_names_the_step(tmp_path: Path, tiny: Tiny) -> None:
    class Diverging(CountingTask):
        def new_step(self, ranks: Ranks, batches: Any) -> Any:
            step = super().new_step(ranks, batches)
            return _with_loss(step, float("inf"))

    with pytest.raises(CanvasError, match="the loss is inf at step 3: give a lower training"):
        go(tiny(*SCHEDULE), tmp_path / "run", Diverging())


def _with_loss(step: Counting, loss: float) -> Any:
    class Other(Counting):
        def __call__(self, batch: Any, step: int) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.tensor([1.0, loss]), torch.tensor(1.0)

    return Other(step.before)


@pytest.mark.parametrize(
    ("rank", "order"), [(0, ["task", "wait", "train", "wait"]), (1, ["wait", "task", "train", "wait"])]
)
def test_the_main_process_goes_first_and_alone_claims_and_shows(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, rank: int, order: list[str]
) -> None:
    events: list[str] = []

    class TwoRanks(Ranks):
        def wait(self) -> None:
            events.append("wait")

    def new_task() -> CountingTask:
        events.append("task")
        return CountingTask()

    def trainer_of(recipe: Any, run: Run, ranks: Ranks, task: Any, show: bool | None, early_stop: Any) -> Any:
        assert show is (rank == 0)
        return SimpleNamespace(train=lambda: events.append("train"))

    monkeypatch.setattr(trainer, "join", lambda device: nullcontext(TwoRanks(rank, 2, torch.device("cpu"))))
    monkeypatch.setattr(trainer, "Trainer", trainer_of)
    run = train(tiny(), tmp_path / "run", new_task, "cpu", False, True)
    assert (events, run.path.exists()) == (order, rank == 0)
    with pytest.raises(AssertionError):
        train(tiny(), tmp_path / "stopped", new_task, "cpu", False, True, lambda run: True)
    with pytest.raises(CanvasError, match="batch 7 does not divide among 2 processes"):
        train(tiny("training.batch=7"), tmp_path / "seven", new_task, "cpu", False, True)
    assert not (tmp_path / "seven").exists()
    assert len(events) == 4


def test_another_rank_trains_and_writes_nothing(tmp_path: Path, tiny: Tiny) -> None:
    task, run = CountingTask(), Run(tmp_path / "run")
    task.recipe = tiny(*SCHEDULE)
    Trainer(task.recipe, run, Ranks(1, 2, torch.device("cpu")), task, False).train()
    assert [event[0] for event in task.events] == ["batches", "step", "first"]
    assert len(task.batches_seen) == 7
    assert not run.path.exists()


def test_provenance_holds_what_decides_a_model(tiny: Tiny) -> None:
    recipe = tiny()
    provenance = provenance_of(recipe, 3, [{"name": "a"}], ["b"], chosen_on="volumes")
    versions = provenance.pop("versions")
    assert provenance == {
        "recipe": recipe.model_dump(mode="json"), "step": 3, "trained_on": [{"name": "a"}],
        "held_out": ["b"], "chosen_on": "volumes",
    }  # fmt: skip
    assert (versions["canvas_fm"], versions["torch"]) == (__version__, torch.__version__)
    assert set(versions) == {"canvas_fm", "torch", "timm"}
