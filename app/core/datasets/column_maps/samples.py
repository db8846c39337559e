"""The first records of a file, as they are and as they would be read, for a person who maps its columns."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from app.core.datasets.column_maps.guesses import BYTES, ColumnGuess, guess_column_maps
from app.core.datasets.inspection import Inspection, refuse_fields, refuse_problems
from app.core.datasets.inspector import inspect_records
from app.core.datasets.limits import Limits
from app.core.datasets.problems import Record
from app.core.datasets.readers.csv_files import CsvRecords, sniff_delimiter
from app.core.datasets.readers.json_files import read_lines, read_values
from app.core.datasets.readers.parquet_files import ParquetRecords
from app.core.datasets.readers.sources import Container, Source, open_source
from app.core.datasets.rows import Problem, Row
from app.core.datasets.unused_fields import printable
from app.core.errors.datasets import DatasetInvalid

MAX_RECORDS = 10
_MAX_BYTES = 256 << 10
_MAX_TEXT = 8_000
_MAX_ITEMS = 50
_MAX_COLUMNS = 200


@dataclass
class SampleReading:
    """How the records of a sample are read with a column map; `error` is why the file would be refused."""

    column_map: dict[str, str]
    found: Inspection | None = None
    rows: list[tuple[int, Row]] = field(default_factory=list)
    error: DatasetInvalid | None = None


@dataclass
class FileSample:
    """The first records of a file, each with its line, and what its columns may mean."""

    container: Container
    columns: list[str]
    records: list[tuple[int, dict[str, Any]]]
    guesses: list[ColumnGuess]
    reading: SampleReading


def take_sample(path: Path, *, limits: Limits, column_map: Mapping[str, str] | None = None) -> FileSample:
    """Read the first records of a file.

    They are read with `column_map`; where that is None, with the file's own columns, or else with the
    likeliest guess. Raises DatasetInvalid where no record can be read.
    """
    with open_source(path, limits) as source:
        table_columns, records = _open(source, limits)
        taken = list(_take(records))
        container = source.container
    columns = [printable(name) for name in table_columns[:_MAX_COLUMNS]] if table_columns else None
    return _sample_of(container, columns, taken, limits=limits, column_map=column_map)


def _sample_of(
    container: Container,
    table_columns: list[str] | None,
    taken: list[Record],
    *,
    limits: Limits,
    column_map: Mapping[str, str] | None,
) -> FileSample:
    readable = [(line, record) for line, record in taken if isinstance(record, dict)]
    columns = table_columns or list(dict.fromkeys(name for _, record in readable for name in record))
    guesses = guess_column_maps(columns, [record for _, record in readable])

    def read(chosen: Mapping[str, str]) -> SampleReading:
        return _read(container, table_columns, taken, limits=limits, column_map=dict(chosen))

    reading = read(column_map or {})
    if column_map is None and guesses and reading.error and not reading.rows:
        reading = read(guesses[0].column_map)
    return FileSample(container, columns[:_MAX_COLUMNS], readable, guesses, reading)


def _read(
    container: Container,
    columns: list[str] | None,
    records: list[Record],
    *,
    limits: Limits,
    column_map: dict[str, str],
) -> SampleReading:
    reading = SampleReading(column_map)
    try:
        reading.found, reading.rows = inspect_records(
            columns, records, container, limits=limits, column_map=column_map
        )
        refuse_problems(reading.found)
        refuse_fields(reading.found)
    except DatasetInvalid as error:
        reading.error = error
    return reading


def _open(source: Source, limits: Limits) -> tuple[list[str] | None, Iterator[Record]]:
    """Returns the columns of a table, else None, and the records."""
    match source.container:
        case Container.JSONL:
            return None, read_lines(source.stream, limits)
        case Container.JSON:
            return None, read_values(source.text, limits)
        case Container.CSV:
            csv = CsvRecords(source.text, sniff_delimiter(source.sample), limits)
            return csv.columns, csv.read()
        case Container.PARQUET:
            table = ParquetRecords(source.path, limits)
            return table.columns, _read_table(table)
        case Container.HUB:
            raise AssertionError("an upload is never a Hub table")


def _read_table(table: ParquetRecords) -> Iterator[Record]:
    readable = table.readable_columns()
    unread = [name for name in table.columns if name not in readable]
    for line, record in table.read(readable):
        yield line, record if isinstance(record, Problem) else {**record, **dict.fromkeys(unread, BYTES)}


def _take(records: Iterable[Record]) -> Iterator[Record]:
    """Yield the first records, up to a number and a size; long values of the first one are cut."""
    size = 0
    for line, record in islice(records, MAX_RECORDS):
        if isinstance(record, Problem):
            yield line, record
            continue
        plain = {printable(name): value for name, value in islice(record.items(), _MAX_COLUMNS)}
        text = _as_json(plain)
        if len(text) > _MAX_BYTES and not size:
            text = _as_json(_cut(plain))
        elif size + len(text) > _MAX_BYTES:
            return
        size += len(text)
        yield line, json.loads(text, parse_constant=lambda _: None)


def _as_json(record: dict[str, Any]) -> str:
    """Returns a record as JSON that UTF-8 can hold; dates and decimals of Parquet become text."""
    text = json.dumps(record, default=str, ensure_ascii=False, skipkeys=True)
    return text.encode(errors="replace").decode()


def _cut(value: Any) -> Any:
    if isinstance(value, str):
        return value if len(value) <= _MAX_TEXT else value[:_MAX_TEXT] + "…"
    if isinstance(value, list):
        return [_cut(part) for part in value[:_MAX_ITEMS]]
    if isinstance(value, dict):
        return {name: _cut(part) for name, part in islice(value.items(), _MAX_ITEMS)}
    return value
