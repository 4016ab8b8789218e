"""canvas-fm: a foundation-model toolkit for whole-brain light-sheet microscopy.

Order is always z, y, x. The names below are imported when first used, so that `import canvas_fm` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from canvas_fm.version import __version__

if TYPE_CHECKING:
    from canvas_fm.data.dataset.sample import sample
    from canvas_fm.data.phantom.phantom import write_phantom
    from canvas_fm.data.points.points import Points
    from canvas_fm.data.volume.volume import Volume
    from canvas_fm.errors import CanvasError
    from canvas_fm.evaluation.detection.score import evaluate
    from canvas_fm.heads.probe.cross_validate import probe_fit
    from canvas_fm.heads.probe.probe import Probe
    from canvas_fm.heads.refine.apply.apply import refine
    from canvas_fm.heads.refine.refiner import Refiner
    from canvas_fm.inference.detect.detect import detect, detect_log
    from canvas_fm.inference.detect.detector_features import detector_features
    from canvas_fm.inference.embed.embed import embed, embed_crops, embed_to_store
    from canvas_fm.inference.embed.store.embedding_store import Embeddings
    from canvas_fm.inference.search.index.index import Index
    from canvas_fm.inference.search.projection import embedding_map
    from canvas_fm.models.load_model import load, save
    from canvas_fm.models.onnx_export.graph import export_onnx
    from canvas_fm.pipeline.fit_refiner import fit_refiner
    from canvas_fm.prepare.convert.convert import convert, destripe
    from canvas_fm.prepare.convert.preview import preview_conversion
    from canvas_fm.prepare.stitch.stitch import stitch
    from canvas_fm.training.crop_targets import RandomCrops
    from canvas_fm.training.detector.adapt.adapt import adapt_detector
    from canvas_fm.training.detector.train import train_detector
    from canvas_fm.training.mae.pretrain import pretrain
    from canvas_fm.training.sweep.sweep import sweep
    from canvas_fm.training.torch_dataset import CropDataset
    from canvas_fm.viewing.report.report import report

_HOME = {
    "CanvasError": "canvas_fm.errors",
    "CropDataset": "canvas_fm.training.torch_dataset",
    "Embeddings": "canvas_fm.inference.embed.store.embedding_store",
    "Index": "canvas_fm.inference.search.index.index",
    "Points": "canvas_fm.data.points.points",
    "Probe": "canvas_fm.heads.probe.probe",
    "RandomCrops": "canvas_fm.training.crop_targets",
    "Refiner": "canvas_fm.heads.refine.refiner",
    "Volume": "canvas_fm.data.volume.volume",
    "adapt_detector": "canvas_fm.training.detector.adapt.adapt",
    "convert": "canvas_fm.prepare.convert.convert",
    "destripe": "canvas_fm.prepare.convert.convert",
    "detect": "canvas_fm.inference.detect.detect",
    "detect_log": "canvas_fm.inference.detect.detect",
    "detector_features": "canvas_fm.inference.detect.detector_features",
    "embed": "canvas_fm.inference.embed.embed",
    "embed_crops": "canvas_fm.inference.embed.embed",
    "embed_to_store": "canvas_fm.inference.embed.embed",
    "embedding_map": "canvas_fm.inference.search.projection",
    "export_onnx": "canvas_fm.models.onnx_export.graph",
    "evaluate": "canvas_fm.evaluation.detection.score",
    "fit_refiner": "canvas_fm.pipeline.fit_refiner",
    "load": "canvas_fm.models.load_model",
    "preview_conversion": "canvas_fm.prepare.convert.preview",
    "pretrain": "canvas_fm.training.mae.pretrain",
    "probe_fit": "canvas_fm.heads.probe.cross_validate",
    "report": "canvas_fm.viewing.report.report",
    "refine": "canvas_fm.heads.refine.apply.apply",
    "sample": "canvas_fm.data.dataset.sample",
    "save": "canvas_fm.models.load_model",
    "stitch": "canvas_fm.prepare.stitch.stitch",
    "sweep": "canvas_fm.training.sweep.sweep",
    "train_detector": "canvas_fm.training.detector.train",
    "write_phantom": "canvas_fm.data.phantom.phantom",
}

__all__ = [
    "CanvasError",
    "CropDataset",
    "Embeddings",
    "Index",
    "Points",
    "Probe",
    "RandomCrops",
    "Refiner",
    "Volume",
    "__version__",
    "adapt_detector",
    "convert",
    "destripe",
    "detect",
    "detect_log",
    "detector_features",
    "embed",
    "embed_crops",
    "embed_to_store",
    "embedding_map",
    "evaluate",
    "export_onnx",
    "fit_refiner",
    "load",
    "pretrain",
    "preview_conversion",
    "probe_fit",
    "refine",
    "report",
    "sample",
    "save",
    "stitch",
    "sweep",
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
