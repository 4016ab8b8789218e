"""Conversions in processes of their own, forked from this one, each of which dies at its N-th file."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback

from canvas_fm.prepare.convert.convert import convert
from canvas_fm.prepare.convert.shards import shard_files


def main(source: str, out: str, dies_at: int) -> None:
    real, calls = os.fsync, [0]

    def fsync(handle: int) -> None:
        calls[0] += 1
        if calls[0] == dies_at:
            os._exit(9)
        real(handle)

    os.fsync = fsync
    assert shard_files.os.fsync is fsync
    convert(source, out, voxel_um=(2, 2, 2), chunk_zyx=(8, 32, 32), levels=5, threads=2, progress=False)


def serve() -> None:
    """For each line `[source, out, N]` of stdin fork a process that converts; print exit code and message."""
    for line in sys.stdin:
        source, out, dies_at = json.loads(line)
        with tempfile.TemporaryFile("w+") as log:
            child = os.fork()
            if child == 0:
                os.dup2(log.fileno(), 2)
                code = 1
                try:
                    main(source, out, dies_at)
                    code = 0
                except BaseException:
                    traceback.print_exc()
                    raise
                finally:
                    sys.stderr.flush()
                    os._exit(code)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            log.seek(0)
            print(json.dumps([code, log.read()]), flush=True)


if __name__ == "__main__":
    serve()
