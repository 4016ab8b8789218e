"""`make bench`: every benchmark, or those named: `python -m tests.benchmarks models crops`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from tests.benchmarks.timing import machine

if __name__ == "__main__":
    known = sorted(path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py"))
    chosen = sys.argv[1:] or known
    if unknown := set(chosen) - set(known):
        sys.exit(f"no benchmark called {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    print(machine())
    for name in chosen:
        importlib.import_module(f"tests.benchmarks.bench_{name}").main()
