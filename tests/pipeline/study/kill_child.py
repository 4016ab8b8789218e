"""A study in a process of its own, which ends itself, as by a kill, before its n-th flush to the disk."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch

from canvas_fm.pipeline.study.settings import StudySettings
from canvas_fm.pipeline.study.study import study
from tests.pipeline.study.tiny import settings


def main(data: str, out: str, dies_at: int) -> None:
    true, flushes = os.fsync, 0

    def fsync(handle: int) -> None:
        nonlocal flushes
        flushes += 1
        if flushes == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        true(handle)

    torch.set_num_threads(1)
    os.fsync = fsync
    run = study(StudySettings.model_validate(settings(6)), out, data=data)
    print(*(name.replace(" ", "_") for name in run.ran))
    print(flushes)
    assert not run.failed
    assert Path(run.page).is_file()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
