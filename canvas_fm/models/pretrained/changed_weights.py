"""Whether the weights of a module were changed since it was loaded."""

from __future__ import annotations

from torch import nn

from canvas_fm.errors import ModelMismatch


def weights_version(module: nn.Module) -> tuple[int, ...]:
    """Counters that torch raises with each change in place, of all parameters and buffers."""
    tensors = [*module.parameters(), *module.buffers()]
    return tuple(0 if tensor.is_inference() else tensor._version for tensor in tensors)


def refuse_edited(name: str, edited: bool) -> None:
    """Raise ModelMismatch for a model whose results would carry the sha256 of other weights."""
    if edited:
        raise ModelMismatch(
            f"the weights of {name} were changed since it was loaded, so its sha256 is not theirs; save it "
            "first: model = cf.save(model, FOLDER)"
        )
