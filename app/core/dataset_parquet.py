"""Records of a Parquet file, read by DuckDB as a stream: no more than a group of rows is in memory.

DuckDB is given this one file and nothing else: no network, no extensions, no other path.
"""

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb

from app.core.dataset_formats import quoted
from app.core.dataset_problems import Record
from app.core.errors import DatasetInvalid

_ROWS_AT_ONCE = 256
_MEMORY_LIMIT = "1GB"


class ParquetRecords:
    """A Parquet file: its columns, and its records numbered from 1."""

    def __init__(self, path: Path) -> None:
        # A path is a pattern to DuckDB.
        self._pattern = glob.escape(str(path))
        self._connection = _connect(path, self._pattern)
        try:
            self.columns = self._read_columns()
        except duckdb.Error as error:
            self._connection.close()
            raise _damaged() from error

    def read(self, columns: Sequence[str]) -> Iterator[Record]:
        """The records, with these columns alone."""
        selected = ", ".join('"' + name.replace('"', '""') + '"' for name in columns)
        number = 0
        try:
            found = self._connection.execute(f"SELECT {selected} FROM read_parquet(?)", [self._pattern])
            while rows := found.fetchmany(_ROWS_AT_ONCE):
                for row in rows:
                    number += 1
                    yield number, dict(zip(columns, row, strict=True))
        except duckdb.OutOfMemoryException as error:
            raise DatasetInvalid(
                f"The row group after row {number} needs more than {_MEMORY_LIMIT} of memory.",
                hint="Write the file with smaller row groups, or upload JSON lines.",
            ) from error
        except duckdb.Error as error:
            raise _damaged() from error
        finally:
            self._connection.close()

    def _read_columns(self) -> list[str]:
        schema = self._connection.execute(
            "SELECT name, coalesce(num_children, 0) FROM parquet_schema(?)", [self._pattern]
        ).fetchall()
        columns = _top_names(schema)
        twice = [name for name in dict.fromkeys(columns) if columns.count(name) > 1]
        if twice:
            raise DatasetInvalid(
                f"The file has the column {quoted(twice)} more than once.", hint="Rename or remove one."
            )
        return columns


def _connect(path: Path, pattern: str) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(
        ":memory:",
        config={
            "threads": 1,
            "memory_limit": _MEMORY_LIMIT,
            "temp_directory": "",
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        },
    )
    # Both the pattern and the file that it names are checked.
    allowed = ", ".join("'" + name.replace("'", "''") + "'" for name in (str(path), pattern))
    connection.execute(f"SET allowed_paths = [{allowed}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def _top_names(schema: list[tuple[Any, ...]]) -> list[str]:
    """Names of the columns; the schema lists the root and then every node before its children."""
    names = []
    nodes_left: list[int] = []
    for name, children in schema:
        if len(nodes_left) == 1:
            names.append(str(name))
        if nodes_left:
            nodes_left[-1] -= 1
        nodes_left.append(children)
        while nodes_left and not nodes_left[-1]:
            nodes_left.pop()
    return names


def _damaged() -> DatasetInvalid:
    return DatasetInvalid(
        "The Parquet file can't be read: it is damaged or cut off.", hint="Write it anew and upload it again."
    )
