"""Fine-tuned last blocks of an encoder, stored apart from the base encoder."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from safetensors.torch import save as save_tensors
from torch import Tensor

from canvas_fm.errors import BadInput, ModelMismatch
from canvas_fm.models.encoder.vit import ViTEncoder
from canvas_fm.models.load_model import Encoder


@dataclass(frozen=True)
class TunedBlocks:
    """Blocks `first` to `last` (excluded) of the encoder `base_sha256`, and its final norm.

    `state` has the names of the encoder's own weights, float32 on the CPU.
    """

    base_name: str
    base_sha256: str
    first: int
    last: int
    state: Mapping[str, Tensor]

    @classmethod
    def of(cls, base: Encoder, net: ViTEncoder, first: int, last: int) -> TunedBlocks:
        """Extract the tuned blocks of `net`, which was initialised from `base`."""
        tuned = _names(net, first, last)
        state = {name: net.state_dict()[name].detach().cpu().float().clone() for name in tuned}
        return cls(base.name, base.sha256, first, last, state)

    @property
    def name(self) -> str:
        count = self.last - self.first
        return f"{self.base_name}, {count} block{'s' * (count > 1)} tuned"

    def as_dict(self) -> dict[str, str | int]:
        """Base encoder and block range `first` to `last` (excluded), counted from 0."""
        base = {"base": self.base_name, "base_sha256": self.base_sha256}
        return {**base, "first": self.first, "last": self.last}

    @cached_property
    def sha256(self) -> str:
        """Identity of the whole encoder: depends on the base and on every tuned weight."""
        weights = hashlib.sha256(save_tensors(dict(sorted(self.state.items())))).hexdigest()
        return hashlib.sha256(f"{self.base_sha256} {self.first} {self.last} {weights}".encode()).hexdigest()

    def on(self, base: Encoder) -> Encoder:
        """A new encoder with these blocks in place of the base's; `base` is unchanged.

        Raises ModelMismatch for another encoder than the one that they were fitted on.
        """
        if base.sha256 != self.base_sha256:
            raise ModelMismatch(
                f"the encoder {base.name} has sha256 {base.sha256[:12]}; these blocks were fitted on "
                f"{self.base_name}, {self.base_sha256[:12]}: give that one"
            )
        net = copy.deepcopy(base.net)
        if self.last > len(net.blocks) or set(self.state) != set(_names(net, self.first, self.last)):
            raise ModelMismatch(f"blocks {self.first} to {self.last} do not fit the encoder {base.name}")
        net.load_state_dict(dict(self.state), strict=False)
        return Encoder(base.config.model_copy(update={"sha256": self.sha256}), net, None, name=self.name)


def unfrozen(base: Encoder, blocks: int, layer: int | None) -> tuple[ViTEncoder, int, int]:
    """Copy of an encoder's net with its last blocks up to `layer` (None: all) trainable, and their numbers.

    Raises BadInput unless there are so many.
    """
    last = len(base.net.blocks) if layer is None else layer
    if not 1 <= blocks <= last:
        raise BadInput(
            f"{blocks} blocks are to be unfrozen; {base.name} has {last} up to the layer that is read: "
            f"give 1 to {last}, or 0 for the frozen encoder"
        )
    net = copy.deepcopy(base.net).requires_grad_(False)
    tuned = set(_names(net, last - blocks, last))
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name in tuned)
    return net, last - blocks, last


def _names(net: ViTEncoder, first: int, last: int) -> list[str]:
    starts = ("norm.", *(f"blocks.{number}." for number in range(first, last)))
    return [name for name in net.state_dict() if name.startswith(starts)]
