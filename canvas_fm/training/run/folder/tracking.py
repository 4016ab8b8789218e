"""Metric logging: metrics.jsonl always, TensorBoard and Weights & Biases optionally."""

from __future__ import annotations

import hashlib
import json
import math
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from canvas_fm.errors import CanvasError, MissingExtra
from canvas_fm.files.atomic import disk_full_as_error, write_text_atomic
from canvas_fm.training.recipe.recipe import AnyRecipe, WandbRecipe

METRICS = "metrics.jsonl"


@runtime_checkable
class Sink(Protocol):
    """Protocol: a metric sink in addition to metrics.jsonl."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class MetricsLog:
    """metrics.jsonl: one row a line, reproducible numbers only, so no times.

    `start` is (bytes, sha256) of what the checkpoint that a run resumes from vouches for; what stands behind
    it came later and is cut off, a torn last line with it.
    """

    def __init__(self, path: Path, start: tuple[int, str] | None = None) -> None:
        self.path = path
        self._digest = hashlib.sha256()
        length = 0
        if start is not None:
            length, expected = start
            content = path.read_bytes()[:length] if path.exists() else b""
            self._digest.update(content)
            if len(content) != length or self._digest.hexdigest() != expected:
                raise CanvasError(
                    f"{path} is damaged: its first {length} bytes are not what the last checkpoint saw; "
                    "copy it anew from where it was whole, or start another run"
                )
        self._file = path.open("ab")
        self._file.truncate(length)
        self._length = length

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row; non-finite values become null."""
        line = (json.dumps(_finite(row), allow_nan=False) + "\n").encode()
        with disk_full_as_error(self.path):
            self._file.write(line)
            self._file.flush()
        self._digest.update(line)
        self._length += len(line)

    def settle(self) -> tuple[int, str]:
        """fsync all rows; returns (bytes, sha256) for the checkpoint that follows."""
        with disk_full_as_error(self.path):
            os.fsync(self._file.fileno())
        return self._length, self._digest.hexdigest()

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl; a last line truncated by a crash is ignored."""
    if not path.exists():
        return []
    rows = []
    *lines, _ = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as problem:
            raise CanvasError(
                f"{path}, line {number} is damaged: it is not JSON; delete the run's folder {path.parent} "
                "and run the same command again"
            ) from problem
    return rows


class Tracker:
    """Sends each row to metrics.jsonl and to the configured sinks."""

    def __init__(self, log: MetricsLog, sinks: list[Sink]) -> None:
        self.log, self._sinks = log, sinks

    def write(self, row: Mapping[str, Any], extra: Mapping[str, float] | None = None) -> None:
        """Write a row; `extra` are irreproducible numbers such as crops/s, for the sinks only."""
        self.log.write(row)
        scalars = dict(_scalars(row)) | {f"train/{key}": value for key, value in (extra or {}).items()}
        for sink in self._sinks:
            sink.write(row["step"], scalars)

    def close(self) -> None:
        self.log.close()
        for sink in self._sinks:
            sink.close()


def open_sinks(recipe: AnyRecipe, folder: Path, step: int) -> list[Sink]:
    """Open the configured sinks; MissingExtra if a package is not installed."""
    sinks: list[Sink] = []
    if recipe.tracking.tensorboard:
        sinks.append(_TensorBoard(folder / "tensorboard", step))
    if recipe.tracking.wandb is not None:
        sinks.append(_Wandb(folder, recipe.tracking.wandb, recipe))
    return sinks


class _TensorBoard:
    def __init__(self, folder: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as problem:
            raise MissingExtra("tensorboard", "tensorboard", "tracking.tensorboard") from problem
        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, folder: Path, settings: WandbRecipe, recipe: AnyRecipe) -> None:
        try:
            import wandb
        except ImportError as problem:
            raise MissingExtra("wandb", "wandb", "tracking.wandb") from problem
        # The same id after a resume, so that its curve goes on instead of beginning anew.
        known = folder / "wandb_id"
        if not known.exists():
            write_text_atomic(known, uuid.uuid4().hex[:12])
        self._run = wandb.init(
            project=settings.project,
            mode="offline" if settings.offline else "online",
            dir=str(folder),
            name=folder.name,
            id=known.read_text(encoding="utf-8"),
            resume="allow",
            settings={"silent": True},
            config=recipe.model_dump(mode="json"),
        )

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        self._run.log(dict(scalars), step=step)

    def close(self) -> None:
        self._run.finish()


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _scalars(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """`train/loss`, `eval/cube/random/psnr_masked`, `eval/cube/random/crop_mean/psnr_masked`, …"""
    place = "/".join(str(row[key]) for key in ("kind", "volume", "crops") if key in row)
    for key, value in row.items():
        if isinstance(value, Mapping):
            yield from (
                (f"{place}/{key}/{name}", number) for name, number in value.items() if number is not None
            )
        elif isinstance(value, float):
            yield f"{place}/{key}", value
