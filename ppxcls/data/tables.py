"""Reads tables in CSV: a line with the names of the columns, and rows of texts."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ppxcls.data.errors import DataError
from ppxcls.data.text_files import read_unicode

MAX_TABLE_BYTES = 1 << 30
_DELIMITERS = ",;\t|"
_HEADER_LENGTH = 1 << 16  # characters of a text that are searched for the names of the columns


@dataclass(frozen=True)
class CsvTable:
    """A table that is being read.

    Attributes:
        file: its file.
        columns: names of the columns, without blanks at their ends.
        rows: line number and cells of each row that is not empty. A row has as many cells as there are
            columns; otherwise the iterator raises DataError.
    """

    file: Path
    columns: Sequence[str]
    rows: Iterator[tuple[int, list[str]]]


def open_table(file: Path) -> CsvTable:
    """Opens a CSV file in UTF-8, or in UTF-16 with a byte-order mark, as spreadsheets write it.

    Args:
        file: CSV file. Cells are separated by commas, semicolons, tabs or bars.

    Raises:
        DataError: the file can't be read, or it has no names of columns.
    """
    return table_of_text(file, read_unicode(file, MAX_TABLE_BYTES, "table"))


def table_of_text(file: Path, text: str) -> CsvTable:
    """Returns the table in a text. ``file`` is its name in messages.

    Raises:
        DataError: it has no names of columns.
    """
    if "\0" in text:
        raise DataError(f"{file}: expected a table in CSV, received a file with NUL characters")
    delimiter, header = _delimiter_and_header(text[:_HEADER_LENGTH])
    columns = [name.strip() for name in header]
    if not any(columns):
        raise DataError(f"{file}:1: expected the names of the columns, received none")
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        skipinitialspace=any(name[:1] == " " for name in header[1:]),
        strict=True,
    )
    return CsvTable(file, columns, _rows(file, reader, len(columns)))


def _delimiter_and_header(text: str) -> tuple[str, list[str]]:
    """Returns the delimiter that separates the most names in the first line, and these names."""
    headers: dict[str, list[str]] = {}
    for delimiter in _DELIMITERS:
        try:
            headers[delimiter] = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])
        except csv.Error:  # a name that is longer than a cell may be
            headers[delimiter] = []
    delimiter = max(headers, key=lambda candidate: len(headers[candidate]))
    return delimiter, headers[delimiter]


def _rows(file: Path, reader: Iterator[list[str]], count: int) -> Iterator[tuple[int, list[str]]]:
    """Yields line number and cells of each row after the first line, and leaves out empty rows.

    Args:
        file: name of the table in messages.
        reader: csv's reader at the start of the text.
        count: number of columns.
    """
    line = 1
    is_header = True
    try:
        for cells in reader:
            if is_header:
                is_header = False
            elif any(cells):
                yield line, cells if len(cells) == count else _with_count(cells, count, f"{file}:{line}")
            line = reader.line_num + 1  # type: ignore[attr-defined]
    except csv.Error as error:
        raise DataError(f"{file}:{line}: not a row of a table in CSV: {error}") from None


def _with_count(cells: list[str], count: int, place: str) -> list[str]:
    """Returns the cells without empty ones at the end. Raises DataError if there are too few or too many."""
    if len(cells) < count or any(cells[count:]):
        raise DataError(f"{place}: expected {count:,} cells as in the first line, received {len(cells):,}")
    return cells[:count]


def excerpt_of(texts: Sequence[str], count: int | None = None) -> str:
    """Returns the first few texts in one line, each of bounded length.

    Args:
        texts: texts to show, at least the first four.
        count: number of all texts; None for those that are given.
    """
    max_shown, max_length = 3, 80
    parts = [text if len(text) <= max_length else f"{text[:max_length]}…" for text in texts[:max_shown]]
    more = (len(texts) if count is None else count) - len(parts)
    return "; ".join([*parts, *([f"and {more:,} more"] if more > 0 else [])])
