"""Import of timm where torchvision's compiled operators do not fit this torch.

A CPU torch beside a torchvision built for CUDA fails with `operator torchvision::nms does not exist`, and
timm with it, although neither operator is used here. Declaring the two schemas is enough; a healthy install
is left alone.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch

_kept: torch.library.Library | None = None  # the schemas vanish when the library object does


def declare_missing_operators() -> bool:
    """Declare torchvision's operators if its extension cannot be loaded; True if needed."""
    global _kept
    if _kept is not None:
        return True
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    for extension in Path(spec.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(str(extension))
        except OSError:
            continue
        return False
    _kept = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        _kept.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return True
