"""Tables as Excel workbooks (.xlsx), through openpyxl."""

from __future__ import annotations

import csv
import io
import math
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from canvas_fm.data.points.csv_columns.header import names_axes
from canvas_fm.data.points.sidecar import check_sidecar_place, write_sidecar
from canvas_fm.errors import CanvasError, MissingExtra
from canvas_fm.files.atomic import write_atomic

XLSX = ".xlsx"
_MOST_ROWS, _MOST_TEXT, _LARGEST = 2**20, 32_767, 2**53  # what a sheet, a cell and Excel's numbers hold
_FORMULA = re.compile(rb"<(?:\w+:)?f[ >]")
_LOOK = 20  # rows of a sheet in which its column row is looked for


@contextmanager
def open_sheet(path: Path) -> Iterator[io.StringIO]:
    """Context manager: the sheet that names coordinates, as CSV text; CanvasError where it is not clear."""
    openpyxl = _openpyxl(path)
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, SyntaxError) as problem:
        raise CanvasError(f"{path} cannot be read as an Excel workbook: {problem}") from problem
    try:
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows(
            [_text(value) for value in row] for row in _sheet(path, book).iter_rows(values_only=True)
        )
    finally:
        book.close()
    _refuse_formulas(path, openpyxl)
    text.seek(0)
    yield text


def _refuse_formulas(path: Path, openpyxl: Any) -> None:
    """Raise CanvasError where a formula was never computed, as programs write it: its cell reads as blank."""
    with zipfile.ZipFile(path) as archive:
        sheets = [name for name in archive.namelist() if name.startswith("xl/worksheets/")]
        if not any(_FORMULA.search(archive.read(name)) for name in sheets):
            return
    computed, written = (
        openpyxl.load_workbook(path, read_only=True, data_only=only) for only in (True, False)
    )
    try:
        pairs = zip(_sheet(path, computed).iter_rows(), _sheet(path, written).iter_rows(), strict=False)
        for values, formulas in pairs:
            for value, formula in zip(values, formulas, strict=False):
                if value.value is None and formula.value is not None:
                    raise CanvasError(
                        f"{path}: {formula.coordinate} holds a formula without a value; open it in Excel or "
                        "LibreOffice, which compute it, and save it"
                    )
    finally:
        computed.close()
        written.close()


def write_xlsx(path: Path, table: Mapping[str, np.ndarray], meta: Mapping[str, str]) -> None:
    """Write one sheet atomically, NaN as a blank; `meta` goes into `PATH.json` beside it.

    Raises CanvasError for what a sheet cannot hold: too many rows, infinity, whole numbers above 2⁵³, texts
    that are too long or hold control characters.
    """
    openpyxl = _openpyxl(path)
    check_sidecar_place(path, meta)
    columns = list(table.values())
    if len(columns[0]) >= _MOST_ROWS:
        raise CanvasError(
            f"{path}: a sheet of Excel holds {_MOST_ROWS - 1:,} rows, these are {len(columns[0]):,}; write "
            ".csv or .parquet"
        )
    for name, values in table.items():
        _check(path, name, values)
    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet("points")

    def cell(value: Any) -> Any:
        if not isinstance(value, str):
            return None if isinstance(value, float) and math.isnan(value) else value
        cell = openpyxl.cell.WriteOnlyCell(sheet, value)
        cell.data_type = "s"  # a text that begins with "=" is no formula
        return cell

    def write(temporary: Path) -> None:
        sheet.append([cell(name) for name in table])
        for row in zip(*(values.tolist() for values in columns), strict=True):
            sheet.append([cell(value) for value in row])
        packed = (
            io.BytesIO()
        )  # a ZipFile that was torn by a full disk would complain again when it is deleted
        book.save(packed)
        temporary.write_bytes(packed.getvalue())
        write_sidecar(path, temporary, len(columns[0]), meta)

    write_atomic(path, write)


def _sheet(path: Path, book: Any) -> Any:
    """The only worksheet, or the only one whose columns name z, y and x."""
    sheets = list(book.worksheets)
    if len(sheets) == 1:
        return sheets[0]
    matches = [sheet for sheet in sheets if _has_axes(sheet.iter_rows(values_only=True))]
    if len(matches) != 1:
        raise CanvasError(
            f"{path} has {len(sheets)} sheets ({', '.join(sheet.title for sheet in sheets)}), of which "
            f"{len(matches)} have columns z, y, x; keep one sheet of points in a file"
        )
    return matches[0]


def _has_axes(rows: Iterable[tuple[Any, ...]]) -> bool:
    return any(names_axes([_text(value) for value in row]) for row in islice(rows, _LOOK))


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(int(value))
    return "" if value is None else str(value)


def _check(path: Path, name: str, values: np.ndarray) -> None:
    if values.dtype.kind == "f" and np.isinf(values).any():
        raise CanvasError(f"{path}: the column {name} holds infinity, which Excel has no number for")
    if values.dtype.kind in "iu" and len(values) and int(np.abs(values.astype(object)).max()) > _LARGEST:
        raise CanvasError(f"{path}: the column {name} holds whole numbers above 2⁵³, which Excel rounds")
    if values.dtype.kind == "U":
        for text in values.tolist():
            if len(text) > _MOST_TEXT or any(ord(sign) < 32 and sign not in "\t\n\r" for sign in text):
                raise CanvasError(f"{path}: the column {name} holds a text that no cell takes: {text[:40]!r}")


def _openpyxl(path: Path) -> Any:
    try:
        import openpyxl
        import openpyxl.cell
    except ImportError as problem:
        raise MissingExtra("openpyxl", "excel", f"{path.suffix} ({path.name})") from problem
    return openpyxl
