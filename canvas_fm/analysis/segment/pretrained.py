"""Cellpose-SAM, SAM and micro-sam on a volume, from the user's installation and weights.

None of their code or weights is part of this package. Each takes the volume as a whole, in [0, 1] after its
clip, and gives labels; SAM does so plane by plane.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Float32, Int32, Integer
from scipy.ndimage import center_of_mass

from canvas_fm.analysis.segment.morphology import measure_cells
from canvas_fm.analysis.segment.segment_flags import PretrainedOptions
from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.data.volume.window import WindowRule
from canvas_fm.data.zyx import ZyxUm
from canvas_fm.errors import CanvasError
from canvas_fm.files.option_sets import takes
from canvas_fm.progress import bar

Model = Literal["cellpose-sam", "sam", "micro-sam"]
MODELS = get_args(Model)
_MOST_VOXELS = 500_000_000
_SAME_OBJECT = 0.5  # share of the smaller of two planes' objects, from which they are one


class _Source(NamedTuple):
    """Source of a model's code and weights, and their terms."""

    module: str
    install: str
    weights: str


_SOURCES: dict[str, _Source] = {
    "cellpose-sam": _Source(
        "cellpose.models", "pip install 'canvas-fm[cellpose]' (BSD-3)",
        "cpsam of huggingface.co/mouseland/cellpose-sam, trained on data under CC-BY-NC",
    ),
    "sam": _Source(
        "segment_anything", "pip install 'canvas-fm[sam]' (Apache-2.0)",
        "sam_vit_b_01ec64.pth and others of github.com/facebookresearch/segment-anything, under Apache-2.0",
    ),
    "micro-sam": _Source(
        "micro_sam.automatic_segmentation", "pip install 'canvas-fm[micro-sam]' (MIT)",
        "vit_b_lm and others of bioimage.io, under the licence that their page states",
    ),
}  # fmt: skip


@takes(PretrainedOptions)
def segment_pretrained(
    model: Model, volume: Volume, out: str | Path, weights: str | Path, **options: Any
) -> Points:
    """Write the labels of a pretrained segmenter; returns the centre and the morphology of each object.

    Raises CanvasError that names package, weights and their licence where one of them is missing, and for a
    volume of more than 5·10⁸ voxels.
    """
    opts = PretrainedOptions.of(**options)
    run = _loaded(model, Path(weights), opts)
    if np.prod(volume.shape_zyx, dtype=np.int64) > _MOST_VOXELS:
        raise CanvasError(
            f"the volume has {np.prod(volume.shape_zyx, dtype=np.int64):,} voxels and {model} takes it as a "
            f"whole; expected at most {_MOST_VOXELS:,}: give a part of it"
        )
    window = volume.window_by(WindowRule("percentiles", 0.5, opts.clip_percentile))
    image = volume.read((0, 0, 0), volume.shape_zyx)
    labels = np.asarray(run(window.apply(image), volume.voxel_um))
    if labels.shape != image.shape:
        raise CanvasError(f"{model} gave labels of shape {labels.shape} for a volume of {image.shape}")
    labels = _numbered(labels)
    with Volume.create(
        out, volume.shape_zyx, voxel_um=volume.voxel_um, dtype="uint32", source=model
    ) as writer:
        writer.write((0, 0, 0), labels.astype(np.uint32))
    objects = np.arange(1, int(labels.max(initial=0)) + 1)
    centres = np.array(center_of_mass(labels > 0, labels, objects)) if len(objects) else np.zeros((0, 3))
    table = measure_cells(labels, image, objects, volume.voxel_um, branches=opts.branches)
    return Points(centres.reshape(-1, 3), table)


def _numbered(labels: Integer[np.ndarray, "z y x"]) -> Int32[np.ndarray, "z y x"]:
    """Labels from 1 without gaps."""
    ids, inverse = np.unique(labels, return_inverse=True)
    rank = np.cumsum(ids != 0) * (ids != 0)
    return rank[inverse].reshape(labels.shape).astype(np.int32)


Run = Callable[[Float32[np.ndarray, "z y x"], ZyxUm], np.ndarray]


def _loaded(model: Model, weights: Path, options: PretrainedOptions) -> Run:
    source = _SOURCES[model]
    try:
        module = importlib.import_module(source.module)
    except ImportError as problem:
        raise CanvasError(
            f"{model} is not installed ({problem}): {source.install}; it also needs weights: {source.weights}"
        ) from problem
    if not weights.is_file():
        raise CanvasError(f"there are no weights at {weights}; {model} needs {source.weights}")
    makers: dict[str, Callable[[Any, Path, PretrainedOptions], Run]] = {
        "cellpose-sam": _cellpose,
        "sam": _sam,
        "micro-sam": _micro_sam,
    }
    if options.decoder is not None and (model != "micro-sam" or not Path(options.decoder).is_file()):
        raise CanvasError(
            f"--decoder {options.decoder} is not a file"
            if model == "micro-sam"
            else f"--decoder is the second file of micro-sam's weights; {model} has none"
        )
    try:
        return makers[model](module, weights, options)
    except CanvasError:
        raise
    except Exception as problem:  # torch.load and the three packages raise whatever a file provokes
        text = " ".join(str(problem).split())[:200]
        raise CanvasError(
            f"{weights} does not load as weights of {model} ({type(problem).__name__}: {text}); it needs "
            f"{source.weights}"
        ) from problem


def _cellpose(module: Any, weights: Path, options: PretrainedOptions) -> Run:
    from canvas_fm.models.device import native_bf16, pick_device

    device = pick_device(options.torch_device)
    # Its default, bf16 everywhere, is many times slower on a processor without such instructions.
    net = module.CellposeModel(pretrained_model=str(weights), device=device, use_bfloat16=native_bf16(device))

    def run(image: np.ndarray, voxel_um: ZyxUm) -> np.ndarray:
        # Already windowed: its own normalisation by each volume's percentiles would undo the clip.
        if len(image) == 1:
            return np.asarray(net.eval(image[0], normalize=False)[0])[None]
        results = net.eval(
            image, z_axis=0, do_3D=True, anisotropy=voxel_um[0] / voxel_um[2], normalize=False
        )  # fmt: skip
        return np.asarray(results[0])

    return run


def _sam(module: Any, weights: Path, options: PretrainedOptions) -> Run:
    net = module.sam_model_registry[options.model_type or "vit_b"](checkpoint=str(weights))
    generator = module.SamAutomaticMaskGenerator(net.to(options.torch_device))

    def run(image: np.ndarray, voxel_um: ZyxUm) -> np.ndarray:
        largest = np.pi * options.max_radius_um**2 / (voxel_um[1] * voxel_um[2])
        planes = []
        with bar("planes", len(image), unit="planes", show=None) as advance:
            for plane in np.rint(image * 255).astype(np.uint8):
                masks = generator.generate(np.repeat(plane[:, :, None], 3, axis=2))
                planes.append(_flat([mask["segmentation"] for mask in masks], plane.shape, largest))
                advance()
        return stitch_planes(np.stack(planes))

    return run


def _micro_sam(module: Any, weights: Path, options: PretrainedOptions) -> Run:
    model_type = options.model_type or "vit_b_lm"
    named: dict[str, Any] = {"checkpoint": str(weights), "device": options.torch_device}
    if options.decoder is not None:
        # The decoder of a model of bioimage.io is a file of its own, which only `get_sam_model` takes.
        predictor, state = importlib.import_module("micro_sam.util").get_sam_model(
            model_type=model_type, device=options.torch_device, checkpoint_path=str(weights),
            decoder_path=str(options.decoder), return_state=True,
        )  # fmt: skip
        named = {"predictor": predictor, "state": state, "device": options.torch_device}
    predictor, segmenter = module.get_predictor_and_segmenter(model_type, **named)

    def run(image: np.ndarray, voxel_um: ZyxUm) -> np.ndarray:
        eight_bit = np.rint(image * 255).astype(np.uint8)
        return np.asarray(
            module.automatic_instance_segmentation(predictor, segmenter, eight_bit, ndim=3, verbose=False)
        )

    return run


def _flat(
    masks: list[Bool[np.ndarray, "y x"]], shape: tuple[int, ...], largest: float
) -> Int32[np.ndarray, "y x"]:
    """Labels of a plane: where masks overlap the smaller one is above; those above `largest` are none."""
    labels = np.zeros(shape, np.int32)
    kept = [mask for mask in masks if 0 < mask.sum() <= largest]
    for label, mask in enumerate(sorted(kept, key=lambda mask: -int(mask.sum())), 1):
        labels[mask] = label
    return labels


def stitch_planes(planes: Int32[np.ndarray, "z y x"]) -> Int32[np.ndarray, "z y x"]:
    """Objects of planes joined along z, each with one below at most: of those that share half or more of the
    smaller of the two, the one with the largest overlap."""
    labels, highest = planes.copy(), int(planes[0].max(initial=0))
    for z in range(1, len(labels)):
        below, objects = labels[z - 1], planes[z]
        ids = np.unique(objects[objects > 0])
        new = np.zeros(int(objects.max(initial=0)) + 1, np.int32)
        taken: set[int] = set()
        for label in sorted(ids.tolist(), key=lambda id_: -int((objects == id_).sum())):
            inside = objects == label
            under, overlap = np.unique(below[inside & (below > 0)], return_counts=True)
            smaller = np.minimum(inside.sum(), [(below == id_).sum() for id_ in under])
            overlap = np.where(overlap >= _SAME_OBJECT * smaller, overlap, 0)
            best = int(under[overlap.argmax()]) if overlap.any() else 0
            if best == 0 or best in taken:
                highest += 1
                best = highest
            taken.add(best)
            new[label] = best
        labels[z] = new[objects]
    return labels
