"""What verbs that compute load: a start in seconds of processor time is a matter of what is not imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

# Training, fitting, pages, clusters and pandas; and of torch what only compilers and optimizers need.
NEVER = (
    "timm", "torchvision", "torch._dynamo", "sklearn", "scipy.stats",
    "scipy.optimize", "scipy.sparse.csgraph", "pandas", "xarray", "matplotlib", "jinja2", "dask",
    "distributed", "bentoml", "faiss",
)  # fmt: skip
RUN = f"""
import contextlib, io, json, sys
from canvas_fm.cli import main
loaded = []
for words in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        code = main(words)
    loaded.append([code, [name for name in ("torch", *{NEVER!r}) if name in sys.modules]])
import canvas_fm.heads.refine.apply.apply
heavy = [name for name in ("timm", "torchvision", "torch._dynamo") if name in sys.modules]
print(json.dumps([*loaded, heavy]))
"""


def test_detect_and_embed_load_what_they_need_alone(tmp_path: Path) -> None:
    cells = str(tmp_path / "cells.csv")
    box = ["--box", "0", "0", "0", "24", "48", "48"]
    log = ["detect", "sample:microglia", "--method", "log", "--sigma-um", "6", *box]
    net = ["detect", "detector-microglia", "sample:microglia", *box]
    commands = [
        [*log, "--out", str(tmp_path / "log.csv")],
        [*net, "--out", cells],
        ["embed", "base", "sample:microglia", "--points", cells, "--out", str(tmp_path / "cells.emb.zarr")],
    ]
    done = subprocess.run(
        [sys.executable, "-c", RUN], input=json.dumps(commands), capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == [[0, []], [0, ["torch"]], [0, ["torch"]], []]
