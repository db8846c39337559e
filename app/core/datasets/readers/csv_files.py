"""Records of CSV files, each with the line where it begins; read as a stream, one record in memory."""

import csv
import io
from collections.abc import Iterator
from typing import TextIO

from app.core.datasets.limits import Limits, check_blank_lines, too_long
from app.core.datasets.problems import Record, bad_utf8, quoted, repeated, unreadable
from app.core.datasets.rows import Problem
from app.core.errors.datasets import DatasetInvalid

_MAX_COLUMNS = 10_000
_DELIMITERS = (",", ";", "\t")


class CsvRecords:
    """A CSV file: the columns that its header names, and its records."""

    def __init__(self, text: TextIO, delimiter: str, limits: Limits) -> None:
        self._limits = limits
        self._lines = _CsvLines(text, limits)
        # A cell may be as long as a row. This limit is global to the process.
        csv.field_size_limit(limits.max_row_bytes)
        self._reader = csv.reader(self._lines, delimiter=delimiter, strict=True)
        self.columns = self._read_header()

    def read(self) -> Iterator[Record]:
        """Yield the records with the lines where they begin; rows without any text are skipped."""
        for line, cells in self._rows():
            if isinstance(cells, Problem):
                yield line, cells
            elif len(cells) != len(self.columns):
                yield line, Problem(line, self._wrong_count(cells))
            elif bad := bad_utf8("".join(cells)):
                yield line, Problem(line, bad)
            else:
                yield line, dict(zip(self.columns, cells, strict=True))

    def _read_header(self) -> list[str]:
        line, cells = next(self._rows(), (1, []))
        if isinstance(cells, Problem):
            raise unreadable(line, f"it names the columns, but {cells.message}")
        columns = [cell.strip() for cell in cells]
        if len(columns) > _MAX_COLUMNS:
            raise unreadable(line, f"it names {len(columns)} columns, the limit is {_MAX_COLUMNS}.")
        if twice := repeated(filter(None, columns)):
            raise DatasetInvalid(
                f"Line {line} names the column {quoted(twice)} more than once.", hint="Rename or remove one."
            )
        return columns

    def _rows(self) -> Iterator[tuple[int, list[str] | Problem]]:
        blank_rows = 0
        while True:
            line = self._reader.line_num + 1
            self._lines.begin_row(line)
            try:
                cells = next(self._reader, None)
            except csv.Error as error:
                yield line, self._problem(line, str(error))
                continue
            if cells is None:
                return
            if any(cells):
                yield line, cells
            else:
                blank_rows += 1
                check_blank_lines(blank_rows, self._limits)

    def _problem(self, line: int, said: str) -> Problem:
        if said == "unexpected end of data":
            message = (
                "a quote is opened in this row and never closed. Close it; a quote inside a cell is doubled."
            )
            raise unreadable(line, message)
        if "expected after" in said:
            return Problem(
                line, "text follows a closing quote. A quote inside a quoted cell must be doubled."
            )
        return Problem(line, f"not valid CSV: {said}.")

    def _wrong_count(self, cells: list[str]) -> str:
        return (
            f"the number of cells is {len(cells)}, the number of columns {len(self.columns)}. "
            "A cell that holds the separator or a line break must stand in double quotes."
        )


def sniff_delimiter(sample: str) -> str:
    """Returns the separator with which the header has several cells and most rows have the same number."""
    is_cut = not sample.endswith("\n")
    counts = {delimiter: _cell_counts(sample, delimiter, is_cut) for delimiter in _DELIMITERS}

    def rank(delimiter: str) -> tuple[bool, float, int]:
        header, *rows = counts[delimiter] or [0]
        agreeing = sum(row == header for row in rows) / len(rows) if rows else 1.0
        return header > 1, agreeing, header

    return max(_DELIMITERS, key=rank)


def _cell_counts(sample: str, delimiter: str, is_cut: bool) -> list[int]:
    reader = csv.reader(io.StringIO(sample, newline=""), delimiter=delimiter)
    counts: list[int] = []
    try:
        counts.extend(len(cells) for cells in reader if cells)
    except csv.Error:  # a cell longer than the sample
        is_cut = False
    return counts[:-1] if is_cut and len(counts) > 1 else counts


class _CsvLines:
    """Lines for the CSV reader, with a limit for a row: the reader itself has none."""

    def __init__(self, text: TextIO, limits: Limits) -> None:
        self._text = text
        self._limits = limits
        self._row_line = 1
        self._characters_left = 0

    def begin_row(self, line: int) -> None:
        self._row_line = line
        self._characters_left = self._limits.max_row_bytes

    def __iter__(self) -> "_CsvLines":
        return self

    def __next__(self) -> str:
        line = self._text.readline(self._characters_left + 1)
        self._characters_left -= len(line)
        if self._characters_left < 0:
            raise unreadable(
                self._row_line, f"{too_long(self._limits)} Is there a quote that is never closed?"
            )
        if not line:
            raise StopIteration
        return line
