"""Evaluation of frozen features against simple ones, by read-outs tested on held-out brains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from canvas_fm.data.crops.reader import CropReader
from canvas_fm.data.dataset.unique_names import check_one_each
from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError
from canvas_fm.heads.feature_benchmark.features import Crops, disturbances, feature_makers, margin_crop
from canvas_fm.heads.feature_benchmark.finetuned import FineTuned, TuningRates
from canvas_fm.heads.feature_benchmark.per_cell_scores import (
    PerCellScores,
    few_labels,
    few_labels_by,
    found_again,
    neighbours,
)
from canvas_fm.models.encoder.random_encoder import random_encoder
from canvas_fm.models.load_model import Encoder
from canvas_fm.progress import bar

BASELINES = ("untrained", "PCA-64", "shape")


class LabelledCells(NamedTuple):
    """Labelled cells of several brains: crops with margin, class, brain, brightness at the centre."""

    crops: Crops
    cls: Shaped[np.ndarray, " n"]
    brain: Shaped[np.ndarray, " n"]

    @property
    def brightness(self) -> np.ndarray:
        """Brightness of the centre relative to the crop's mean, which neighbours must not be found by."""
        centre = self.crops.cut((3, 3, 3)).mean(axis=(1, 2, 3))
        return np.asarray(centre / (self.crops.wide.mean(axis=(1, 2, 3)) + 0.02))


def read_cells(
    encoder: Encoder,
    volumes: Sequence[Volume],
    points: Sequence[Points],
    *,
    labels: str | None,
    brains: Sequence[str] | None = None,
    max_cells: int = 150,
    seed: int = 0,
) -> LabelledCells:
    """Read at most `max_cells` random cells of each class and volume.

    `labels` is the column of their class, -1 and nothing being no label; None takes each volume's marker.
    `brains` says which brain each volume is of, by default one each. Volumes of other voxels are resampled to
    the encoder's. Raises CanvasError for one brain alone or one class, and for a column that is missing.
    """
    names = list(brains or [volume.name for volume in volumes])
    check_one_each(volumes, {"points": points, "brains": names})
    config = encoder.config
    size = margin_crop(config.architecture.crop_zyx, config.voxel_um)
    random, crops, classes, of = np.random.default_rng(seed), [], [], []
    for volume, table, name in zip(volumes, points, names, strict=True):
        resample = None if np.allclose(volume.voxel_um, config.voxel_um, rtol=0.05) else config.voxel_um
        cls = _classes(volume, table, labels)
        chosen = np.concatenate(
            [random.permutation(np.flatnonzero(cls == label))[:max_cells] for label in np.unique(cls)]
        )
        chosen = np.sort(chosen[cls[chosen] != ""])
        raw = CropReader(volume, size, resample_to_um=resample).read_points(table.zyx[chosen])
        crops.append(volume.window_by(config.window_rule).apply(raw))
        classes.append(cls[chosen])
        of.append(np.full(len(chosen), name))
    cells = LabelledCells(
        Crops(np.concatenate(crops), config.voxel_um), np.concatenate(classes), np.concatenate(of)
    )
    for unit, values in (("brain", cells.brain), ("class", cells.cls)):
        if len(np.unique(values)) < 2:
            raise CanvasError(
                f"all cells are of one {unit} ({', '.join(np.unique(values))}); give two or more"
            )
    return cells


def _classes(volume: Volume, table: Points, labels: str | None) -> Shaped[np.ndarray, " n"]:
    """Class of each point as text, '' if it has none."""
    if labels is None:
        if volume.marker is None:
            raise CanvasError(f"{volume.name} has no marker; give --labels COLUMN, the class of each point")
        return np.full(len(table), volume.marker)
    if labels not in table.columns:
        raise CanvasError(
            f"the points of {volume.name} have no column {labels!r}: {', '.join(table.columns)}"
        )
    text = table.columns[labels].astype(str)
    return np.where(np.isin(text, ["-1", "-1.0", "nan"]), "", text)


def score_features(
    encoders: Mapping[str, Encoder],
    cells: LabelledCells,
    *,
    test: Sequence[str] | None = None,
    labels: Sequence[int] = (20, 100),
    draws: int = 10,
    seeds: int = 3,
    pool: str | None = None,
    finetune: int = 0,
    show: bool | None = None,
) -> dict[str, Any]:
    """Scores of each encoder with intervals, and differences from untrained encoders, PCA-64 and shape.

    `few_N`: a linear read-out on N labels of other brains, AUC of two classes, balanced accuracy of more;
    `all_labels` the same on all; `neighbours`: share of a cell's 10 nearest in other brains that is of its
    class, brightness matched; `stable_X`: how often a disturbed cell is nearest to itself. Each `test` brain
    is scored by all others. `untrained` is the mean over `seeds` twins. With `finetune`, that many last
    blocks of each encoder and of an untrained twin are fitted on these labels too: `few_N` and `all_labels`
    of `NAME, fine-tuned`, and under `finetuned` what that adds to the frozen one's.
    """
    brains = [str(b) for b in (np.unique(cells.brain) if test is None else test)]
    unknown = sorted(set(brains) - set(cells.brain))
    if unknown:
        raise CanvasError(
            f"no cells are of brain {', '.join(unknown)}; there are {', '.join(np.unique(cells.brain))}"
        )
    disturbed = {name: change(cells.crops) for name, change in disturbances().items()}
    outside = ~np.isin(cells.brain, brains)
    fitted = outside if outside.any() else np.ones_like(outside)  # PCA sees no label: any brain will do
    makers = feature_makers(encoders, cells.crops, fitted, pool=pool, seeds=seeds)
    measured: dict[str, dict[str, PerCellScores]] = {}
    with bar("measuring features", len(makers), unit="methods", show=show) as advance:
        for name, make in makers.items():
            x, other = make(cells.crops), {key: make(crops) for key, crops in disturbed.items()}
            measured[name] = {
                **{
                    f"few_{n}": few_labels(x, cells.cls, cells.brain, brains, labels=n, draws=draws)
                    for n in labels
                },
                "all_labels": few_labels(x, cells.cls, cells.brain, brains, labels=None),
                "neighbours": neighbours(x, cells.cls, cells.brain, brains, cells.brightness),
                **{f"stable_{key}": found_again(x, y, cells.brain) for key, y in other.items()},
            }
            advance()
    gains: dict[str, Any] = {}
    if finetune:
        tuned = _fine_tuned(encoders, cells, brains, labels, draws, pool, finetune, show)
        for name, credits in tuned.items():
            frozen = measured[name]
            measured[f"{name}, fine-tuned"] = credits
            gains[name] = {k: v.minus(frozen[k]).interval().as_dict() for k, v in credits.items()}
    _average_untrained(measured)
    return {
        "brains": {str(b): int((cells.brain == b).sum()) for b in np.unique(cells.brain)},
        "classes": {str(c): int((cells.cls == c).sum()) for c in np.unique(cells.cls)},
        "tested": brains,
        "draws": draws,
        "encoders": {name: encoder.sha256 for name, encoder in encoders.items()},
        "scores": {
            name: {k: v.interval().as_dict() for k, v in row.items()} for name, row in measured.items()
        },
        "ahead": {
            name: {
                base: {k: v.minus(measured[base][k]).interval().as_dict() for k, v in measured[name].items()}
                for base in BASELINES
                if base in measured
            }
            for name in encoders
        },
        **({"finetuned": gains} if gains else {}),
    }


def _fine_tuned(
    encoders: Mapping[str, Encoder],
    cells: LabelledCells,
    brains: Sequence[str],
    labels: Sequence[int],
    draws: int,
    pool: str | None,
    blocks: int,
    show: bool | None,
) -> dict[str, dict[str, PerCellScores]]:
    """`few_N` and `all_labels` of each encoder and of an untrained twin, last blocks fitted too."""
    twin = random_encoder(next(iter(encoders.values())).config, seed=0)
    measured: dict[str, dict[str, PerCellScores]] = {}
    amounts: dict[str, int | None] = {**{f"few_{n}": n for n in labels}, "all_labels": None}
    with bar("fine-tuning", (len(encoders) + 1) * len(amounts), unit="read-outs", show=show) as advance:
        for name, encoder in {**encoders, "untrained 0": twin}.items():
            scores_of = FineTuned(encoder, pool, cells.crops, cells.cls, cells.brain, TuningRates(blocks))
            measured[name] = {}
            for key, n in amounts.items():
                measured[name][key] = few_labels_by(
                    scores_of, cells.cls, cells.brain, brains, labels=n, draws=draws
                )
                advance()
    return measured


def _average_untrained(measured: dict[str, dict[str, PerCellScores]]) -> None:
    """Merge untrained encoders of several seeds into one method by averaging their credits."""
    names = [name for name in measured if name.startswith("untrained ") and "," not in name]
    twins = [measured.pop(name) for name in names]
    if twins:
        measured["untrained"] = {
            key: twins[0][key]._replace(credit=np.mean([twin[key].credit for twin in twins], axis=0))
            for key in twins[0]
        }


def summary(report: Mapping[str, Any]) -> str:
    """The report as a table: methods in rows, tasks in columns, mean stability last."""
    lines = []
    for name, row in report["scores"].items():
        stable = [v["value"] for k, v in row.items() if k.startswith("stable_")]
        figures = [f"{k} {v['value']:.3f}" for k, v in row.items() if not k.startswith("stable_")]
        figures += [f"stable {fmean(stable):.3f}"] if stable else []
        lines.append(f"{name:16s} {'  '.join(figures)}")
    return "\n".join(lines)


def open_points(paths: Sequence[str | Path]) -> list[Points]:
    """Read the tables of labelled cells; none may be empty."""
    return [Points.read(path, allow_empty=False) for path in paths]
