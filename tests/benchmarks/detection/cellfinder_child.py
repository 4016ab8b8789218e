"""cellfinder's detection, by the interpreter that has it: VOLUME.npy SETTINGS.json OUT.json.

Nothing of ours is imported here. The settings are `voxel_um`, `threads`, `rounds`, `device`, and keywords to
be `tried` on the first `side` voxels in y and x; OUT gets the seconds of each round, by the clock and of
processors, and the positions (z, y, x) of the last round and of every trial.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any


def main() -> None:
    volume, settings_path, out = map(Path, sys.argv[1:4])
    settings = json.loads(settings_path.read_text())
    import numpy as np
    import torch
    from cellfinder.core.main import main as detect

    torch.set_num_threads(settings["threads"])
    voxels = np.load(volume)
    options: dict[str, Any] = {
        "voxel_sizes": settings["voxel_um"],
        "n_free_cpus": max(0, (os.cpu_count() or 1) - settings["threads"]),
        "torch_device": settings["device"],
        "skip_classification": True,
    }

    def once(array: Any, **keywords: Any) -> list[list[float]]:
        cells = detect(signal_array=array, background_array=array, **options, **keywords)
        return [[float(cell.z), float(cell.y), float(cell.x)] for cell in cells]

    once(voxels[: min(len(voxels), 40), :200, :200])  # compiles what is compiled at first use
    seconds, cpu, found = [], [], []
    for _ in range(settings["rounds"]):
        start, busy = time.perf_counter(), processor()
        found = once(voxels)
        seconds.append(time.perf_counter() - start)
        cpu.append(processor() - busy)
    cube = voxels[:, : settings["side"], : settings["side"]]
    tried = [once(cube, **keywords) for keywords in settings["tried"]]
    result = {"seconds": seconds, "cpu": cpu, "zyx": found, "tried": tried, "version": version("cellfinder")}
    out.write_text(json.dumps(result))


def processor() -> float:
    """Processor seconds of this process and of those that it started and that ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


if __name__ == "__main__":  # cellfinder starts processes that import this file again
    main()
