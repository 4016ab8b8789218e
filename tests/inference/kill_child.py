"""One embedding in a process of its own, which may end itself, as by a kill, before its n-th disk step.

Run by `runpy`, with `folder`, `out`, `die_at` and `begun` among its globals: it imports nothing of the tests.
"""

from __future__ import annotations

import os
import signal

import torch

from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.inference.embed.embed import embed_to_store
from canvas_fm.inference.embed.store import resumable_embeddings as unfinished
from canvas_fm.models.load_model import load

steps = 0


def counted(true):
    def step(*args, **options):
        global steps
        steps += 1
        if steps == globals()["die_at"]:
            os.kill(os.getpid(), signal.SIGKILL)
        return true(*args, **options)

    return step


torch.set_num_threads(1)  # or the last bits depend on the number of cores
unfinished.BLOCK = 64
for name in ("fsync", "replace", "rename", "rmdir", "unlink"):
    setattr(os, name, counted(getattr(os, name)))
folder, out = globals()["folder"], globals()["out"]
encoder, volume = load(f"{folder}/encoder"), Volume.open(f"{folder}/brain.zarr")
points = Points.read(f"{folder}/points.csv")
steps = 0
globals()["begun"].set()
embed_to_store(encoder, volume, points, out, batch=16, device="cpu", show=False)
with open(f"{folder}/steps", "w") as file:
    file.write(str(steps))
