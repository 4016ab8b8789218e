"""The page of `canvas-fm demo`: one self-contained HTML file without script."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from markupsafe import Markup

from canvas_fm.evaluation.page.html import png_data, render
from canvas_fm.files.atomic import write_text_atomic
from canvas_fm.viewing.demo.counting import SampleCount
from canvas_fm.viewing.demo.counting_section import counting_sections
from canvas_fm.viewing.demo.svg import Interval, Line, interval_chart, line_chart, scatter


@dataclass(frozen=True)
class MarkerView:
    """One plane of one marker: grey values, and true cells near it in pixels (y, x)."""

    marker: str
    plane: UInt8[np.ndarray, "y x"]
    cells_yx: Float[np.ndarray, "n 2"]
    cells_in_volume: int
    pixel_um: float


@dataclass(frozen=True)
class Reconstructed:
    """A four-row figure file and its scores: {definition or predictor: PSNR in dB}."""

    marker: str
    figure: Path
    psnr_db: dict[str, float]


@dataclass(frozen=True)
class Agreement:
    """Largest relative difference |a − b| / |b| between embeddings computed in two ways."""

    ways: str
    difference: float


@dataclass(frozen=True)
class DemoPage:
    """Contents of the page, all measured by the demo that writes it."""

    counts: Sequence[SampleCount]
    steps: int
    parameters: int
    views: Sequence[MarkerView]
    losses: Mapping[str, Line]
    cell_losses: Mapping[str, Line]
    reconstructions: Sequence[Reconstructed]
    map: Mapping[str, Float[np.ndarray, "n 2"]]
    map_share: tuple[float, float]
    separability: Sequence[Interval]
    fitted_cells: int
    scored_cells: int
    agreement: Sequence[Agreement]
    agreement_limit: float
    compared_cells: int
    seconds: Mapping[str, float]
    about: Mapping[str, str]
    next_steps: Sequence[str]


def write_page(page: DemoPage, path: str | Path) -> None:
    """Write the page atomically, with embedded images."""
    html = render(
        "viewing/demo/page.html",
        page=page,
        counting=counting_sections(page.counts),
        conclusion=_conclusion(page.counts),
        facts=_facts(page),
        verdict=_verdict(page),
        map_cells=sum(len(points) for points in page.map.values()),
        loss_chart=_loss_chart(page.losses, "masked autoencoder", "loss on masked patches"),
        cell_loss_chart=_loss_chart(page.cell_losses, "encoder of cells", "contrast and reconstruction"),
        separability_chart=_separability_chart(page),
        map_chart=_map_chart(page),
        plane_png=plane_png,
        png_data=png_data,
        power_of_ten=power_of_ten,
    )
    write_text_atomic(Path(path), html)


def _conclusion(counts: Sequence[SampleCount]) -> str:
    """Results of the shipped models on the samples: F1, and the count beside the true one."""
    parts = []
    for count in counts:
        low, high = count.interval_90
        parts.append(
            f"{count.name} F1 {count.refined.value:.2f}, {count.expected_cells:.0f} "
            f"({low:.0f} to {high:.0f}) cells counted where there are {count.true_cells}"
        )
    return f"The shipped models on two small real volumes: {'; '.join(parts)}."


def _facts(page: DemoPage) -> dict[str, str]:
    minutes, seconds = divmod(round(sum(page.seconds.values())), 60)
    return {
        "encoder": f"{page.parameters / 1e6:.2f} M parameters",
        "training": f"{page.steps:,} steps",
        "HTTP, command line and Python differ by": power_of_ten(
            max(row.difference for row in page.agreement)
        ),
        "all of it took": f"{minutes} min {seconds} s",
    }


def plane_png(plane: UInt8[np.ndarray, "y x"]) -> str:
    """A grey image as a `data:` URL."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(plane, mode="L").save(buffer, format="PNG", optimize=True)
    return png_data(buffer.getvalue())


def _loss_chart(losses: Mapping[str, Line], model: str, y_label: str) -> Markup:
    return line_chart(
        losses,
        title=f"Loss of the {model} against training step",
        x_label="training step",
        y_label=y_label,
        dots=[name for name, line in losses.items() if len(line) <= 12],
    )


def _separability_chart(page: DemoPage) -> Markup:
    return interval_chart(
        page.separability,
        title="Accuracy of a linear classifier of the marker, on a brain that no step has seen",
        x_label="accuracy on the held-out brain",
        chance=1 / len(page.views),
    )


def _map_chart(page: DemoPage) -> Markup:
    first, second = page.map_share
    return scatter(
        page.map,
        title="Embeddings of the held-out brain's cells on their first two principal components",
        x_label=f"component 1 ({first:.0%} of the variance)",
        y_label=f"component 2 ({second:.0%})",
    )


def _verdict(page: DemoPage) -> str:
    """One sentence on whether the pretrained encoder beats every other row of the table."""
    pretrained = next(row.value for row in page.separability if row.strong)
    better = [row.label for row in page.separability if not row.strong and row.value >= pretrained]
    if not better:
        return "Here the pretrained encoder of cells is above all others."
    return f"So short a pretraining does not pay here: as good or better without it are {'; '.join(better)}."


def power_of_ten(value: float) -> str:
    """Scientific notation: 3.2 × 10⁻⁷, or 0."""
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.1e}".split("e")
    superscript = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{superscript}" if mantissa == "1.0" else f"{mantissa} × 10{superscript}"
