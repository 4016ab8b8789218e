"""CUDA graphs of an encoder's forward pass at fixed batch sizes, which saves kernel launches."""

from __future__ import annotations

import threading

import numpy as np
import torch
from jaxtyping import Float32

from canvas_fm.models.load_model import Encoder

SIZES = (64, 256, 1024)  # crops; a batch is padded to the next, a larger one is cut
_WARM_UP = 3


class Graphs:
    """One CUDA graph for each of SIZES, recorded on first use; thread-safe."""

    def __init__(self, encoder: Encoder, pool: str, layer: int | None, dtype: torch.dtype) -> None:
        self._net, self._pool, self._layer, self._dtype = encoder.net, pool, layer, dtype
        architecture = encoder.config.architecture
        self._one = (architecture.channels, *architecture.crop_zyx)
        self._device = encoder.device
        self._recorded: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor]] = {}
        self._turn = threading.Lock()

    @torch.inference_mode()
    def __call__(self, crops: Float32[np.ndarray, "b c z y x"]) -> Float32[np.ndarray, "b ..."]:
        batch = torch.from_numpy(np.require(crops, requirements=["C", "W"]))
        with self._turn, torch.cuda.device(self._device):
            done = [self._replay(part).cpu() for part in batch.split(SIZES[-1])]
        return torch.cat(done).numpy()

    def _replay(self, part: torch.Tensor) -> torch.Tensor:
        size = next(size for size in SIZES if size >= len(part))
        if size not in self._recorded:
            self._recorded[size] = self._record(size)
        graph, crops, vectors = self._recorded[size]
        crops[: len(part)].copy_(part)  # what is left of the last batch is computed too, and dropped
        graph.replay()
        return vectors[: len(part)]

    def _record(self, size: int) -> tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor]:
        crops = torch.zeros(size, *self._one, device=self._device)
        warm_up_stream = torch.cuda.Stream()
        warm_up_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warm_up_stream):  # libraries set themselves up here, which cannot be recorded
            for _ in range(_WARM_UP):
                self._forward(crops)
        torch.cuda.current_stream().wait_stream(warm_up_stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            vectors = self._forward(crops)
        return graph, crops, vectors

    def _forward(self, crops: torch.Tensor) -> torch.Tensor:
        # Weights that autocast keeps from one call for the next would be freed after the recording.
        mixed = self._dtype != torch.float32
        with torch.autocast("cuda", self._dtype, enabled=mixed, cache_enabled=False):
            return self._net(crops, self._pool, self._layer).float()


def graphs(encoder: Encoder, pool: str, layer: int | None, dtype: torch.dtype) -> Graphs:
    """The CUDA graphs of an encoder, cached on it."""
    return encoder.kept(("graphs", pool, layer, dtype), lambda: Graphs(encoder, pool, layer, dtype))
