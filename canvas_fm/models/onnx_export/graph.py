"""ONNX graph of a model with its window and pooling inside, compared with torch before it is kept."""

from __future__ import annotations

import copy
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from canvas_fm.errors import CanvasError, MissingExtra
from canvas_fm.files.atomic import disk_full_as_error, removed_on_error, write_atomic, write_text_atomic
from canvas_fm.files.checksum import sha256
from canvas_fm.files.shipped import card_of
from canvas_fm.models.load_model import Detector, Encoder
from canvas_fm.models.onnx_export.bioimageio import description
from canvas_fm.version import __version__

OPSET = 18
TOLERANCE = 1e-5
_EXAMPLE_ROWS, _TEST_ROWS = 2, 5
_BOX_PATCHES = (12, 16, 14)  # of a detector's example; its test box is of another size


class OnnxExport(NamedTuple):
    """Files of an export, and the largest difference between onnxruntime and torch in float32."""

    path: Path
    description: Path
    max_difference: float
    sha256: str


class RawEncoder(nn.Module):
    """Raw intensities (n, c, z, y, x) and windows to embeddings (n, d)."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.net = encoder.net
        self.eval()

    def forward(self, crops: Tensor, window: Tensor) -> Tensor:
        embeddings: Tensor = self.net(_windowed(crops, window))
        return embeddings


class RawDetector(nn.Module):
    """Raw intensities (n, c, z, y, x) and windows to the probability of a cell centre (n, z, y, x)."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.net = detector.net
        self.eval()

    def forward(self, crops: Tensor, window: Tensor) -> Tensor:
        # Not `net.features`: a change of memory format has no counterpart in ONNX.
        return torch.sigmoid(self.net.logits(self.net.body(_windowed(crops, window))))


def export_onnx(model: Encoder | Detector, out: str | Path, *, overwrite: bool = False) -> OnnxExport:
    """Write a model as an ONNX graph, OUT.onnx, and beside it OUT.rdf.yaml for bioimage.io.

    The graph takes float32 raw intensities `crops` (n, c, z, y, x) and `window` (n, 2), of two channels (n,
    2, 2), low and high of the volume of each row, (0, 1) for voxels that went through it. An encoder's gives
    `embeddings` (n, d) by the model's pooling; a detector's `heatmap` (n, z, y, x), the probability of a cell
    centre before smoothing, for boxes of any whole number of patches. What is left to the caller (window
    rule, voxel size, smoothing, threshold) is in the graph's metadata. Before the file is kept, onnxruntime
    has to give torch's float32 numbers to 1e-5 on rows of another number and size than were traced; else
    CanvasError. Raises MissingExtra without the extra `onnx`.
    """
    path = Path(out)
    if path.suffix != ".onnx":
        raise CanvasError(f"OUT is {str(out)!r}; give a file that ends in .onnx")
    files = {"rdf": path.with_suffix(".rdf.yaml"), "card": path.with_suffix(".md")}
    tensors = {name: path.with_suffix(f".{name}.npy") for name in ("crops", "window", "output")}
    if not overwrite and (
        existing := next((each for each in (path, *files.values()) if each.exists()), None)
    ):
        raise CanvasError(f"{existing} is there already; give --overwrite to replace it")
    model.check_unedited()
    onnx, runtime = _packages()
    model = copy.deepcopy(model).cpu().float()
    module: nn.Module = RawEncoder(model) if isinstance(model, Encoder) else RawDetector(model)
    graph = _with_metadata(onnx, _traced(module, model), model)
    rows = example_rows(model, _TEST_ROWS, seed=1)
    output, difference = _compared(runtime, graph, module, rows)
    if not difference < TOLERANCE:
        raise CanvasError(
            f"the ONNX graph of {model.name} differs from torch by {difference:.2g}; less than {TOLERANCE:g} "
            "was expected, so it was not written: another version of torch or onnxruntime may trace it"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    written = (path, *files.values(), *tensors.values())
    with removed_on_error(*(each for each in written if not each.exists())):
        write_atomic(path, lambda temporary: temporary.write_bytes(graph))
        for name, array in zip(tensors, (*rows, output), strict=True):
            with disk_full_as_error(tensors[name]):
                np.save(tensors[name], array)
        write_text_atomic(files["card"], _card(model, difference))
        text = description(model, path, files["card"], tensors, sha256(path), OPSET)
        write_text_atomic(files["rdf"], text)
    return OnnxExport(path, files["rdf"], difference, sha256(path))


def example_rows(
    model: Encoder | Detector, rows: int, seed: int
) -> tuple[Float32[np.ndarray, "n c z y x"], Float32[np.ndarray, "n *c 2"]]:
    """Random intensities and windows that clip some of them at both ends; a detector's box varies by seed."""
    rng = np.random.default_rng(seed)
    channels = model.config.architecture.channels
    if isinstance(model, Encoder):
        box = model.config.architecture.crop_zyx
    else:
        patch = model.config.architecture.patch_zyx
        z, y, x = ((n - 2 * seed) * p for n, p in zip(_BOX_PATCHES, patch, strict=True))
        box = (z, y, x)
    crops = rng.uniform(0, 3000, (rows, channels, *box)).astype(np.float32)
    each = rows if channels == 1 else (rows, channels)
    low = rng.uniform(50, 400, each)
    return crops, np.stack([low, low + rng.uniform(1000, 2000, each)], axis=-1).astype(np.float32)


def _windowed(
    crops: Float[Tensor, "n c z y x"], window: Float[Tensor, "n *c 2"]
) -> Float[Tensor, "n c z y x"]:
    low, high = (window[..., at].reshape(-1, crops.shape[1], 1, 1, 1) for at in (0, 1))
    return ((crops - low) * (1.0 / (high - low))).clamp(0.0, 1.0)


def _traced(module: nn.Module, model: Encoder | Detector) -> bytes:
    """The graph by torch's tracing exporter.

    The one through torch.export took 33 s for an encoder where this takes 2, and fixed a detector's box.
    """
    crops, window = example_rows(model, _EXAMPLE_ROWS, seed=0)
    dense = isinstance(model, Detector)
    box = {2: "z", 3: "y", 4: "x"} if dense else {}
    with torch.no_grad(), warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "graph.onnx"
        warnings.simplefilter("ignore")  # of the tracer, about checks of shapes, and its own age
        torch.onnx.export(
            module,
            (torch.from_numpy(crops), torch.from_numpy(window)),
            file,
            dynamo=False,
            opset_version=OPSET,
            input_names=["crops", "window"],
            output_names=["heatmap" if dense else "embeddings"],
            dynamic_axes={
                "crops": {0: "n", **box},
                "window": {0: "n"},
                "heatmap" if dense else "embeddings": {0: "n", **{at - 1: name for at, name in box.items()}},
            },
        )
        return file.read_bytes()


def _with_metadata(onnx: Any, graph: bytes, model: Encoder | Detector) -> bytes:
    proto = onnx.load_from_string(graph)
    config = model.config.model_dump(mode="json", exclude={"provenance", "weights", "decoder"})
    facts = {"canvas_fm_config": json.dumps(config), "sha256": model.sha256, "canvas_fm": __version__}
    onnx.helper.set_model_props(proto, facts)
    onnx.checker.check_model(proto)
    serialized: bytes = proto.SerializeToString()
    return serialized


def _compared(
    runtime: Any,
    graph: bytes,
    module: nn.Module,
    rows: tuple[Float32[np.ndarray, "n c z y x"], Float32[np.ndarray, "n *c 2"]],
) -> tuple[Float32[np.ndarray, "n ..."], float]:
    """Output of torch, and the largest difference of onnxruntime's."""
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    crops, window = rows
    (output,) = session.run(None, {"crops": crops, "window": window})
    with torch.inference_mode():
        reference = module(torch.from_numpy(crops), torch.from_numpy(window)).numpy()
    return reference, float(np.abs(output - reference).max())


def _card(model: Encoder | Detector, difference: float) -> str:
    """The model's card, with the section on validation that bioimage.io asks of a model's documentation."""
    card = None if model.path is None else card_of(model.path)
    card = card or f"# {model.name}\n\nA model of canvas-fm; sha256 `{model.sha256}`. No card was written.\n"
    checked = (
        f"Before this graph was written onnxruntime gave torch's float32 numbers on {_TEST_ROWS} other rows, "
        f"to {difference:.2g} at most. How the model does on brains that it never saw is on its card, "
        "where it has one."
    )
    return f"{card.rstrip()}\n\n## Validation\n\n{checked}\n"


def _packages() -> tuple[Any, Any]:
    try:
        import onnx
        import onnxruntime
    except ImportError as problem:
        raise MissingExtra("onnx and onnxruntime", "onnx", "export-onnx") from problem
    return onnx, onnxruntime
