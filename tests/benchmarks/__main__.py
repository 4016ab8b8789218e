"""`make bench`: every benchmark, or those named: `python -m tests.benchmarks models crops`.

Options after one name are that benchmark's own: `python -m tests.benchmarks gpu --minutes 8 --out DIR`.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from tests.benchmarks.timing import machine

ALONE = {"gpu", "channels", "panoptic", "study"}  # long, or for a machine of its own: runs where it is named

if __name__ == "__main__":
    known = sorted(path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py"))
    words = sys.argv[1:]
    first_option = next((at for at, word in enumerate(words) if word.startswith("-")), len(words))
    chosen, options = words[:first_option], words[first_option:]
    if unknown := set(chosen) - set(known):
        sys.exit(f"no benchmark called {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    if options and len(chosen) != 1:
        sys.exit(f"{options[0]} is an option of one benchmark; name it before, alone")
    print(machine())
    for name in chosen or [name for name in known if name not in ALONE]:
        run = importlib.import_module(f"tests.benchmarks.bench_{name}").main
        run(options) if options else run()
