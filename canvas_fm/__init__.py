"""canvas-fm: a foundation-model toolkit for whole-brain light-sheet microscopy.

Order is always z, y, x. The names below are imported when first used, so that `import canvas_fm` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from canvas_fm.data.phantom import write_phantom
    from canvas_fm.data.points import Points
    from canvas_fm.data.volume import Volume
    from canvas_fm.errors import CanvasError
    from canvas_fm.evaluation.score import evaluate
    from canvas_fm.heads.probe import Probe
    from canvas_fm.heads.probe_score import probe_fit
    from canvas_fm.heads.refine import Refiner
    from canvas_fm.heads.refine_points import refine
    from canvas_fm.inference.detect import detect, detect_log
    from canvas_fm.inference.embed import embed, embed_crops, embed_to_store
    from canvas_fm.inference.embeddings import Embeddings
    from canvas_fm.inference.features import detector_features
    from canvas_fm.inference.search import Index
    from canvas_fm.inference.search_map import embedding_map
    from canvas_fm.models.checkpoint import load
    from canvas_fm.training.detector import train_detector
    from canvas_fm.training.pretrain import pretrain
    from canvas_fm.viewing.report import report

_HOME = {
    "CanvasError": "canvas_fm.errors",
    "Embeddings": "canvas_fm.inference.embeddings",
    "Index": "canvas_fm.inference.search",
    "Points": "canvas_fm.data.points",
    "Probe": "canvas_fm.heads.probe",
    "Refiner": "canvas_fm.heads.refine",
    "Volume": "canvas_fm.data.volume",
    "detect": "canvas_fm.inference.detect",
    "detect_log": "canvas_fm.inference.detect",
    "detector_features": "canvas_fm.inference.features",
    "embed": "canvas_fm.inference.embed",
    "embed_crops": "canvas_fm.inference.embed",
    "embed_to_store": "canvas_fm.inference.embed",
    "embedding_map": "canvas_fm.inference.search_map",
    "evaluate": "canvas_fm.evaluation.score",
    "load": "canvas_fm.models.checkpoint",
    "pretrain": "canvas_fm.training.pretrain",
    "probe_fit": "canvas_fm.heads.probe_score",
    "report": "canvas_fm.viewing.report",
    "refine": "canvas_fm.heads.refine_points",
    "train_detector": "canvas_fm.training.detector",
    "write_phantom": "canvas_fm.data.phantom",
}

__all__ = [
    "CanvasError",
    "Embeddings",
    "Index",
    "Points",
    "Probe",
    "Refiner",
    "Volume",
    "detect",
    "detect_log",
    "detector_features",
    "embed",
    "embed_crops",
    "embed_to_store",
    "embedding_map",
    "evaluate",
    "load",
    "pretrain",
    "probe_fit",
    "refine",
    "report",
    "train_detector",
    "write_phantom",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'canvas_fm' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
