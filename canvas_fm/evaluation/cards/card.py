"""Model cards: prose in NAME.md, all numbers from reports/NAME.json.

A card may quote figures of volumes that its model never saw: those of folds, and those of test volumes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from canvas_fm.errors import CanvasError
from canvas_fm.evaluation.cards.report import Figure, Report
from canvas_fm.files.atomic import write_text_atomic
from canvas_fm.files.shipped import find
from canvas_fm.files.strict_yaml import read_settings

BEGIN, END = "<!-- report:begin, written from the report beside this page -->", "<!-- report:end -->"
_CONFIG_FACTS = ("threshold", "min_distance_um", "smooth_um", "amplitude", "relative", "pool")
_AS_A_FACT = {
    "threshold": "operating threshold",
    "amplitude": "brightness in the score",
    "relative": "score against the strongest around",
    "min_distance_um": "least distance of two cells, µm",
}


def write_card(report: Report, cards: str | Path, *, about: str | None = None) -> Path:
    """Write reports/NAME.json and insert its numbers into NAME.md; returns the page's path.

    The page keeps its prose, only what stands between the marks is written anew; a page that is not there yet
    begins with `about`. Raises CanvasError where the report is not of the model that is there by its name.
    """
    cards = Path(cards)
    config = _config(report.model)
    _same(report, config)
    page = cards / f"{report.model}.md"
    if page.is_file():
        before, _, after = _parts(page)
    elif about is None:
        raise CanvasError(f"there is no {page} yet; give the text that it begins with (about)")
    else:
        before, after = f"# {report.model}\n\n{about.strip()}\n\n", "\n"
    report_path = _report_path(page)
    report_path.parent.mkdir(exist_ok=True)
    write_text_atomic(report_path, json.dumps(report.model_dump(), indent=1, ensure_ascii=False) + "\n")
    write_text_atomic(page, before + _block(report, config) + after)
    return page


def check_card(name: str, cards: str | Path | None = None) -> list[str]:
    """One message for each disagreement of model, report and card; empty if they agree."""
    page = _page(name, cards)
    report = read_report(name, cards)
    config = _config(name)
    try:
        _same(report, config)
        block = _parts(page)[1]
    except CanvasError as problem:
        return [str(problem)]
    written, expected = block.splitlines(), _block(report, config).splitlines()
    faults = [
        f"{page}: {actual!r} stands there, by the report it is {other!r}"
        for actual, other in zip(written, expected, strict=False)
        if actual != other
    ]
    if len(written) != len(expected):
        faults.append(f"{page}: {len(written)} lines between the marks, by the report {len(expected)}")
    return faults


def read_report(name: str, cards: str | Path | None = None) -> Report:
    """Read the report of a model's card."""
    path = _report_path(_page(name, cards))
    report = read_settings(path, Report)
    if report.model != name:
        raise CanvasError(f"{path} is a report of {report.model!r}, not of {name!r}")
    return report


def _report_path(page: Path) -> Path:
    return page.parent / "reports" / f"{page.stem}.json"


def figures_of(name: str) -> dict[str, Any]:
    """Card and figures of a shipped model for `info`; empty if it has no card."""
    try:
        page = _page(name, None)
    except CanvasError:
        return {}
    figures = [figure.model_dump(exclude_none=True) for figure in read_report(name).figures]
    return {"card": str(page), "figures": [{k: v for k, v in f.items() if v != {}} for f in figures]}


def _page(name: str, cards: str | Path | None) -> Path:
    return find("card", name) if cards is None else Path(cards) / f"{name}.md"


def _config(name: str) -> dict[str, Any]:
    """The model's config as stored in its folder, verified."""
    from canvas_fm.models.folder.model_folder import checked_config

    return checked_config(find("model", name))


def _same(report: Report, config: Mapping[str, Any]) -> None:
    if report.sha256 != config["sha256"]:
        raise CanvasError(
            f"the report is of a model with sha256 {report.sha256[:12]}…; the folder of {report.model} holds "
            f"{config['sha256'][:12]}…: score the model that is there"
        )


def _parts(page: Path) -> tuple[str, str, str]:
    """Split a card into text before, between and after the marks."""
    text = page.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise CanvasError(f"{page} does not hold the two marks {BEGIN} and {END} once each, in this order")
    start, end = text.index(BEGIN), text.index(END) + len(END)
    return text[:start], text[start:end], text[end:]


def _block(report: Report, config: Mapping[str, Any]) -> str:
    """The generated part of a card, from its report and the model's config."""
    facts = {
        "identity (sha256)": f"`{report.sha256}`",
        **(_refiner_facts(config) if config["kind"] == "refiner" else _net_facts(config)),
        **{
            _AS_A_FACT.get(k, k.replace("_", " ")): _plain(config[k])
            for k in _CONFIG_FACTS
            if config.get(k) is not None
        },
        "trained on": ", ".join(_trained_on(config["provenance"])) or "not stated",
        "made by": f"`{report.command}`",
        "seed and cost": f"{report.seed}, {report.cpu_minutes:.0f} CPU minutes on {report.machine}",
        **{name: text for name, text in _origin(report).items() if text is not None},
        **{f"made with {name}": version for name, version in report.versions.items()},
    }
    return "\n".join(
        [
            BEGIN,
            *_table(["what", "value"], [[name, text] for name, text in facts.items()]),
            "",
            f"{report.protocol.strip()} Intervals are 95 %.",
            "",
            *_figures(report.figures),
            END,
        ]
    )


def _origin(report: Report) -> dict[str, str | None]:
    return {
        "date": report.date,
        "licence of the weights": report.licence,
        "commit of the weights": None if report.commit is None else f"`{report.commit}`",
    }


def _net_facts(config: Mapping[str, Any]) -> dict[str, str]:
    rule = config["window_rule"]
    facts = {
        "voxel size z, y, x, µm": " × ".join(f"{um:g}" for um in config["voxel_um"]),
        "window": f"{rule['kind']} {rule['low']:g} to {rule['high']:g}",
        "architecture": ", ".join(
            f"{key} {_plain(value)}"
            for key, value in config["architecture"].items()
            if value is not None and key != "descriptors"
        ),
    }
    if (descriptors := config["architecture"].get("descriptors")) is not None:
        radii = ", ".join(f"{um:g}" for um in descriptors["radii_um"])
        facts["descriptors"] = f"{descriptors['components']} components, balls of {radii} µm"
    if (dtype := config["provenance"].get("weights_as")) is not None:
        facts["weights"] = str(dtype).removeprefix("torch.")
    return facts


def _refiner_facts(config: Mapping[str, Any]) -> dict[str, str]:
    settings, tuned = config["settings"], config.get("tuned")
    features = []
    variant = settings["variant"]
    for block in config["blocks"]:
        if variant not in ("concat", block["name"]) and block["name"] not in ("heat", "score", "amplitude"):
            continue  # not looked at
        provenance = block["made"] or {"name": "unknown", "sha256": "", "settings": {}}
        settings_text = [f"{name} {_plain(value)}" for name, value in provenance["settings"].items()]
        how = ", ".join(["detector logit"] * (block["name"] == "heat") + settings_text)
        size = block["stop"] - block["start"]
        # The candidate score has no sha256: its column is named.
        details = [f"`{provenance['sha256'][:12]}…`"] * bool(provenance["sha256"]) + [how] * bool(how)
        features.append(f"{size} of {provenance['name']}" + (f" ({'; '.join(details)})" if details else ""))
    facts = {"features": ", ".join(features)}
    if tuned:
        facts["on top of"] = f"the encoder {tuned['base']} (`{tuned['base_sha256'][:12]}…`)"
    cut = f", {settings['ratio']:g} of {settings['cut']}" if settings["cut"] else ""
    penalty = "" if config["C"] is None else f", C {config['C']:g}"
    if (contrasts := config["provenance"].get("contrasts")) is not None:
        facts["fitted at contrasts"] = ", ".join(f"{contrast:g}" for contrast in contrasts)
    return facts | {
        "variant": f"{settings['variant']}{cut}, {settings['model']}{penalty}",
        "correction of each brain": str(settings["correction"]),
        "calibration": str(config["calibration"]),
    }


def _figures(figures: Sequence[Figure]) -> list[str]:
    others = list(dict.fromkeys(name for figure in figures for name in figure.beside))
    rows = []
    for figure in figures:
        ends = (figure.low, figure.high)
        interval = "–" if None in ends else " to ".join(f"{end:.3f}" for end in ends)
        beside = [f"{figure.beside[name]:.3f}" if name in figure.beside else "–" for name in others]
        of = [figure.data, figure.split, f"{figure.n:,}", figure.metric]
        rows.append([*of, f"{figure.value:.3f}", interval, *beside])
    return _table(["data", "split", "cells", "metric", "value", "interval", *others], rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows]
    return [f"| {' | '.join(map(_cell, line))} |" for line in lines]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _trained_on(provenance: Mapping[str, Any]) -> list[str]:
    listed = provenance.get("trained_on") or []
    return [
        str(volume["name"]) if isinstance(volume, dict) and "name" in volume else str(volume)
        for volume in listed
    ]


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return " and ".join(f"{key.replace('_', ' ')} {_plain(part)}" for key, part in value.items())
    return " × ".join(map(_plain, value)) if isinstance(value, list) else f"{value}"
