"""The processor cores that this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP_2 = Path("/sys/fs/cgroup/cpu.max")
_CGROUP_1 = (Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us"))


def usable_cores(cgroup_2: Path = _CGROUP_2, cgroup_1: tuple[Path, Path] = _CGROUP_1) -> int:
    """Cores by the process's affinity, and by the quota of its container where there is one; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for read in (lambda: cgroup_2.read_text().split(), lambda: [path.read_text() for path in cgroup_1]):
        try:
            quota, period = (int(number) for number in read())
        except (OSError, ValueError):  # no such control group, or "max"
            continue
        if quota > 0 and period > 0:
            return max(1, min(cores, math.ceil(quota / period)))
    return cores
