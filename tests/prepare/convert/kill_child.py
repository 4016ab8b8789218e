"""A conversion in a process of its own, which dies at the file that it is told."""

from __future__ import annotations

import os
import sys

from canvas_fm.prepare.convert import shards
from canvas_fm.prepare.convert.convert import convert


def main(source: str, out: str, dies_at: int) -> None:
    real, calls = os.fsync, [0]

    def fsync(handle: int) -> None:
        calls[0] += 1
        if calls[0] == dies_at:
            os._exit(9)
        real(handle)

    os.fsync = fsync
    assert shards.os.fsync is fsync
    convert(source, out, voxel_um=(2, 2, 2), chunk_zyx=(8, 32, 32), levels=5, threads=2, progress=False)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
