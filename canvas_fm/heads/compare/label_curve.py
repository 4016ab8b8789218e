"""Label efficiency: a metric against the number of labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64

from canvas_fm.errors import counted

COUNTS = (20, 50, 100, 500, 2000)
_FEWEST = 3  # of each class in every draw: fewer cannot be split for a threshold
_MORE = 50


@dataclass(frozen=True)
class LabelCurve:
    """Label curve: `values[n]` are a metric's values of all seeds with n labels."""

    figure: str
    values: Mapping[int, Sequence[float]]

    def mean(self, n: int) -> float:
        return float(np.mean(self.values[n]))

    def interval(self, n: int) -> tuple[float, float]:
        """95 % t interval over seeds, clipped to [0, 1]; zero width for one seed."""
        low, high = np.clip(t_interval(self.values[n]), 0.0, 1.0).tolist()
        return low, high

    @property
    def worth(self) -> tuple[float, float] | None:
        """Gain from 50 more labels at the curve's end, and its standard error; None with one point.

        By the slope against the logarithm of the number of labels over the last three points.
        """
        counts = sorted(self.values)[-3:]
        if len(counts) < 2:
            return None
        x = np.concatenate([np.full(len(self.values[n]), np.log(n)) for n in counts])
        y = np.concatenate([np.asarray(self.values[n], float) for n in counts])
        centred = x - x.mean()
        slope = float((centred * y).sum() / (centred**2).sum())
        rest = y - y.mean() - slope * centred
        free = max(len(y) - 2, 1)
        error = float(np.sqrt((rest**2).sum() / free / (centred**2).sum()))
        step = float(np.log1p(_MORE / counts[-1]))
        return slope * step, error * step

    @property
    def sentence(self) -> str:
        """Summary such as "50 more labels are worth about +0.02 F1"."""
        counts = sorted(self.values)
        slope = self.worth
        if slope is None:
            return (
                f"{counted(counts[0], 'label', 'give')} {self.figure} "
                f"{self.mean(counts[0]):.2f}; too few to say more"
            )
        gain, error = slope
        last = f"with {counted(counts[-1], 'label')} {self.figure} is {self.mean(counts[-1]):.2f}"
        if gain < 2 * error or gain < 0.0005:
            return f"{last}; {_MORE} more labels are worth nothing that can be told from chance"
        digits = 2 if gain >= 0.01 else 3
        return f"{last}; {_MORE} more labels are worth about +{gain:.{digits}f} {self.figure}"

    def to_json(self) -> dict[str, Any]:
        points = [
            {
                "labels": n,
                "mean": self.mean(n),
                "interval": list(self.interval(n)),
                "seeds": list(self.values[n]),
            }
            for n in sorted(self.values)
        ]
        return {"figure": self.figure, "points": points, "sentence": self.sentence}


def counts_up_to(most: int, counts: Sequence[int] = COUNTS) -> list[int]:
    """Numbers of labels of a curve: fixed steps below the total, and the total.

    A last number that would be within a quarter of all is left out.
    """
    return [*(n for n in sorted(set(counts)) if n <= 0.8 * most), most]


def draw_labels(code: Int64[np.ndarray, " n"], count: int, seed: int) -> Int64[np.ndarray, " count"]:
    """A random draw of `count` labels, as a reviewer in random order would make them.

    Drawn evenly, but at least three of each class where there are that many. The rows of fewer labels are
    among those of more, for the same seed.
    """
    if count >= len(code):
        return np.arange(len(code))
    order = np.random.default_rng((seed, 0x1ABE1)).permutation(len(code))
    first = np.concatenate([order[code[order] == label][:_FEWEST] for label in np.unique(code)])
    rest = order[~np.isin(order, first)]
    return np.sort(np.concatenate([first, rest])[: max(count, len(first))])


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean by Student's t."""
    from scipy.stats import t

    sample = np.asarray(values, float)
    if len(sample) < 2:
        return float(sample.mean()), float(sample.mean())
    half_width = float(t.ppf(0.975, len(sample) - 1) * sample.std(ddof=1) / np.sqrt(len(sample)))
    return float(sample.mean()) - half_width, float(sample.mean()) + half_width
