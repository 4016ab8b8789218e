"""The tables of a comparison as files: Markdown, CSV and a page."""

from __future__ import annotations

from pathlib import Path

from canvas_fm.evaluation.tables.page import tables_page
from canvas_fm.evaluation.tables.tables import Tables
from canvas_fm.evaluation.tables.text import markdown, table_csv
from canvas_fm.files.atomic import write_text_atomic


def write_tables(tables: Tables, out: str | Path) -> list[Path]:
    """Write tables.md, tables.csv and tables.html into a folder; returns their paths."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in (("md", markdown(tables)), ("csv", table_csv(tables)), ("html", tables_page(tables))):
        written.append(out / f"tables.{name}")
        write_text_atomic(written[-1], text)
    return written
