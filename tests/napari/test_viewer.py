"""napari itself, on a virtual display: the rows of its widgets are those of the command line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from canvas_fm.cli import main
from canvas_fm.files.shipped import find

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("napari") is None, reason="napari is not installed"),
    pytest.mark.skipif(shutil.which("Xvfb") is None, reason="there is no Xvfb, the virtual display"),
]
MODELS = "detector-microglia", "refiner-microglia"


@pytest.fixture
def display() -> Iterator[str]:
    """A virtual screen that draws with OpenGL, which Qt's offscreen platform does not."""
    reading, writing = os.pipe()
    command = ["Xvfb", "-displayfd", str(writing), "-screen", "0", "1600x1000x24", "-nolisten", "tcp"]
    with subprocess.Popen(command, pass_fds=[writing], stderr=subprocess.DEVNULL) as server:
        os.close(writing)
        with os.fdopen(reading) as number:
            yield f":{number.readline().strip()}"
        server.terminate()


def test_the_widgets_give_the_rows_of_the_command_line(tmp_path, display):
    volume = find("sample", "microglia") / "raw.zarr"
    script = Path(__file__).with_name("drive_viewer.py")
    environment = os.environ | {"DISPLAY": display, "QT_QPA_PLATFORM": "xcb"}
    subprocess.run(
        [sys.executable, script, volume, tmp_path, *MODELS], env=environment, check=True, timeout=1500
    )
    detector, refiner = MODELS
    main(["detect", detector, str(volume), "--out", str(tmp_path / "cli.csv")])
    main(
        ["refine", "apply", refiner, str(volume), str(tmp_path / "cli.csv"), "--out", str(tmp_path / "p.csv")]
    )
    assert (tmp_path / "cells.csv").read_text() == (tmp_path / "cli.csv").read_text()
    assert (tmp_path / "refined.csv").read_text() == (tmp_path / "p.csv").read_text()
    assert len((tmp_path / "cells.csv").read_text().splitlines()) > 50
    assert all((tmp_path / f"{name}.png").stat().st_size for name in ("refined", "similar", "review"))
