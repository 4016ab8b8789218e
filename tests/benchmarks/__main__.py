"""`make bench`: every benchmark, or those named: `python -m tests.benchmarks models crops`.

Options after one name are that benchmark's own: `python -m tests.benchmarks gpu --minutes 8 --out DIR`.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from tests.benchmarks.timing import machine

# Long, or for a machine of its own: these run where they are named.
ALONE = {"gpu", "chain", "channels", "panoptic", "study"}

if __name__ == "__main__":
    here = Path(__file__).parent
    known = {path.stem.removeprefix("bench_"): path for path in sorted(here.rglob("bench_*.py"))}
    words = sys.argv[1:]
    first_option = next((at for at, word in enumerate(words) if word.startswith("-")), len(words))
    chosen, options = words[:first_option], words[first_option:]
    if unknown := set(chosen) - known.keys():
        sys.exit(f"no benchmark called {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    if options and len(chosen) != 1:
        sys.exit(f"{options[0]} is an option of one benchmark; name it before, alone")
    print(machine())
    for name in chosen or [name for name in sorted(known) if name not in ALONE]:
        module = ".".join(known[name].relative_to(here).with_suffix("").parts)
        run = importlib.import_module(f"tests.benchmarks.{module}").main
        run(options) if options else run()
