"""Verb `demo`: cells of two real samples counted, then a pretraining on synthetic brains; writes a page."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canvas_fm.cli.parser import Parser, Verbs, add_verb, positive_int
from canvas_fm.errors import CanvasError

if TYPE_CHECKING:
    import numpy as np

    from canvas_fm.training.run.folder.run_folder import Run
    from canvas_fm.viewing.demo.counting import SampleCount
    from canvas_fm.viewing.demo.page import Agreement

_MARK = ".canvas-fm-demo"
_LIMIT = 1e-5
_READY_S = 120


def add_verbs(verbs: Verbs) -> None:
    add_verb(
        verbs,
        "demo",
        run_demo,
        "count cells of two real samples, pretrain on a synthetic brain, in a few minutes",
        "Count the cells of two small real volumes with the shipped models and score them against the truth; "
        "write two synthetic brains, pretrain two small encoders on one, serve the one of cells, check that "
        "HTTP, command line and Python give the same embeddings; leave a page with what came of it in "
        "DIR/index.html.",
        fill=_fill_demo,
    )


def _fill_demo(demo: Parser) -> None:
    from canvas_fm.inference.run_flags import DeviceOptions

    demo.add_argument(
        "--out", default="demo", metavar="DIR", help="default demo; an earlier demo is replaced"
    )
    demo.add_argument("--seed", type=int, default=0, help="default 0")
    demo.add_argument(
        "--steps", type=positive_int, help="training steps of each; default: those of the recipes"
    )
    demo.add_options("where", DeviceOptions)


def run_demo(args: argparse.Namespace) -> dict:
    out = Path(args.out)
    seconds: dict[str, float] = {}
    _prepare(out)
    with _stage("cells of two real samples", 1, seconds):
        counts = _count_samples(out, args)
    with _stage("two synthetic brains", 2, seconds):
        brains = _write_brains(out, args.seed)
    with _stage("pretraining", 3, seconds):
        run = _pretrain("phantom_cells", out / "run", brains, args)
        autoencoder = _pretrain("phantom", out / "autoencoder", brains, args)
    with _stage("the same embeddings three ways", 4, seconds):
        agreement, cells = _compare(out, run, brains[1], args)
    with _stage("figures and page", 5, seconds):
        facts = _write_page(out, counts, (run, autoencoder), brains, agreement, cells, seconds, args)
    page = (out / "index.html").resolve()
    differences = {row.ways: row.difference for row in agreement}
    f1 = {count.name: round(count.refined.value, 3) for count in counts}
    return {"page": str(page), "f1": f1, "differences": differences, "accuracy": facts}


def _prepare(out: Path) -> None:
    """Create the demo's folder, marked as such; removes what an earlier demo left."""
    if out.exists() and not out.is_dir():
        raise CanvasError(f"{out} is a file; give a folder with --out")
    if out.is_dir() and any(out.iterdir()):
        if not (out / _MARK).is_file():
            raise CanvasError(
                f"{out} holds something that no demo left there; give another folder with --out"
            )
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / _MARK).write_text(
        "this folder was made by `canvas-fm demo`, which replaces it\n", encoding="utf-8"
    )


@contextmanager
def _stage(name: str, number: int, seconds: dict[str, float]) -> Iterator[None]:
    print(f"canvas-fm: {number}/5 {name}", file=sys.stderr, flush=True)
    began = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - began


def _count_samples(out: Path, args: argparse.Namespace) -> list[SampleCount]:
    from canvas_fm.files.shipped import shipped
    from canvas_fm.viewing.demo.counting import count_sample

    return [count_sample(name, out / name, device=args.where.device) for name in reversed(shipped("sample"))]


def _write_brains(out: Path, seed: int) -> tuple[dict[str, Path], dict[str, Path]]:
    """Write two brains in parallel; the held-out one by the command line in another process."""
    from canvas_fm.data.phantom.phantom import write_phantom

    second = out / "brain_2"
    command = _command("phantom", second, "--seed", seed + 1)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=_environment()) as other:
        first = write_phantom(out / "brain_1", seed=seed)
        if other.wait() != 0:
            raise CanvasError("the second brain could not be written; the lines above say why")
    return first, {marker: second / marker for marker in first}


def _pretrain(
    recipe: str, out: Path, brains: tuple[dict[str, Path], dict[str, Path]], args: argparse.Namespace
) -> Run:
    from canvas_fm.files.shipped import shipped
    from canvas_fm.training.mae.pretrain import pretrain

    volumes = [folder / "raw.zarr" for brain in brains for folder in brain.values()]
    return pretrain(
        shipped("recipe")[recipe],
        volumes,
        out=out,
        held_out=[f"brain_2/{marker}" for marker in brains[1]],
        device=args.where.device,
        seed=args.seed,
        overrides=[] if args.steps is None else [f"training.steps={args.steps}"],
    )


def _compare(
    out: Path, run: Run, brain: dict[str, Path], args: argparse.Namespace
) -> tuple[list[Agreement], int]:
    """Relative differences of embeddings by HTTP and command line from those by Python."""
    import numpy as np

    from canvas_fm.data.crops.reader import CropReader
    from canvas_fm.data.points.points import Points
    from canvas_fm.data.volume.volume import Volume
    from canvas_fm.inference.embed.embed import embed
    from canvas_fm.models.load_model import load
    from canvas_fm.viewing.demo.page import Agreement
    from serving.client import Client

    encoder = load(run.encoder, device=args.where.device)
    volumes = {marker: Volume.open(folder / "raw.zarr") for marker, folder in brain.items()}
    points = {m: Points(Points.read(brain[m] / "centroids.csv").zyx[:100]) for m in brain}
    options = {"device": args.where.device, "show": False}
    python = {m: embed(encoder, volumes[m], points[m].zyx, **options) for m in brain}
    with (
        _command_line(out, run, brain["cFos"], points["cFos"], args),  # works while the service starts
        _service(out, run, brain, args) as url,
        Client(url) as client,
    ):
        http, names, alone = {}, {}, []
        for marker, volume in volumes.items():
            zyx = points[marker].zyx
            raw = CropReader(volume, encoder.config.architecture.crop_zyx).read_points(zyx)
            http[marker] = client.embed(raw, window=volume.window_by(encoder.config.window_rule))
            names[marker] = client.embed_points(marker, zyx)
            alone.append(client.embed_points(marker, zyx[:1]))
    rows = [
        Agreement("HTTP, crops — Python", _difference(http, python)),
        Agreement("HTTP, points — Python", _difference(names, python)),
        Agreement(
            "HTTP, one point — Python, all", _relative(np.concatenate(alone), [python[m][0] for m in brain])
        ),
        Agreement("command line — Python", _relative(_vectors(out / "cFos.emb.zarr"), python["cFos"])),
    ]
    for row in rows:
        if not row.difference <= _LIMIT:
            raise CanvasError(f"{row.ways}: embeddings differ by {row.difference:.2g}, more than {_LIMIT:g}")
    return rows, sum(len(cells) for cells in points.values())


@contextmanager
def _command_line(out: Path, run: Run, folder: Path, points: Any, args: argparse.Namespace) -> Iterator[None]:
    """Context manager: `canvas-fm embed` in its own process, ended with the context."""
    points.write(out / "cFos.csv")
    command = _command("embed", run.encoder, folder / "raw.zarr", "--points", out / "cFos.csv")
    command += ["--out", str(out / "cFos.emb.zarr"), "--device", args.where.device]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=_environment()
    ) as child:
        try:
            yield
        except BaseException:
            child.kill()
            raise
        _, messages = child.communicate()
        if child.returncode != 0:
            raise CanvasError(f"the command line could not embed: {messages.strip()}")


def _vectors(path: Path) -> np.ndarray:
    from canvas_fm.inference.embed.store.embedding_store import Embeddings

    return Embeddings.open(path).vectors


def _difference(reference: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    return max(_relative(reference[name], other[name]) for name in other)


def _relative(reference: Any, other: Any) -> float:
    """Largest relative difference |a − b| / |b| over the rows."""
    import numpy as np

    a, b = np.asarray(reference, np.float64), np.asarray(other, np.float64)
    return float((np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1)).max())


@contextmanager
def _service(out: Path, run: Run, brain: dict[str, Path], args: argparse.Namespace) -> Iterator[str]:
    """Context manager: `canvas-fm serve` in its own process on a free port."""
    log = out / "serve.log"
    named = [f"{marker}={folder / 'raw.zarr'}" for marker, folder in brain.items()]
    command = _command("serve", run.encoder, "--port", 0, "--device", args.where.device, "--volume", *named)
    with log.open("wb") as file:
        child = subprocess.Popen(command, stdout=file, stderr=file, env=_environment())
    try:
        yield _address(child, log)
    finally:
        child.terminate()
        try:
            child.wait(timeout=30)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _address(child: subprocess.Popen[bytes], log: Path) -> str:
    """Wait for the address that the service prints when it is ready."""
    end = time.monotonic() + _READY_S
    while time.monotonic() < end:
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("canvas-fm: serving on "):
                return line.split()[-1]
        if child.poll() is not None:
            break
        time.sleep(0.1)
    raise CanvasError(f"the service did not start; {log} says why")


def _write_page(
    out: Path,
    counts: list[SampleCount],
    runs: tuple[Run, Run],
    brains: tuple[dict[str, Path], dict[str, Path]],
    agreement: list[Agreement],
    cells: int,
    seconds: dict[str, float],
    args: argparse.Namespace,
) -> dict[str, float]:
    """Measure and write the page; returns the accuracies."""
    from canvas_fm.models.load_model import load
    from canvas_fm.viewing.demo.measure_pretraining import build_page
    from canvas_fm.viewing.demo.page import write_page

    run, autoencoder = runs
    page = build_page(
        out,
        counts,
        load(run.encoder),
        load(autoencoder.encoder),
        (run.metrics(), autoencoder.metrics()),
        brains,
        agreement,
        cells,
        limit=_LIMIT,
        seconds=seconds,
        seed=args.seed,
    )
    write_page(page, out / "index.html")
    return {row.label: round(row.value, 4) for row in page.separability}


def _command(*words: object) -> list[str]:
    return [sys.executable, "-m", "canvas_fm.cli", *map(str, words)]


def _environment() -> dict[str, str]:
    """Environment of a child process with unbuffered output."""
    return {**os.environ, "PYTHONUNBUFFERED": "1"}
