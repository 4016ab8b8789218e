"""Memory that torch and numpy free stays with the process: the next array costs no page faults."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # numbers of glibc's malloc.h
_KEPT = 1 << 30  # arrays above are still mapped and returned to the system one by one


def keep_freed_memory() -> bool:
    """Set glibc's allocator to keep what is freed; whether it could be set (elsewhere than on glibc not).

    By default each large temporary is mapped anew, and the kernel clears its pages again: half of a
    detection's time. For processes that compute and end; what serves for weeks gives memory back instead.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # musl has none
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _KEPT)) and bool(mallopt(_TRIM_THRESHOLD, _KEPT))
