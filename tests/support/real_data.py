"""Where real data lies: the one place of the tests and benchmarks that knows."""

from __future__ import annotations

import os
from pathlib import Path

_GIVEN = os.environ.get("CANVAS_FM_DATA")
REAL_DATA = Path(_GIVEN) if _GIVEN else Path(__file__).parents[2].parent / "shared" / "data"
ABSENT = f"no real data at {REAL_DATA}; set CANVAS_FM_DATA to its folder"
