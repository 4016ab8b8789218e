"""Choice of device and precision."""

from __future__ import annotations

import logging
import os

import torch

from canvas_fm.errors import CanvasError

_log = logging.getLogger(__name__)

PRECISIONS = ("auto", "fp32", "bf16")
AUTO_VARIABLE = "CANVAS_FM_PRECISION"


def pick_device(name: str | torch.device = "auto") -> torch.device:
    """Resolve a device; `auto` is the first CUDA device, else the CPU."""
    if str(name) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as problem:
        raise CanvasError(f"device {str(name)!r} is not known; give auto, cpu, cuda or cuda:N") from problem
    if device.type == "cuda" and not torch.cuda.is_available():
        raise CanvasError(
            f"device {str(name)!r} was asked for, but torch sees no CUDA device; give auto or cpu"
        )
    return device


def native_bf16(device: torch.device) -> bool:
    """Whether the device has native bf16 matrix products."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, check, lambda: False)() for check in checks)


def native_int8() -> bool:
    """Whether the CPU accumulates int8 products in 32 bits (VNNI, AMX); others saturate at 16."""
    checks = ("_is_vnni_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """Resolve a precision; `auto` is bf16 where it is native, else fp32.

    The environment variable CANVAS_FM_PRECISION says otherwise what `auto` is: where machines differ, results
    of all are then of one precision.
    """
    if name not in PRECISIONS:
        raise CanvasError(f"precision {name!r} is not known; give one of {', '.join(PRECISIONS)}")
    if name == "auto":
        name = os.environ.get(AUTO_VARIABLE) or "auto"
        if name not in PRECISIONS:
            raise CanvasError(
                f"the environment variable {AUTO_VARIABLE} is {name!r}; give one of {', '.join(PRECISIONS)}"
            )
    native = native_bf16(device)
    if name == "bf16" and not native:
        _log.warning("%s has no bf16 instructions, so bf16 runs far slower than fp32 here; give auto", device)
    if name == "auto":
        name = "bf16" if native else "fp32"
    return torch.bfloat16 if name == "bf16" else torch.float32


def resolved_precision(name: str, device: torch.device) -> str:
    """The precision that a name stands for on a device, as it is recorded: fp32, bf16 or int8."""
    if name == "int8":
        return name
    return "bf16" if pick_precision(name, device) == torch.bfloat16 else "fp32"
