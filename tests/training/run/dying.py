"""Run by test_kills in a process of its own: trains, and kills itself at the n-th step, sync or rename.

`runpy` hands the globals `folder`, `out`, `die_at` (0 lives) and `resume` in.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from canvas_fm.training.mae.optimizer_step import MaeStep
from canvas_fm.training.mae.pretrain import pretrain

folder: str
out: str
die_at: int
resume: bool
left = [globals()["die_at"]]


def counted(call: Callable[..., Any], after: bool) -> Callable[..., Any]:
    """The call, with death before it or after it when its turn has come."""

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] == 0 and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = call(*args, **kwargs)
        if left[0] == 0 and after:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return wrapper


torch.set_num_threads(1)
if left[0]:
    os.fsync = counted(os.fsync, after=False)
    Path.replace = counted(Path.replace, after=bool(left[0] % 2))  # type: ignore[method-assign]
    MaeStep.__call__ = counted(MaeStep.__call__, after=True)  # type: ignore[method-assign]
pretrain(
    f"{globals()['folder']}/recipe.yaml",
    [f"{globals()['folder']}/a/raw.zarr", f"{globals()['folder']}/b/raw.zarr"],
    out=globals()["out"],
    held_out=["b"],
    resume=globals()["resume"],
    device="cpu",
    show=False,
)
