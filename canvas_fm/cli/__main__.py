"""`python -m canvas_fm.cli` is `canvas-fm`."""

import sys

from canvas_fm.cli import main

if __name__ == "__main__":
    sys.exit(main())
