"""The detector that found a review's candidates, its threshold adapted to the answers in the background."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64

from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError
from canvas_fm.heads.review.learn_threshold import LearnedThreshold, learn_threshold
from canvas_fm.models.load_model import Detector, load, save_detector
from canvas_fm.training.detector.threshold import LOWEST_THRESHOLD
from canvas_fm.training.mae.training_crops import VolumeSource
from canvas_fm.version import __version__

_log = logging.getLogger(__name__)


def adapted_folder(labels: Path) -> Path:
    """Folder of the adapted detector of a review: next to its labels."""
    return labels.with_name(f"{labels.stem}_detector")


@dataclass(frozen=True)
class ReviewedDetector:
    """A detector, the scores that it gave to a review's candidates, and where it is written once adapted.

    Only its threshold is learned: answers are of candidates, while layers and blob amplitude take boxes in
    which everything is labelled (`canvas-fm adapt`).
    """

    detector: Detector
    volume: Volume
    score: Float64[np.ndarray, " n"]
    lowest: float
    out: Path
    seed: int = 0

    @classmethod
    def of(
        cls, model: str | Path, volume: Volume, candidates: Points, out: Path, *, seed: int = 0
    ) -> ReviewedDetector:
        """CanvasError for candidates of another detector, whose scores say nothing of this one."""
        detector = load(model, kind="detector")
        meta, score = candidates.meta, candidates.columns.get("score")
        if meta.get("detector_sha256") != detector.sha256 or score is None:
            found_by = meta.get("detector") or "another program, or a detector that is not stated"
            low = max(round(detector.config.threshold / 4, 2), LOWEST_THRESHOLD)  # nearly every cell
            raise CanvasError(
                f"the candidates are of {found_by}, not of {detector.name}; adapt the detector that found "
                f"them, or find candidates with it first: canvas-fm detect {model} VOLUME --threshold {low}"
            )
        return cls(detector, volume, score.astype(np.float64), float(meta["threshold"]), out, seed)

    def learn(
        self,
        x: Float32[np.ndarray, "n d"],
        label: Int64[np.ndarray, " n"],
        sample: Int64[np.ndarray, " k"],
        p_cell: Float64[np.ndarray, " n"],
    ) -> dict[str, str]:
        """Learn the threshold and write the detector with it; returns what to say of it.

        Where no other threshold is taken the folder holds the detector as it was.
        """
        learned = learn_threshold(
            x, label, sample, self.score, p_cell,
            before=self.detector.config.threshold, lowest=self.lowest, seed=self.seed,
        )  # fmt: skip
        self._write(learned)
        return {"sentence": learned.sentence(self.detector.name), "curve": learned.curve}

    def _write(self, learned: LearnedThreshold) -> None:
        config = self.detector.config
        save_detector(
            self.out, self.detector.net, voxel_um=config.voxel_um, threshold=learned.threshold,
            min_distance_um=config.min_distance_um, smooth_um=config.smooth_um,
            window_rule=config.window_rule, amplitude=config.amplitude, relative=config.relative,
            provenance=self._provenance(learned),
        )  # fmt: skip

    def _provenance(self, learned: LearnedThreshold) -> dict[str, Any]:
        """As before, and by which answers the threshold was chosen."""
        before = self.detector.config.provenance
        volume = VolumeSource(self.volume.name, self.volume).identity(self.detector.config.window_rule)
        return {
            **before,
            "adapted_from": self.detector.sha256,
            "adaptation": {
                "chosen": "threshold" if learned.taken else "unadapted",
                "volume": volume,
                "answers": learned.answers,
                "held_out": learned.held_out,
                "f1_before": learned.f1_before,
                "f1_after": learned.f1_after,
                "seed": self.seed,
            },
            "versions": {**(before.get("versions") or {}), "canvas_fm": __version__},
        }
