"""Entry point of `python -m canvas_fm.cli`."""

import sys

from canvas_fm.cli import main

if __name__ == "__main__":
    sys.exit(main())
