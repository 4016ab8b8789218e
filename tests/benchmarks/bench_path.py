"""Files and lines of ours on the way of a verb: `python -m tests.benchmarks path [pretrain detect fit crop]`.

A file counts where one of its functions is entered, not where it is only imported; its lines are all of it.
`entered` are the lines of the functions that were entered. With `--list` the files are named.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import io
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
import torch

from canvas_fm.cli import main as canvas_fm
from canvas_fm.data.points.points import Points
from canvas_fm.models.detector.convmixer import ConvMixerConfig, HeatMapNet
from canvas_fm.models.encoder.mae import DecoderConfig, MaskedAutoencoder
from canvas_fm.models.encoder.vit import EncoderConfig
from canvas_fm.models.load_model import save_detector, save_encoder
from tests.support.spots import write_spots

ROOT = Path(__file__).parents[2]
VOXEL_UM, SHAPE = (4.0, 2.0, 2.0), (16, 64, 64)
TRAINING = (
    "training.steps=2", "training.batch=8", "data.crops=16", "evaluation.crops=4", "model.encoder.depth=1",
)  # fmt: skip


def entered_by(prepared: Callable[[], Callable[[], None]]) -> dict[str, set[CodeType]]:
    """Functions of canvas_fm and serving that the work enters, by file; threads of before count."""
    codes: dict[str, set[CodeType]] = {}
    ours = tuple(f"{ROOT / room}/" for room in ("canvas_fm", "serving"))

    def trace(frame: FrameType, event: str, arg: Any) -> None:
        code = frame.f_code
        if code.co_filename.startswith(ours) and code.co_flags & inspect.CO_NEWLOCALS:  # a function's
            codes.setdefault(code.co_filename.removeprefix(f"{ROOT}/"), set()).add(code)

    threading.settrace(trace)
    sys.settrace(trace)
    try:
        work = prepared()
        codes.clear()
        work()
    finally:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]
    return codes


def lines_of(codes: set[CodeType]) -> int:
    """Lines of functions, those inside each other once."""
    lines: set[int] = set()
    for code in codes:
        numbers = [line for _, _, line in code.co_lines() if line]
        lines |= set(range(code.co_firstlineno, max(numbers, default=code.co_firstlineno) + 1))
    return len(lines)


def prepare(folder: Path) -> None:
    """Two volumes of bright spots with candidates, a tiny encoder and a tiny detector."""
    torch.manual_seed(0)
    architecture = EncoderConfig(crop_zyx=(4, 8, 8), patch_zyx=(1, 2, 2), dim=24, depth=1, heads=2)
    mae = MaskedAutoencoder(architecture, DecoderConfig(dim=12, depth=1, heads=2))
    save_encoder(folder / "encoder", mae, voxel_um=VOXEL_UM)
    net = HeatMapNet(ConvMixerConfig(dim=4, depth=1, kernel_zyx=(3, 3, 3)))
    save_detector(folder / "detector", net, voxel_um=VOXEL_UM, threshold=0.5, min_distance_um=6)
    for seed, name in enumerate("ab"):
        random = np.random.default_rng(seed)
        voxels = random.integers(100, 200, SHAPE)
        places = random.integers((1, 3, 3), (15, 61, 61), (80, 3))
        label = np.arange(80) % 2
        write_spots(folder / f"{name}.zarr", voxels, places, label, VOXEL_UM, 32)
        Points(places.astype(float), {"label": label}).write(folder / f"{name}.csv")


def run(*words: object) -> None:
    with redirect_stdout(io.StringIO()):
        assert canvas_fm([str(word) for word in words]) == 0, words


def pretrain(folder: Path) -> Callable[[], None]:
    words = ("--volumes", folder / "a.zarr", "--out", folder / "run", "--set", *TRAINING)
    return lambda: run("pretrain", "phantom", *words)


def detect(folder: Path) -> Callable[[], None]:
    return lambda: run("detect", folder / "detector", folder / "a.zarr", "--out", folder / "cells.csv")


def fit(folder: Path) -> Callable[[], None]:
    inputs = [part for kind in ("zarr", "csv") for part in (folder / f"a.{kind}", folder / f"b.{kind}")]
    words = ("--volumes", *inputs[:2], "--candidates", *inputs[2:], "--labels", "label")
    return lambda: run("refine", "fit", "--encoder", folder / "encoder", *words, "--out", folder / "refiner")


def crop(folder: Path) -> Callable[[], None]:
    """A crop over HTTP, the service being up."""
    from starlette.testclient import TestClient

    from serving.core.core import Core, _load
    from serving.launch.bento.bento_service import make_service
    from serving.protocol import npy
    from serving.protocol.settings import ServiceSettings

    crops = npy.dump(np.random.default_rng(0).random((1, 4, 8, 8), np.float32))
    settings = ServiceSettings(model=str(folder / "encoder"))
    client = TestClient(make_service(Core(lambda: settings, load=_load)).to_asgi())

    def work() -> None:
        headers = {"Content-Type": npy.MEDIA_TYPE}
        assert client.post("/v1/embed", content=crops, headers=headers).status_code == 200

    client.__enter__()
    while client.get("/readyz").status_code != 200:
        time.sleep(0.01)
    work()
    return work


WORK = {"pretrain": pretrain, "detect": detect, "fit": fit, "crop": crop}


def main(words: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("verbs", nargs="*", metavar="VERB", help=", ".join(WORK))
    parser.add_argument("--list", action="store_true", help="name the files")
    args = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        for verb in args.verbs or WORK:
            codes = entered_by(functools.partial(WORK[verb], folder))
            whole = {path: len((ROOT / path).read_text("utf-8").splitlines()) for path in codes}
            entered = {path: lines_of(of) for path, of in codes.items()}
            print(
                f"{verb:10} {len(codes):4} files, {sum(whole.values()):6} lines, "
                f"{sum(entered.values()):6} of them in functions that are entered"
            )
            if args.list:
                for path in sorted(codes):
                    print(f"  {whole[path]:4} {entered[path]:4} {path}")


if __name__ == "__main__":
    main(sys.argv[1:])
