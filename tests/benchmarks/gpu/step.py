"""One optimizer step of the pretraining: eager on a CPU, one CUDA graph on a GPU."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from tests.benchmarks.gpu.data import Resident, boxes, views
from tests.benchmarks.gpu.net import CROP, TOKENS, Hybrid


def half(device: torch.device) -> torch.autocast:
    """bf16 on a GPU; a CPU computes in float32. Without a cache of casts, which a graph would hold on to."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda", cache_enabled=False)


class Trainer:
    """Model, AdamW and averaged weights; `step` takes 2 · `places` views."""

    def __init__(self, device: torch.device, places: int, *, dim: int, depth: int, seed: int = 0) -> None:
        self.device, self.places = device, places
        torch.manual_seed(seed)
        self.model = Hybrid(dim, depth).to(device).train()
        self.averaged = copy.deepcopy(self.model).requires_grad_(False)
        self.generator = torch.Generator(device).manual_seed(seed)
        cuda = device.type == "cuda"
        self.rate = torch.tensor(1e-3, device=device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=self.rate, betas=(0.9, 0.95), weight_decay=0.05,
            fused=cuda or None, capturable=cuda,
        )  # fmt: skip
        self.views = torch.zeros(2 * places, 1, *CROP, device=device)
        self.noise = torch.zeros(2 * places, TOKENS, device=device)
        self.loss = torch.zeros((), device=device)
        self._replay: Callable[[], None] = self._captured() if cuda else self._work

    def draw(self, data: Resident) -> None:
        """Two views of random places into the buffers that the step reads."""
        box = boxes(data, self.places, self.generator)
        for part in self.views.split(self.places):
            part.copy_(views(box, self.generator))
        self.noise.copy_(torch.rand(self.noise.shape, generator=self.generator, device=self.device))

    def step(self) -> Tensor:
        """Train on what is in the buffers; the loss stays on the device."""
        self._replay()
        return self.loss

    def _work(self) -> None:
        with half(self.device):
            loss = self.model(self.views, self.noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 3.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)
        with torch.no_grad():
            torch._foreach_lerp_(list(self.averaged.parameters()), list(self.model.parameters()), 0.005)
            for old, new in zip(self.averaged.buffers(), self.model.buffers(), strict=True):
                old.copy_(new)
            self.loss.copy_(loss.detach())

    def _captured(self) -> Callable[[], None]:
        """The step as one graph: eager launches cost more than the arithmetic of 64 crops.

        The steps that warm the optimizer up are undone.
        """
        before = copy.deepcopy(self.model.state_dict())
        self.views.uniform_()
        self.noise.uniform_()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._work()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._work()
        self.model.load_state_dict(before)
        self.averaged.load_state_dict(before)
        for state in self.optimizer.state.values():
            for value in state.values():
                value.zero_()
        return graph.replay
