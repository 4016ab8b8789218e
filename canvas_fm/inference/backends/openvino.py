"""An encoder compiled by OpenVINO for the CPU in fp32, bf16, or int8 where admitted."""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor, nn

from canvas_fm.errors import CanvasError, MissingExtra
from canvas_fm.inference.backends.int8_check import quantised_file
from canvas_fm.models.encoder.vit import POOLS
from canvas_fm.models.load_model import Encoder

_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}  # of int8: for what is not quantised


class Outputs(nn.Module):
    """Crops (b, c, z, y, x) to (b, pools, d) for all POOLS in one graph; or to one of DENSE."""

    def __init__(self, encoder: Encoder, layer: int | None = None, dense: str | None = None) -> None:
        super().__init__()
        self.net, self.layer, self.dense = encoder.net, layer, dense

    def forward(self, crops: Tensor) -> Tensor:
        tokens = self.net.tokens(crops, layer=self.layer)
        if self.dense is not None:
            return self.net.pooled(tokens, self.dense)
        pooled = [self.net.described(self.net.pooled(tokens, pool), crops) for pool in POOLS]
        return torch.stack(pooled, dim=1)


class Compiled:
    """A compiled graph with torch's number of threads; thread-safe."""

    def __init__(self, model: Any, precision: str) -> None:
        settings = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "PERFORMANCE_HINT": "LATENCY",  # one batch at a time, on all threads
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        self._request = openvino().Core().compile_model(model, "CPU", settings).create_infer_request()
        self._turn = threading.Lock()

    def __call__(self, crops: Float32[np.ndarray, "b c z y x"]) -> Float32[np.ndarray, "b ..."]:
        with self._turn:
            output: Any = self._request.infer([np.ascontiguousarray(crops)], share_inputs=True)[0]
            return output


def compiled(
    encoder: Encoder, pool: str, layer: int | None, precision: str
) -> Callable[[Float32[np.ndarray, "b c z y x"]], np.ndarray]:
    """Function from crops to pooled embeddings; graph and compiled graph are cached on the encoder."""
    dense = None if pool in POOLS else pool
    key = ("openvino", dense, layer, precision, torch.get_num_threads())
    if precision == "int8":
        net = encoder.kept(
            key, lambda: Compiled(openvino().Core().read_model(quantised_file(encoder)), precision)
        )
    else:  # one conversion for fp32 and bf16, and for any number of threads
        graph = encoder.kept(("graph", dense, layer), lambda: converted(encoder, layer, dense))
        net = encoder.kept(key, lambda: Compiled(graph, precision))
    if dense is not None:
        return net
    return lambda crops: np.ascontiguousarray(net(crops)[:, POOLS.index(pool)])


def converted(encoder: Encoder, layer: int | None = None, dense: str | None = None) -> Any:
    """The encoder's graph as an OpenVINO model with dynamic batch size."""
    ov = openvino()
    architecture = encoder.config.architecture
    crop_shape = (architecture.channels, *architecture.crop_zyx)
    shape = ov.PartialShape([-1, *crop_shape])
    module = Outputs(encoder, layer, dense).eval()
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch and openvino, about how the one traces the other
        example = torch.rand(2, *crop_shape)
        return ov.convert_model(module, example_input=example, input=[(shape, ov.Type.f32)])


def save(model: Any, path: Path) -> None:
    """Write a model as `path` (.xml) with its weights (.bin)."""
    openvino().save_model(model, path, compress_to_fp16=False)


def lowered_instruction_set() -> str | None:
    """The environment's setting that holds oneDNN below this processor's AVX-512, `NAME=value`; or None."""
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        value = os.environ.get(name, "")
        if value.upper().startswith(("SSE", "AVX")) and not value.upper().startswith("AVX512"):
            return f"{name}={value}" if getattr(torch.cpu, "_is_avx512_supported", lambda: False)() else None
    return None


def openvino() -> Any:
    """Import OpenVINO without its telemetry."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as problem:
        raise MissingExtra("openvino", "cpu", "backend openvino") from problem
    # Its own copy of oneDNN reads the setting, its kernels do not: other numbers in fp32, a crash in bf16.
    if (setting := lowered_instruction_set()) is not None:
        raise CanvasError(
            f"{setting} is set, below what this processor has: OpenVINO gives wrong numbers or crashes "
            "there; unset it, or take the backend torch"
        )
    return openvino
