"""Cell counting on a shipped sample: detect, refine, score, embed, search by example."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Num
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from canvas_fm.data.dataset.sample import Sample, sample
from canvas_fm.data.points.points import P_CELL, Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.evaluation.detection.figure import score_figure
from canvas_fm.evaluation.detection.score import Score, evaluate
from canvas_fm.files.atomic import write_atomic
from canvas_fm.files.shipped import DEFAULT_ENCODER, find
from canvas_fm.heads.refine.apply.apply import refine
from canvas_fm.heads.refine.counts.refined_count import count_refined
from canvas_fm.heads.refine.refiner import Refiner
from canvas_fm.inference.detect.detect import detect
from canvas_fm.inference.embed.embed import embed_to_store
from canvas_fm.inference.search.index.index import Index
from canvas_fm.models.load_model import load

TOLERANCE_UM = {"microglia": 12.0, "cfos": 8.0}
HITS = 8
_THUMBNAIL_UM = 26.0  # side of the square shown around a cell: a soma and what surrounds it
_THUMBNAIL_Z_UM = 18.0


@dataclass(frozen=True)
class F1:
    """F1 at a fixed threshold, with its 95 % bootstrap interval over the cells."""

    value: float
    low: float
    high: float
    true_positives: int
    false_positives: int
    false_negatives: int

    @classmethod
    def of(cls, score: Score) -> F1:
        low, high = score.interval.of["f1"]
        counts = score.counts
        return cls(float(counts.f1 or 0.0), low, high, counts.tp, counts.fp, counts.fn)


@dataclass(frozen=True)
class SampleCount:
    """Detected, refined and true cells of one shipped sample."""

    name: str
    about: dict[str, object]
    tolerance_um: float
    detector: str
    refiner: str
    encoder: str
    trained_on_it: tuple[str, ...]  # models that have seen this tissue in training
    true_cells: int
    detected: F1
    refined: F1
    count_of: str  # all cells, or cells among the candidates
    expected_cells: float
    interval_90: tuple[float, float]
    score_png: Path
    hits_png: Path
    query: int  # row and id of the cell that is searched by
    hits_are_cells: int  # of the shown nearest neighbours, those that are true cells


def count_sample(name: str, out: Path, *, device: str = "auto") -> SampleCount:
    """Run the shipped detector, refiner and encoder on `sample:NAME`; writes results into `out`.

    `out` then holds cells.csv (detections), refined.csv (with P(cell)), cells.emb.zarr, cells.index,
    score.png (the refined cells scored, drawn over the tissue) and hits.png (the nearest neighbours of the
    most probable cell).
    """
    out.mkdir(parents=True, exist_ok=True)
    data = sample(name)
    tolerance = TOLERANCE_UM[name]
    detector = load(find("model", f"detector-{name}"), kind="detector", device=device)
    refiner = Refiner.load(find("model", f"refiner-{name}"))
    refiner.set_params(device=device)
    encoder = load(find("model", DEFAULT_ENCODER), kind="encoder", device=device)

    candidates = detect(detector, data.volume, out=out / "cells.csv", show=False)
    refined_candidates = refine(
        refiner, data.volume, candidates, out=out / "refined.csv", device=device, show=False
    )
    p_cell = refined_candidates.columns[P_CELL].astype(np.float64)
    cells = count_refined(
        refiner, refined_candidates, p_cell, volume=data.volume.name, crop_of=data.volume.crop_of
    )

    detected, refined = (_score(data, points, tolerance) for points in (candidates, refined_candidates))
    score_figure(refined, data.volume, out / "score.png", title=f"sample:{name}")

    store = embed_to_store(
        encoder, data.volume, refined_candidates, out / "cells.emb.zarr", device=device, show=False
    )
    index = Index.build(store, out / "cells.index", show=False)
    query = int(np.where(_well_inside(data.volume, refined_candidates.zyx), p_cell, -1.0).argmax())
    rows = _nearest(index, store.vectors[query], query)
    positive = is_true_cell(data, refined_candidates, tolerance)
    hits_figure(
        data.volume, refined_candidates.zyx[[query, *rows]], positive[[query, *rows]], out / "hits.png"
    )
    cube = Path(str(data.about["cube"])).name
    return SampleCount(
        name=name,
        about=data.about,
        tolerance_um=tolerance,
        detector=detector.name,
        refiner=f"refiner-{name}",
        encoder=encoder.name,
        trained_on_it=_trained_on(cube, (encoder.name, f"detector-{name}", f"refiner-{name}")),
        true_cells=len(data.cells),
        detected=F1.of(detected),
        refined=F1.of(refined),
        count_of=str(cells.as_dict()["count_of"]),
        expected_cells=cells.count.value,
        interval_90=(cells.count.low, cells.count.high),
        score_png=out / "score.png",
        hits_png=out / "hits.png",
        query=query,
        hits_are_cells=int(positive[rows].sum()),
    )


def hits_figure(
    volume: Volume, zyx: Num[np.ndarray, "n 3"], is_cell: Bool[np.ndarray, " n"], path: Path
) -> None:
    """Maximum projections along z of search hits, the query first; frames mark the class."""
    figure = Figure(figsize=(1.25 * len(zyx), 1.75), layout="constrained")
    for number, (ax, centre) in enumerate(zip(figure.subplots(1, len(zyx)), zyx, strict=True)):
        ax.imshow(_thumbnail(volume, centre), cmap="gray", interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        positive = bool(is_cell[number])
        for spine in ax.spines.values():
            spine.set(
                color="#0072b2" if positive else "#d55e00", linewidth=3, linestyle="-" if positive else ":"
            )
        ax.set_title("query" if number == 0 else f"{number}.", fontsize=9)
        ax.set_xlabel("cell" if positive else "not a cell", fontsize=8)
    FigureCanvasAgg(figure)
    write_atomic(path, lambda file: figure.savefig(file, format="png", dpi=130))


def _well_inside(volume: Volume, zyx: Num[np.ndarray, "n 3"]) -> np.ndarray:
    half = np.array((_THUMBNAIL_Z_UM, _THUMBNAIL_UM, _THUMBNAIL_UM)) / 2 / volume.voxel_um
    return np.all((zyx >= half) & (zyx <= np.array(volume.shape_zyx) - 1 - half), axis=1)


def _thumbnail(volume: Volume, centre_zyx: Num[np.ndarray, " 3"]) -> Num[np.ndarray, "y x"]:
    size_um = np.array((_THUMBNAIL_Z_UM, _THUMBNAIL_UM, _THUMBNAIL_UM))
    size = np.maximum(np.round(size_um / volume.voxel_um).astype(int), 1)
    origin = np.floor(np.asarray(centre_zyx) + 0.5).astype(int) - size // 2
    return volume.window.apply(volume.read(origin, size)).max(axis=0)


def _score(data: Sample, points: Points, tolerance_um: float) -> Score:
    return evaluate(
        points, data.cells, voxel_um=data.volume.voxel_um, tolerance_um=tolerance_um,
        shape_zyx=data.volume.shape_zyx, chance=False,
    )  # fmt: skip


def is_true_cell(data: Sample, points: Points, tolerance_um: float) -> Bool[np.ndarray, " n"]:
    """Whether each point is a true cell, by position alone: those below a recorded threshold too."""
    return _score(data, Points(points.zyx), tolerance_um).right


def _nearest(index: Index, vector: Float32[np.ndarray, " d"], itself: int) -> list[int]:
    rows = index.search(vector[None], k=HITS + 1).rows[0].tolist()
    return [row for row in rows if row not in (itself, -1)][:HITS]


def _trained_on(cube: str, models: tuple[str, ...]) -> tuple[str, ...]:
    """The models whose recorded training data include the cube."""
    quoted = (f'"{cube}"', f'"{cube}/')
    return tuple(
        name
        for name in models
        if any(text in (find("model", name) / "config.json").read_text(encoding="utf-8") for text in quoted)
    )
