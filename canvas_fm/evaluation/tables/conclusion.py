"""The conclusion of tables in one or two sentences: who is best over all data sets, and on other markers."""

from __future__ import annotations

from typing import Any

from canvas_fm.evaluation.tables.tables import Cell, Tables


def _totals(tables: Tables, model: str) -> list[Cell | None]:
    return [row.cells[model] for row in tables.rows if row.level == "total"]


def conclusion_of(tables: Tables) -> str:
    """The model of the highest mean F1 over all data sets, the next one, and what it loses elsewhere."""
    means: dict[str, float] = {}
    for model in tables.models:
        cells = _totals(tables, model)
        if cells and all(cell is not None for cell in cells):
            means[model] = sum(cell.counts.f1 or 0.0 for cell in cells if cell is not None) / len(cells)
    data_sets = sum(row.level == "total" for row in tables.rows)
    if not means:
        return "No model was run on every data set, so that none is the best over all."
    over = "on the one data set" if data_sets == 1 else f"over the {data_sets} data sets"
    best, *others = sorted(means, key=lambda model: -means[model])
    sentence = f"{best} has the highest mean F1 {over}, {means[best]:.2f}"
    if not others:
        sentence = f"{best} has a mean F1 of {means[best]:.2f} {over}"
    else:
        n_apart = sum(
            _apart(first, second)
            for first, second in zip(*(_totals(tables, m) for m in (best, others[0])), strict=True)
        )
        sentence += f"; {others[0]} follows with {means[others[0]]:.2f}, and "
        sentence += f"their intervals are apart on {n_apart} of {data_sets}"
    gap = tables.gap(best)
    if gap is None:
        return f"{sentence}."
    less = gap[0] - gap[1]
    change = f"loses {less:.2f}" if less > 0 else "loses nothing"
    return f"{sentence}. Away from its own marker {best} {change}."


def _apart(first: Cell | None, second: Cell | None) -> bool:
    """Whether the 95 % intervals of F1 of two models do not overlap."""
    ends = [cell.interval.of.get("f1") for cell in (first, second) if cell is not None]
    if len(ends) < 2 or None in ends:
        return False
    (low, high), (other_low, other_high) = ends  # type: ignore[misc]
    return bool(low > other_high or other_low > high)


def picture_of(tables: Tables) -> list[dict[str, Any]]:
    """F1 of every model on every data set with its interval, for `evaluation/page/intervals.html`."""
    rows: list[dict[str, Any]] = []
    for row in tables.rows:
        for model, cell in row.cells.items() if row.level == "total" else ():
            if cell is None or cell.counts.f1 is None:
                continue
            low, high = cell.interval.of.get("f1", (cell.counts.f1, cell.counts.f1))
            label = f"{model} on {row.dataset}"
            strong = model in row.best
            rows.append({"label": label, "value": cell.counts.f1, "low": low, "high": high, "strong": strong})
    return rows
