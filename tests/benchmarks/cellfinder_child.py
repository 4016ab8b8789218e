"""cellfinder's detection, by the interpreter that has it: VOLUME.npy SETTINGS.json OUT.json.

Nothing of ours is imported here. The settings are `voxel_um`, `threads`, `rounds`, `device` and `keywords`;
OUT gets the seconds of each round and the positions of the last one, z, y, x.
"""

from __future__ import annotations

import json
import os
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
        **settings["keywords"],
    }

    def once(array: Any) -> list[Any]:
        return list(detect(signal_array=array, background_array=array, **options))

    once(voxels[: min(len(voxels), 40), :200, :200])  # compiles what is compiled at first use
    seconds, cells = [], []
    for _ in range(settings["rounds"]):
        start = time.perf_counter()
        cells = once(voxels)
        seconds.append(time.perf_counter() - start)
    found = [[float(cell.z), float(cell.y), float(cell.x)] for cell in cells]
    result = {"seconds": seconds, "zyx": found, "version": version("cellfinder")}
    out.write_text(json.dumps(result))


if __name__ == "__main__":  # cellfinder starts processes that import this file again
    main()
