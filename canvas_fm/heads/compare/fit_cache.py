"""Cache of a comparison's finished fits, so that it resumes after a kill."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from canvas_fm.files.resumable import read_part, write_part
from canvas_fm.heads.compare.out_of_fold import FitOutput, Speed
from canvas_fm.heads.compare.pooled_candidates import PooledCandidates
from canvas_fm.heads.refine.counts.count_interval import CountSpread
from canvas_fm.inference.embed.point_crops import volume_identity
from canvas_fm.version import __version__


class FitCache:
    """A folder with one file for each fit, addressed by a hash of all its inputs.

    That is the candidates with their labels, truth and volumes, the method's settings, what is held out, the
    seed and the number of labels. Without a folder nothing is kept.
    """

    def __init__(self, folder: Path | None, pooled: PooledCandidates) -> None:
        self._folder = folder
        self._pooled = "" if folder is None else task_sha256(pooled)

    def key(self, method: Mapping[str, Any] | None, **fit: Any) -> str | None:
        """Key of a fit; None without a cache, or if the method does not state its inputs."""
        if self._folder is None or method is None:
            return None
        inputs = {"task": self._pooled, "method": dict(method), "canvas_fm": __version__, **fit}
        text = json.dumps(inputs, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def __contains__(self, key: str | None) -> bool:
        return key is not None and self._path(key).is_file()

    def get(self, key: str | None) -> FitOutput | None:
        """The cached fit; None if missing or damaged."""
        if key is None or (part := read_part(self._path(key))) is None:
            return None
        about = part.about
        speed = None if about["speed"] is None else Speed(*about["speed"])
        spread = CountSpread(*about["spread"])
        return FitOutput(part.arrays["p_cell"], about["threshold"], spread, about["seconds"], speed)

    def put(self, key: str | None, fit: FitOutput) -> None:
        """Store a finished fit."""
        if key is not None:
            about = fit._asdict()
            write_part(self._path(key), {"p_cell": about.pop("p_cell")}, about)

    def _path(self, key: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{key}.part"


def task_sha256(pooled: PooledCandidates) -> str:
    """Hash of a task: candidates, labels, truth, candidate scores, volumes."""
    digest = hashlib.sha256()
    for part in pooled.parts:
        assert part.truth_zyx is not None
        scores = np.zeros(0) if part.own is None else part.own
        description = [part.name, volume_identity(part.volume), list(part.volume.window), part.tolerance_um]
        digest.update(json.dumps([*description, *part.volume.voxel_um], sort_keys=True).encode())
        for numbers in (part.zyx, part.label, part.truth_zyx, part.where, scores):
            digest.update(f"{numbers.shape}".encode() + np.ascontiguousarray(numbers, "<f8").tobytes())
    digest.update(json.dumps(pooled.to_um).encode())
    return digest.hexdigest()
