"""Inspects uploads: reads every row once, checks it, and writes the usable rows in their stored form.

Memory does not grow with the file. Knows no database and no network.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from app.core.datasets.field_names import Meaning, meaning_of
from app.core.datasets.formats import (
    ColumnLayout,
    UnknownColumns,
    check_column_map,
    check_mapped_columns,
    choose_layout,
    optional_columns,
)
from app.core.datasets.inspection import EXPECTED, MAX_PROBLEMS, TABLES, Inspection, Upload
from app.core.datasets.limits import Limits, too_large, too_long
from app.core.datasets.parsing import ParsedRow, parse_row
from app.core.datasets.problems import MAX_CHARACTERS_SHOWN, BadRow, Record, quoted, shown_column_map
from app.core.datasets.readers.csv_files import CsvRecords, sniff_delimiter
from app.core.datasets.readers.json_files import read_lines, read_values
from app.core.datasets.readers.parquet_files import ParquetRecords
from app.core.datasets.readers.sources import Container, Source, open_source
from app.core.datasets.rows import Problem, Row, read_rows, write_row
from app.core.datasets.unused_fields import UnusedTally, is_absent, printable
from app.core.errors.datasets import DatasetInvalid

_MAX_COLUMNS = 200
_PREFERENCES = (Meaning.PREFERENCE, Meaning.LABEL)


class RecordTable(Protocol):
    """Records whose columns are known before they are read."""

    columns: list[str]

    def read(self, columns: Sequence[str], presence_of: Sequence[str]) -> Iterator[Record]:
        """Returns the records, numbered from 1, with these columns.

        Of the columns `presence_of` a record need only show whether it has them, and whether they are empty:
        a number, a short text, null, or anything else in place of a longer value.
        """


def inspect(
    upload: Path, stored: Path, *, limits: Limits, column_map: Mapping[str, str] | None = None
) -> Inspection:
    """Read an upload and write its usable rows to `stored`, for `rows.read_rows`.

    `column_map` names the file's column for a column of a format: {"prompt": "question"}.
    Raises DatasetInvalid where the file is empty, binary, damaged or too large, or its columns fit no format
    or several.
    """
    column_map = column_map or {}
    check_column_map(column_map)
    with open_source(upload, limits) as source, stored.open("wb") as target:
        inspector = _Inspector(_describe(upload, source, column_map), target, limits, column_map)
        inspector.inspect_all(inspector.open(source))
    return inspector.found


def inspect_hub_table(
    table: RecordTable, stored: Path, *, limits: Limits, column_map: Mapping[str, str]
) -> Inspection:
    """Inspect a table of a Hub dataset as `inspect` does an upload. Raises also what reading it raises."""
    check_column_map(column_map)
    upload = Upload(Container.HUB, None, None, 0, "", _printable_map(column_map))
    with stored.open("wb") as target:
        inspector = _Inspector(upload, target, limits, column_map)
        inspector.inspect_all(inspector.open_table(table))
    return inspector.found


def inspect_records(
    columns: list[str] | None,
    records: Iterable[Record],
    container: Container,
    *,
    limits: Limits,
    column_map: Mapping[str, str],
) -> tuple[Inspection, list[tuple[int, Row]]]:
    """Inspect records that were read already. Returns what was found, and the usable rows with their lines.

    `columns` are those of a table; None where each record names its own. Raises DatasetInvalid.
    """
    check_column_map(column_map)
    upload = Upload(container, None, None, 0, "", _printable_map(column_map))
    target = io.BytesIO()
    inspector = _Inspector(upload, target, limits, column_map)
    if columns is not None:
        inspector.choose_layout(columns)
    inspector.inspect_all(records)
    target.seek(0)
    return inspector.found, list(read_rows(target))


class _Inspector:
    """Checks, counts and writes the records of one upload."""

    def __init__(
        self, upload: Upload, target: BinaryIO, limits: Limits, column_map: Mapping[str, str]
    ) -> None:
        self.found = Inspection(upload)
        self._target = target
        self._limits = limits
        self._column_map = column_map
        self._layout: ColumnLayout | None = None
        self._columns: dict[str, None] = {}
        self._no_layout: DatasetInvalid | None = None
        self._unused = UnusedTally()
        self._sha256 = hashlib.sha256()

    def inspect_all(self, records: Iterable[Record]) -> None:
        """Check and write every record. Raises DatasetInvalid as `inspect` does."""
        for line, record in records:
            parsed = record if isinstance(record, Problem) else self._parse(line, record)
            if isinstance(parsed, Problem):
                self._add_problem(parsed)
            else:
                self._write(line, parsed)
            if self.found.rows + self.found.problem_count > self._limits.max_rows:
                raise DatasetInvalid(
                    f"The {self._noun} has more than {self._limits.max_rows} rows.",
                    hint="Split it, or raise TUNESMITH_MAX_DATASET_ROWS.",
                )
        self._conclude()

    @property
    def _noun(self) -> str:
        return "split" if self.found.upload.container is Container.HUB else "file"

    def open_table(self, table: RecordTable) -> Iterator[Record]:
        """Returns the records of a table."""
        read = self.choose_layout(table.columns).read_of(table.columns)
        return table.read(read, presence_of=[name for name in table.columns if name not in read])

    def open(self, source: Source) -> Iterator[Record]:
        """Returns the records of an upload."""
        match source.container:
            case Container.JSONL:
                return read_lines(source.stream, self._limits)
            case Container.JSON:
                return read_values(source.text, self._limits)
            case Container.CSV:
                return self._open_csv(source)
            case Container.PARQUET:
                return self.open_table(ParquetRecords(source.path, self._limits))
            case Container.HUB:
                raise AssertionError("an upload is never a Hub table")

    def _open_csv(self, source: Source) -> Iterator[Record]:
        delimiter = sniff_delimiter(source.sample)
        self.found.upload.delimiter = delimiter
        table = CsvRecords(source.text, delimiter, self._limits)
        try:
            self.choose_layout(table.columns)
        except UnknownColumns as error:
            said = "The file was read as CSV: its first line names the columns."
            error.hint = f"{said} {error.hint}" if error.hint else said
            raise
        return table.read()

    def choose_layout(self, columns: list[str]) -> ColumnLayout:
        """Returns the layout of a file whose columns are known before its rows."""
        self._columns = dict.fromkeys(columns)
        check_mapped_columns(columns, self._column_map)
        self._layout = choose_layout(columns, self._column_map)
        return self._layout

    def _parse(self, line: int, record: dict[str, Any]) -> ParsedRow | Problem:
        if not record.keys() <= self._columns.keys() and len(self._columns) < _MAX_COLUMNS:
            self._columns.update(dict.fromkeys(record))
        try:
            if self._layout is None:
                self._layout = choose_layout(self._present(record), self._column_map)
            return parse_row(record, self._layout)
        except BadRow as error:
            return Problem(line, str(error))
        except UnknownColumns as error:
            # A later row may have columns that fit; if none has, the file is refused with this error.
            self._no_layout = self._no_layout or _explain_wrapping(error, record)
            return Problem(line, error.message[0].lower() + error.message[1:])

    def _present(self, record: Mapping[str, Any]) -> list[str]:
        """Returns the columns of a record without empty ones that would make it a comparison or a label."""
        mapped = self._column_map.values()
        return [
            name
            for name, value in record.items()
            if name in mapped or not (meaning_of(name) in _PREFERENCES and is_absent(value))
        ]

    def _add_problem(self, problem: Problem) -> None:
        self.found.problem_count += 1
        if len(self.found.problems) < MAX_PROBLEMS:
            self.found.problems.append(problem)
        elif self._no_layout and self._layout is None:
            raise self._no_layout

    def _write(self, line: int, parsed: ParsedRow) -> None:
        raw = write_row(line, parsed.row)
        # Other readers limit a row's length as they read; a table's row has no length before this.
        if self.found.upload.container in TABLES and len(raw) > self._limits.max_row_bytes:
            self._add_problem(Problem(line, too_long(self._limits)))
            return
        self.found.rows += 1
        self._unused.add(line, parsed.unused)
        self.found.size_bytes += len(raw)
        if self.found.size_bytes > self._limits.max_unpacked_bytes:
            raise too_large(self._limits)
        self._sha256.update(raw)
        self._target.write(raw)

    def _conclude(self) -> None:
        found = self.found
        if self._layout is None and self._no_layout:
            raise self._no_layout
        if not found.rows and not found.problem_count:
            raise DatasetInvalid(
                f"The {self._noun} names columns but has no rows."
                if self._columns
                else f"The {self._noun} is empty.",
                hint=f"A row looks like {EXPECTED}.",
            )
        if len(self._columns) < _MAX_COLUMNS:
            check_mapped_columns(self._columns, self._column_map)
        if self._layout:
            found.format = self._layout.format
            found.free_columns = [
                name
                for name in optional_columns(self._layout)
                if name not in self._columns and name not in self._column_map
            ]
        found.columns = [printable(name) for name in list(self._columns)[:_MAX_COLUMNS]]
        found.unused_fields = self._unused.result()
        found.sha256 = self._sha256.hexdigest()


def _explain_wrapping(error: UnknownColumns, record: Mapping[str, Any]) -> UnknownColumns:
    """Say what a record with one column seems to be: messages, or all rows as in `{"data": [...]}`."""
    [only, *others] = record.items() if record else [("", None)]
    name, value = only
    if not others and isinstance(value, list) and value and isinstance(value[0], dict):
        if value[0].keys() & {"role", "from"}:
            column_map = shown_column_map({"messages": name[:MAX_CHARACTERS_SHOWN]})
            meant = f"If {quoted([name])} holds messages: column_map={column_map}."
        else:
            meant = f"The rows seem to be the list in {quoted([name])}: upload that list itself."
        error.hint = f"{meant} {error.hint}"
    return error


def _describe(path: Path, source: Source, column_map: Mapping[str, str]) -> Upload:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Upload(
        container=source.container,
        compression="gzip" if source.is_gzip else None,
        encoding=source.encoding,
        size_bytes=path.stat().st_size,
        sha256=sha256,
        column_map=_printable_map(column_map),
    )


def _printable_map(column_map: Mapping[str, str]) -> dict[str, str]:
    return {key: printable(name) for key, name in column_map.items()}
