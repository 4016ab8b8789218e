"""The page that `canvas-fm demo` leaves: one self-contained HTML file, no script, nothing fetched."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

import numpy as np
from jaxtyping import Float, UInt8

from canvas_fm.files.atomic import write_text_atomic
from canvas_fm.viewing.demo.counting import SampleCount
from canvas_fm.viewing.demo.counting_section import counting_sections
from canvas_fm.viewing.demo.svg import Interval, Line, interval_chart, line_chart, scatter

_TEMPLATE = Path(__file__).with_name("page.html")


@dataclass(frozen=True)
class MarkerView:
    """One plane of one marker: grey values, and in that plane's pixels (y, x) the true cells near it."""

    marker: str
    plane: UInt8[np.ndarray, "y x"]
    cells_yx: Float[np.ndarray, "n 2"]
    cells_in_volume: int
    pixel_um: float


@dataclass(frozen=True)
class Reconstructed:
    """A four-row figure on disk and its scores: {definition or predictor: PSNR in dB}."""

    marker: str
    figure: Path
    psnr_db: dict[str, float]


@dataclass(frozen=True)
class Agreement:
    """Largest relative difference |a − b| / |b| over all crops between two ways to the same embeddings."""

    ways: str
    difference: float


@dataclass(frozen=True)
class DemoPage:
    """Everything the page shows; all of it was measured by the demo that writes it."""

    counts: Sequence[SampleCount]
    steps: int
    parameters: int
    views: Sequence[MarkerView]
    losses: Mapping[str, Line]
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
    """Write the page at `path`, whole or not at all; images are inside it."""
    sections = (_counts, _volumes, _loss, _separability, _map, _agreement, _reconstructions, _about)
    html = Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        lead=escape(
            "First the main job: cells of two small real volumes, counted by the shipped models and scored "
            "against the truth. Then a small 3D masked autoencoder, pretrained without labels on a synthetic "
            f"brain of {len(page.views)} markers and measured on a second one, which no step has seen."
        ),
        facts="".join(
            f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in _facts(page).items()
        ),
        sections="\n".join(section(page) for section in sections),
    )
    write_text_atomic(Path(path), html)


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


def png_data(plane: UInt8[np.ndarray, "y x"]) -> str:
    """A grey image as a `data:` address."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(plane, mode="L").save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _card(title: str, content: str, half: bool = False) -> str:
    name = title.lower().replace(" ", "-")
    return (
        f'<section class="card{" half" if half else ""}" aria-labelledby="{name}">'
        f'<h2 id="{name}">{escape(title)}</h2>{content}</section>'
    )


def _counts(page: DemoPage) -> str:
    return counting_sections(page.counts)


def _volumes(page: DemoPage) -> str:
    items = "".join(f"<li>{_slice(view)}</li>" for view in page.views)
    switch = (
        '<label class="switch"><input type="checkbox" id="show-cells" checked>Show the true cells</label>'
    )
    note = (
        "One plane of each marker of the second brain in the grey levels that the encoder sees, at the depth "
        "that passes by most cells. Circles are the true cells: a phantom knows them."
    )
    return _card("The volumes", f'<p>{note}</p>{switch}<ul class="volumes">{items}</ul>')


def _slice(view: MarkerView) -> str:
    height, width = view.plane.shape
    radius = 8.0 / view.pixel_um
    cells = "".join(
        f'<circle class="cell" cx="{x + 0.5:.1f}" cy="{y + 0.5:.1f}" r="{radius:.1f}"/>'
        for y, x in view.cells_yx
    )
    bar = 50.0 / view.pixel_um
    scale = f'<path class="scale" d="M{width - 8 - bar:.1f} {height - 8}h{bar:.1f}"/>'
    picture = (
        f'<img src="{png_data(view.plane)}" width="{width}" height="{height}" '
        f'alt="One plane of the {escape(view.marker)} volume">'
    )
    drawn = f'<svg viewBox="0 0 {width} {height}" aria-hidden="true">{cells}{scale}</svg>'
    caption = (
        f"<b>{escape(view.marker)}</b> · {len(view.cells_yx)} of {view.cells_in_volume} cells within 4 µm of "
        "this plane · bar 50 µm"
    )
    return f'<figure><span class="slice">{picture}{drawn}</span><figcaption>{caption}</figcaption></figure>'


def _loss(page: DemoPage) -> str:
    chart = line_chart(
        page.losses,
        title="Loss against training step",
        x_label="training step",
        y_label="loss on masked patches",
        dots=[name for name, line in page.losses.items() if len(line) <= 12],
    )
    note = (
        "Squared error on the masked patches, weighted as the recipe says. Random crops lie anywhere, "
        "foreground crops hold signal, so the three lines do not have to meet."
    )
    return _card("Loss", chart + f'<p class="note">{note}</p>', half=True)


def _separability(page: DemoPage) -> str:
    chart = interval_chart(
        page.separability,
        title="Accuracy of a linear classifier of the marker, on a brain that no step has seen",
        x_label="accuracy on the held-out brain",
        chance=1 / len(page.views),
    )
    note = (
        f"Which of {len(page.views)} markers is it? A logistic regression sees one crop a cell, is fitted "
        f"on {page.fitted_cells} cells of the first brain and scored on {page.scored_cells} of the second. "
        "Lines are 95 % bootstrap intervals over the cells scored. The markers of a phantom differ in "
        f"brightness and texture as a whole, so what has learned nothing can do well too. {_verdict(page)}"
    )
    return _card("Linear separability", chart + f'<p class="note">{note}</p>', half=True)


def _verdict(page: DemoPage) -> str:
    """Whether the pretrained row of the table beats every other row, in a sentence."""
    ours = next(row.value for row in page.separability if row.strong)
    better = [row.label for row in page.separability if not row.strong and row.value >= ours]
    if not better:
        return "Here the pretrained encoder is above all that has learned nothing."
    return f"So short a pretraining does not pay here: as good or better without it are {'; '.join(better)}."


def _map(page: DemoPage) -> str:
    first, second = page.map_share
    chart = scatter(
        page.map,
        title="Embeddings of the held-out brain's cells on their first two principal components",
        x_label=f"component 1 ({first:.0%} of the variance)",
        y_label=f"component 2 ({second:.0%})",
    )
    count = sum(len(points) for points in page.map.values())
    note = (
        f'<p class="note">{count} cells of the held-out brain, one mark each, placed by the two directions '
        "in which their embeddings vary most. Markers were used to colour them, not to place them.</p>"
    )
    return _card("Embedding map", chart + note, half=True)


def _agreement(page: DemoPage) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(row.ways)}</th><td class="n">{power_of_ten(row.difference)}</td>'
        f'<td class="n"><span class="ok">≤ {power_of_ten(page.agreement_limit)}</span></td></tr>'
        for row in page.agreement
    )
    table = (
        '<div class="scroll" tabindex="0" role="region" aria-label="Differences"><table>'
        "<caption>Largest difference between two embeddings of one cell, relative to their length</caption>"
        '<thead><tr><th scope="col">compared</th><th scope="col" class="n">difference</th>'
        f'<th scope="col" class="n">limit</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )
    note = (
        f"{page.compared_cells} cells of the second brain, sent to a service in another process as crops "
        "and as points, and embedded by canvas-fm embed in a third."
    )
    return _card("Three ways, one result", table + f'<p class="note">{note}</p>', half=True)


def _reconstructions(page: DemoPage) -> str:
    blocks = []
    for one in page.reconstructions:
        data = "data:image/png;base64," + base64.b64encode(one.figure.read_bytes()).decode()
        scores = " · ".join(f"{escape(name)} {value:.1f} dB" for name, value in one.psnr_db.items())
        name = escape(one.marker)
        picture = (
            f'<img class="reconstruction" loading="lazy" src="{data}" alt="Original, masked input, '
            f'reconstruction, and visible and reconstructed patches merged, of one {name} crop">'
        )
        scroll = f'<div class="scroll" tabindex="0" role="region" aria-label="Reconstruction, {name}">'
        caption = f"<b>{name}</b> · PSNR on the masked patches: {scores}"
        blocks.append(f"<figure>{scroll}{picture}</div><figcaption>{caption}</figcaption></figure>")
    note = (
        "One crop each, all its planes side by side. Masked patches are hidden from the encoder. The "
        "predictors beside the model know the visible patches of the crop and nothing else; the oracle "
        "has seen the masked patches and says their mean."
    )
    return _card("Reconstructions", f"<p>{note}</p>" + "".join(blocks))


def _about(page: DemoPage) -> str:
    seconds = "".join(
        f'<tr><th scope="row">{escape(step)}</th><td class="n">{value:.1f} s</td></tr>'
        for step, value in page.seconds.items()
    )
    about = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'
        for name, value in page.about.items()
    )
    commands = escape("\n".join(page.next_steps))
    return (
        _card("What took how long", f"<table><tbody>{seconds}</tbody></table>", half=True)
        + _card("Made with", f"<table><tbody>{about}</tbody></table>", half=True)
        + _card("Your own volume", f'<pre tabindex="0">{commands}</pre>')
    )


def power_of_ten(value: float) -> str:
    """3.2 × 10⁻⁷, or 0."""
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.1e}".split("e")
    superscript = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{superscript}" if mantissa == "1.0" else f"{mantissa} × 10{superscript}"
