"""Linear evaluation of a sweep's encoders: markers told apart by frozen features on unseen brains."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.data.volume.volume_flags import VolumeOptions
from canvas_fm.files.atomic import write_text_atomic
from canvas_fm.heads.feature_benchmark.benchmark import LabelledCells, read_cells
from canvas_fm.heads.feature_benchmark.features import encoder_features, feature_makers
from canvas_fm.heads.feature_benchmark.per_cell_scores import few_labels
from canvas_fm.models.load_model import Encoder, load
from canvas_fm.progress import bar
from canvas_fm.training.sweep.grid import DataSet, LabelledSet, volumes_of

MEASURED, MEASURED_BEFORE = "linear_readout.json", "worth.json"


class LinearReadout(NamedTuple):
    """The read-out's score of each run, and of each baseline by crop size, with 95 % intervals."""

    runs: dict[str, dict[str, float]]
    baselines: dict[str, dict[str, dict[str, float]]]


def score_encoders(
    labelled: LabelledSet | None,
    out: Path,
    encoders: Mapping[str, Path],
    data: Path,
    show: bool | None,
    volume_options: VolumeOptions | None = None,
) -> LinearReadout:
    """Score the runs' encoders on labelled cells; what was measured before is read from `out`.

    Two classes are scored by AUC, more by balanced accuracy, each brain by read-outs of the others.
    """
    if labelled is None or not encoders:
        return LinearReadout({}, {})
    paths = volumes_of(DataSet(train=labelled.volumes), data)[0]
    opened_as: dict[str, Any] = {} if volume_options is None else volume_options.explicit
    known = _kept(out / MEASURED_BEFORE) | _kept(out / MEASURED)
    runs: dict[str, dict[str, float]] = {}
    baselines: dict[str, dict[str, dict[str, float]]] = {}
    cells: dict[str, LabelledCells] = {}
    with bar("measuring features", len(encoders), unit="encoders", show=show) as advance:
        for name, path in encoders.items():
            encoder = load(path, kind="encoder")
            size = "×".join(map(str, encoder.config.architecture.crop_zyx))
            key = f"{labelled.model_dump_json()} {size} {[str(p) for p in paths]}"
            key += f" {opened_as}" if opened_as else ""
            if size not in baselines:
                if f"{key} baselines" not in known:
                    cells[size] = _cells(labelled, encoder, paths, opened_as)
                    known[f"{key} baselines"] = _baselines(labelled, encoder, cells[size])
                baselines[size] = known[f"{key} baselines"]
            if f"{key} {encoder.sha256}" not in known:
                if size not in cells:
                    cells[size] = _cells(labelled, encoder, paths, opened_as)
                features = encoder_features(encoder, None, cells[size].crops)
                known[f"{key} {encoder.sha256}"] = _score(labelled, features, cells[size])
                write_text_atomic(out / MEASURED, json.dumps(known, indent=1) + "\n")
            runs[name] = known[f"{key} {encoder.sha256}"]
            advance(1, name)
    return LinearReadout(runs, baselines)


def _kept(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _cells(
    labelled: LabelledSet, encoder: Encoder, paths: list[Path], volume_options: dict[str, Any]
) -> LabelledCells:
    return read_cells(
        encoder,
        [Volume.open(path, **volume_options) for path in paths],
        [Points.read(path.parent / labelled.points, allow_empty=False) for path in paths],
        labels=labelled.labels,
        brains=[path.resolve().parents[labelled.brain_level].name for path in paths],
        max_cells=labelled.cells,
    )


def _baselines(labelled: LabelledSet, encoder: Encoder, cells: LabelledCells) -> dict[str, dict[str, float]]:
    every = np.ones(len(cells.cls), bool)
    makers = feature_makers({"": encoder}, cells.crops, every, pool=None, seeds=1)
    del makers[""]
    return {
        name.removesuffix(" 0"): _score(labelled, make(cells.crops), cells) for name, make in makers.items()
    }


def _score(labelled: LabelledSet, features: np.ndarray, cells: LabelledCells) -> dict[str, float]:
    brains = [str(brain) for brain in np.unique(cells.brain)]
    credits = few_labels(features, cells.cls, cells.brain, brains, labels=labelled.few)
    interval = credits.interval()
    return {"value": interval.value, "low": interval.low, "high": interval.high}
