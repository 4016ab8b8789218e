"""How often the 90 % intervals of an audit hold: 200 simulated audits of each of five populations.

`python -m tests.benchmarks audit`. Detections lie in clumps, higher scores are cells more often,
and some cells were missed; an audit is drawn, answered by what is known, and estimated.
"""

from __future__ import annotations

import numpy as np

from tests.heads.review.made_up import audited, population

AUDITS = 200
SHORT = {"sample": 60, "boxes": 12}
POPULATIONS = {
    "plain": population(0, 3000, 0.8, 400, 60),
    "hardly a mistake": population(1, 2000, 1.2, 8, 60),
    "mostly wrong": population(2, 4000, 0.25, 200, 60),
    "missed in clumps": population(3, 3000, 0.8, 600, 6),
    "few detections": population(4, 150, 0.7, 60, 20),
}


def main() -> None:
    """Print coverage of precision, recall and count, the count's half-width and its bias."""
    for name, cells in POPULATIONS.items():
        truth = cells.true.mean(), cells.true.sum() / cells.count, cells.count
        for options in ({}, SHORT):
            audits = [audited(cells, seed=seed, everywhere=True, **options) for seed in range(AUDITS)]
            held = [
                np.mean([one.low - 1e-9 <= value <= one.high + 1e-9 for one in estimates])
                for value, estimates in zip(
                    truth, zip(*((a.precision, a.recall, a.cells) for a in audits), strict=True), strict=True
                )
            ]
            half = np.mean([(a.cells.high - a.cells.low) / 2 for a in audits]) / cells.count
            bias = np.mean([a.cells.value for a in audits]) / cells.count - 1
            print(
                f"audit, {name}, {'short' if options else 'default'}: holds precision {held[0]:.3f}, "
                f"recall {held[1]:.3f}, count {held[2]:.3f}; count ± {half:.0%}, bias {bias:+.1%}"
            )


if __name__ == "__main__":
    main()
