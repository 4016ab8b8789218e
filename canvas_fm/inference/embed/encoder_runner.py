"""An encoder with pooling, layer, device, precision and backend resolved: crops to vectors.

Python, the command line and the service all run this, so that a backend is the same wherever it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from canvas_fm.errors import CanvasError
from canvas_fm.inference.backends.cuda_graphs import graphs
from canvas_fm.inference.backends.int8_check import admitted
from canvas_fm.inference.backends.openvino import compiled, openvino
from canvas_fm.models.device import pick_device, pick_precision
from canvas_fm.models.encoder.vit import DENSE, POOLS
from canvas_fm.models.load_model import Encoder

BACKENDS = ("torch", "cuda-graphs", "openvino")
INT8 = "int8"
PRECISIONS = ("fp32", "bf16", INT8, "auto")

Forward = Callable[[Float32[np.ndarray, "b c z y x"]], np.ndarray]


class Runner:
    """Windowed crops (b, c, z, y, x) float32 to vectors (b, *one_shape) float32, one batch a call.

    `backend` is `torch`, `cuda-graphs` (torch on an NVIDIA GPU, each batch size launched as a whole) or
    `openvino` (compiled for the CPU, which the extra `cpu` brings). `int8` runs there alone, and only where a
    check of this encoder has passed. What is compiled is made at the first call and kept with the encoder.
    """

    def __init__(
        self,
        encoder: Encoder,
        pool: str | None,
        device: str | torch.device | None,
        precision: str,
        layer: int | None = None,
        backend: str = "torch",
    ) -> None:
        encoder.check_unedited()
        self.pool = pool or encoder.config.pool
        if self.pool not in (*POOLS, *DENSE):
            raise CanvasError(f"pool is {self.pool!r}; give one of {', '.join((*POOLS, *DENSE))}")
        self.one_shape = encoder.net.one_shape(self.pool)
        depth = encoder.config.architecture.depth
        if layer is not None and not 0 <= layer <= depth:
            raise CanvasError(f"layer is {layer}; {encoder.name} has {depth} blocks: give 0 to {depth}")
        self.layer = None if layer == depth else layer  # after the last block is what the encoder gives
        self.backend = backend
        self.device = device_for(backend, encoder.device if device is None else device)
        if backend == "openvino":
            openvino()
        self.encoder = encoder if device is None else encoder.to(self.device)
        self.dtype = torch.float32
        self.precision = precision
        if precision == INT8:
            self._check_int8()
        else:
            self.dtype = pick_precision(precision, self.device)
            self.precision = "bf16" if self.dtype == torch.bfloat16 else "fp32"

    def _check_int8(self) -> None:
        if self.backend != "openvino":
            raise CanvasError(f"backend {self.backend} has no int8; give backend openvino with it")
        admitted(self.encoder, self.pool, self.layer)

    def __call__(self, crops: Float32[np.ndarray, "b c z y x"]) -> Float32[np.ndarray, "b ..."]:
        vectors: Any = self._forward()(crops)
        if not np.isfinite(vectors).all():
            bad = ~np.isfinite(vectors).reshape(len(vectors), -1).all(axis=1)
            raise CanvasError(
                f"{self.encoder.name} gave NaN or infinite values for {bad.sum()} of {len(bad)} crops; "
                + ("its weights are of no use" if self.precision == "fp32" else "try precision fp32")
            )
        return vectors

    def _forward(self) -> Forward:
        if self.backend == "openvino":
            return compiled(self.encoder, self.pool, self.layer, self.precision)
        if self.backend == "cuda-graphs":
            return graphs(self.encoder, self.pool, self.layer, self.dtype)
        return self._eager

    @torch.inference_mode()
    def _eager(self, crops: Float32[np.ndarray, "b c z y x"]) -> Float32[np.ndarray, "b ..."]:
        # torch wants memory that it may write to; an array over received bytes is read-only.
        crops = np.require(crops, requirements=["C", "W"])
        batch = torch.from_numpy(crops).to(self.device)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            vectors: Any = self.encoder.net(batch, self.pool, self.layer).float().cpu().numpy()
        return vectors


def device_for(backend: str, device: str | torch.device = "auto") -> torch.device:
    """Device of a backend; CanvasError for a backend that is unknown or does not run there."""
    if backend not in BACKENDS:
        raise CanvasError(f"backend is {backend!r}; give one of {', '.join(BACKENDS)}")
    if backend == "openvino":
        if str(device) == "auto" or torch.device(device).type == "cpu":
            return torch.device("cpu")
        raise CanvasError(f"backend openvino runs on the CPU, device {str(device)!r} was given; leave it out")
    place = pick_device(device)
    if backend == "cuda-graphs" and place.type != "cuda":
        raise CanvasError(
            f"backend cuda-graphs runs on an NVIDIA GPU, the device is {str(place)!r}; give backend torch, "
            "or openvino for a fast CPU"
        )
    return place
