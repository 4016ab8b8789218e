"""The tables as a page with a heat map, readable without colours."""

from __future__ import annotations

from canvas_fm.evaluation.page.html import render
from canvas_fm.evaluation.tables.conclusion import conclusion_of, picture_of
from canvas_fm.evaluation.tables.tables import Tables


def tables_page(tables: Tables) -> str:
    """Tables 3 and 4 and the generalisation gap as one HTML page, the conclusion and a picture first."""
    return render(
        "evaluation/tables/page.html",
        title=tables.title,
        tables=tables,
        conclusion=conclusion_of(tables),
        picture=picture_of(tables),
    )
