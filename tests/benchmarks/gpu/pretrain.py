"""The pretraining for the time that is left: a checkpoint every minute, weights in parts at the end."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import torch
from safetensors.torch import load, save

from tests.benchmarks.gpu.data import Resident
from tests.benchmarks.gpu.step import Trainer

MOST_PART = 15_000_000  # bytes of a file
WEIGHTS, METRICS = "encoder.safetensors", "metrics.jsonl"
COOL = 0.2  # of the time, over which the learning rate falls to nothing
_LOG_EVERY = 50


def pretrain(
    data: Resident,
    out: Path,
    device: torch.device,
    *,
    until: float,
    places: int,
    dim: int,
    depth: int,
    save_every_s: float = 60.0,
) -> dict[str, float]:
    """Train until a `time.monotonic`; writes weights and metrics, and returns what was reached."""
    trainer = Trainer(device, places, dim=dim, depth=depth)
    began = saved = time.monotonic()
    steps, losses = 0, []
    with (out / METRICS).open("a") as log:
        while (now := time.monotonic()) < until or not steps:
            share_left = (until - now) / max(until - began, 1e-9)
            trainer.rate.fill_(1e-3 * min(1.0, (steps + 1) / 40, max(share_left, 0.0) / COOL + 1e-3))
            trainer.draw(data)
            losses.append(trainer.step().clone())
            steps += 1
            # Reading the loss waits for the device, so it is done seldom; the clock then is the device's.
            if steps % _LOG_EVERY == 0 or now >= until:
                loss, losses = float(torch.stack(losses).mean()), []
                row = {
                    "step": steps,
                    "views": 2 * places * steps,
                    "s": time.monotonic() - began,
                    "loss": loss,
                }
                log.write(json.dumps(row) + "\n")
                log.flush()
            if now - saved >= save_every_s:
                write_weights(out, trainer)
                saved = now
    write_weights(out, trainer)
    taken = time.monotonic() - began
    return {
        "steps": steps,
        "views": 2 * places * steps,
        "s": taken,
        "views_per_s": 2 * places * steps / taken,
    }


def write_weights(out: Path, trainer: Trainer) -> None:
    """Averaged weights of the encoder in float16, in parts of at most `MOST_PART` bytes, each atomically."""
    state = {
        name: value.half().cpu().contiguous() for name, value in trainer.averaged.encoder.state_dict().items()
    }
    data = save(state)
    for number, first in enumerate(range(0, len(data), MOST_PART)):
        temporary = out / f".{WEIGHTS}.tmp"
        temporary.write_bytes(data[first : first + MOST_PART])
        os.replace(temporary, out / f"{WEIGHTS}.{number}")


def join_weights(folder: Path) -> Path:
    """Join the parts into one safetensors file, which is opened once to see that it is whole."""
    parts = sorted(folder.glob(f"{WEIGHTS}.[0-9]*"), key=lambda path: int(path.suffix[1:]))
    data = b"".join(part.read_bytes() for part in parts)
    load(data)
    (folder / WEIGHTS).write_bytes(data)
    return folder / WEIGHTS
