"""A served refiner with the models that compute its features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float32

from canvas_fm.errors import CanvasError
from canvas_fm.files.shipped import card_of
from serving.protocol.request_options import RefineRequest
from serving.protocol.schemas import CountReply, RefinerInfo
from serving.protocol.settings import ServiceSettings

if TYPE_CHECKING:
    import torch

    from canvas_fm.data.volume.volume import Volume
    from canvas_fm.heads.features.extractor import Extractor
    from canvas_fm.heads.refine.refiner import Refiner
    from canvas_fm.models.load_model import Detector, Encoder
    from serving.core.models.model_host import Engine


@dataclass(frozen=True)
class HostedRefiner:
    """A refiner with the models of its features; `engine` is its encoder's, if any."""

    name: str
    refiner: Refiner
    extractor: Extractor
    engine: Engine | None
    model_arguments: dict[str, Any]
    """The encoder and the detector as `canvas_fm.refine` is given them, None for a shipped one."""

    @classmethod
    def open(
        cls,
        name: str,
        settings: ServiceSettings,
        device: torch.device,
        engines: Sequence[Engine],
        detectors: Sequence[Detector],
        beside: Callable[[Encoder, str], Engine],
    ) -> HostedRefiner:
        """Open a refiner; CanvasError if its models are neither served nor shipped.

        And for a refiner that uses the candidate score: requests have points or crops, no scores.
        """
        from canvas_fm.heads.features.feature_set import CANDIDATE_SCORE
        from canvas_fm.heads.refine.apply.apply import extractor_of
        from canvas_fm.heads.refine.refiner import Refiner

        refiner = Refiner.load(settings.refiners[name])
        if CANDIDATE_SCORE in refiner.columns_.sizes:
            raise CanvasError(
                f"the refiner {name} cannot be served: it uses the candidate score, which "
                "requests do not carry; use `canvas-fm refine apply`, or serve one fitted without "
                "--candidate-score"
            )
        refiner.set_params(device=str(device))
        served_models = _served(refiner, [engine.encoder for engine in engines], detectors)
        extractor = extractor_of(refiner, **_models_of(name, refiner, served_models), **running(settings))
        engine = None
        if (encoder := extractor.encoder) is not None:
            served = (each for each in engines if each.sha256 == encoder.sha256)
            engine = next(served, None) or beside(encoder, f"refiner {name}")
        return cls(name, refiner, extractor, engine, served_models)

    @property
    def threshold(self) -> float:
        return float(self.refiner.threshold_)

    def models(self) -> dict[str, str | None]:
        """sha256 of encoder and detector."""
        encoder, detector = self.extractor.encoder, self.extractor.detector
        return {
            "encoder": None if encoder is None else encoder.sha256,
            "detector": None if detector is None else detector.sha256,
        }

    def info(self) -> RefinerInfo:
        from canvas_fm.heads.features.extractor import MAE

        settings = self.extractor.provenance[MAE].settings if self.engine is not None else {}
        return RefinerInfo(
            sha256=self.refiner.sha256_,
            **self.models(),
            pool=settings.get("pool"),
            layer=settings.get("layer"),
            threshold=self.threshold,
            correction=self.refiner.correction,
            card=card_of(self.refiner.folder_),
        )

    def p_cell(self, blocks: dict[str, np.ndarray], group: str) -> Float32[np.ndarray, " n"]:
        """P(cell) of the candidates of one brain from the features of each block."""
        from canvas_fm.heads.refine.apply.decide import p_cell

        return p_cell(self.refiner, self.extractor, blocks, group)

    def count(
        self, p_cell: Float32[np.ndarray, " n"], body: RefineRequest | None, volume: Volume | None
    ) -> CountReply:
        """The expected count of one request's candidates, of all cells where its recall was given.

        `volume` is where the candidates are, to notice one that the refiner was trained on.
        """
        from canvas_fm.data.points.points import Points
        from canvas_fm.heads.refine.counts.refined_count import count_refined

        recall = None if body is None else body.recall
        nowhere = Points(np.zeros((len(p_cell), 3)))
        known = {} if volume is None else {"volume": volume.name, "crop_of": volume.crop_of}
        counts = count_refined(
            self.refiner, nowhere, p_cell.astype(np.float64), recall=recall, **known
        ).as_dict()
        return CountReply.of(counts)

    def is_cell(self, p_cell: Float32[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Whether each P(cell) reaches the threshold."""
        from canvas_fm.heads.refine.apply.decide import is_cell

        return is_cell(self.refiner, p_cell)


def open_refiners(
    settings: ServiceSettings,
    device: torch.device,
    engines: Sequence[Engine],
    detectors: Sequence[Detector],
    beside: Callable[[Encoder, str], Engine],
) -> dict[str, HostedRefiner]:
    """Refiners by name, with models among `engines` and `detectors`, else shipped ones.

    `beside` serves an encoder that is not among them.
    """
    return {
        name: HostedRefiner.open(name, settings, device, engines, detectors, beside)
        for name in settings.refiners
    }


def _served(refiner: Refiner, encoders: Sequence[Encoder], detectors: Sequence[Detector]) -> dict[str, Any]:
    """Served models that a refiner was fitted with, None if not served."""
    from canvas_fm.heads.refine.apply.apply import models_needed

    sha256s = {provenance.sha256 for provenance in models_needed(refiner).values()}
    return {
        "encoder": next((each for each in encoders if each.sha256 in sha256s), None),
        "detector": next((each for each in detectors if each.sha256 in sha256s), None),
    }


def _models_of(name: str, refiner: Refiner, served_models: dict[str, Any]) -> dict[str, Any]:
    from canvas_fm.heads.refine.apply.apply import models_of

    try:
        return models_of(refiner, **served_models)
    except CanvasError as problem:
        raise CanvasError(
            f"the refiner {name} cannot be served: {problem}; a service is given it as one more MODEL"
        ) from problem


def running(settings: ServiceSettings) -> dict[str, Any]:
    """Run options of the service for `embed` and `refine`."""
    return {
        "device": settings.device,
        "precision": settings.precision,
        "backend": settings.backend,
        "resample": settings.resample,
        "ignore_voxel_size": settings.ignore_voxel_size,
    }
