"""Records of a Parquet file, read by DuckDB as a stream: no more than a group of rows is in memory.

DuckDB may read this one file and nothing else: no network, no extensions, no other path.
"""

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb
from duckdb.sqltypes import DuckDBPyType

from app.core.datasets.formats import quoted
from app.core.datasets.limits import Limits, describe_bytes, too_large
from app.core.datasets.problems import Record, repeated
from app.core.errors.datasets import DatasetInvalid

_ROWS_AT_ONCE = 256
_MEMORY_LIMIT = "1GB"
# DuckDB reads so many rows at once, whatever their size. A file of kilobytes can repeat one megabyte a
# thousand times (dictionary encoding), so the sizes of rows are summed up before the rows are read.
_BLOCK_ROWS = 2048
_MAX_BLOCK_BYTES = 512 << 20


class ParquetRecords:
    """A Parquet file: its columns, and its records numbered from 1."""

    def __init__(self, path: Path, limits: Limits) -> None:
        self._limits = limits
        # DuckDB takes a path as a glob pattern.
        self._pattern = glob.escape(str(path))
        self._connection = _connect(path, self._pattern)
        try:
            self.columns = self._read_columns()
        except duckdb.Error as error:
            self._connection.close()
            raise _damaged() from error

    def read(self, columns: Sequence[str]) -> Iterator[Record]:
        """Yield the records, with these columns only."""
        selected = ", ".join(_identifier(name) for name in columns)
        number = 0
        try:
            self._check_sizes(columns)
            found = self._connection.execute(f"SELECT {selected} FROM read_parquet(?)", [self._pattern])
            while rows := found.fetchmany(_ROWS_AT_ONCE):
                for row in rows:
                    number += 1
                    yield number, dict(zip(columns, row, strict=True))
        except duckdb.OutOfMemoryException as error:
            raise DatasetInvalid(
                f"The rows after row {number} need more than {_MEMORY_LIMIT} of memory at once.",
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
        if twice := repeated(columns):
            raise DatasetInvalid(
                f"The file has the column {quoted(twice)} more than once.", hint="Rename or remove one."
            )
        return columns

    def _check_sizes(self, columns: Sequence[str]) -> None:
        """Raise DatasetInvalid where the rows are over the limit of memory or of unpacked bytes."""
        row = self._connection.execute(
            "SELECT coalesce(max(bytes), 0), arg_max(block, bytes), coalesce(sum(bytes), 0) FROM ("
            "SELECT sum(bytes) AS bytes, block FROM ("
            f"SELECT {self._size(columns)} AS bytes, (row_number() OVER () - 1) // {_BLOCK_ROWS} AS block "
            "FROM read_parquet(?)) GROUP BY block)",
            [self._pattern],
        ).fetchone()
        assert row is not None
        largest, block, total = row
        if largest > _MAX_BLOCK_BYTES:
            first, last = block * _BLOCK_ROWS + 1, (block + 1) * _BLOCK_ROWS
            raise DatasetInvalid(
                f"Rows {first} to {last} together take more than {describe_bytes(_MAX_BLOCK_BYTES)}.",
                hint="Upload JSON lines instead: they are read row by row.",
            )
        if total > self._limits.max_unpacked_bytes:
            raise too_large(self._limits)

    def _size(self, columns: Sequence[str]) -> str:
        """Returns an SQL expression for the bytes of a row."""
        table = self._connection.sql("SELECT * FROM read_parquet(?) LIMIT 0", params=[self._pattern])
        kinds = dict(zip(table.columns, table.types, strict=True))
        return " + ".join(_bytes_of(_identifier(name), kinds[name]) for name in columns)


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
    # DuckDB checks both the pattern and the file that it matches.
    allowed = ", ".join(map(_literal, (str(path), pattern)))
    connection.execute(f"SET allowed_paths = [{allowed}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _bytes_of(value: str, kind: DuckDBPyType, depth: int = 0) -> str:
    """Returns an SQL expression for the bytes of a value, nested values included."""
    if kind.id in ("varchar", "blob"):
        count = "strlen" if kind.id == "varchar" else "octet_length"
        return f"coalesce({count}({value}), 0)"
    if kind.id not in ("list", "array", "struct", "map"):
        return "8"
    parts = [(str(name), child) for name, child in kind.children if isinstance(child, DuckDBPyType)]
    if kind.id == "struct":
        fields = [(f"struct_extract({value}, {_literal(name)})", child) for name, child in parts]
        return " + ".join(_bytes_of(part, child, depth) for part, child in fields)
    lists = [f"map_keys({value})", f"map_values({value})"] if kind.id == "map" else [value]
    element = f"e{depth}"
    sums = []
    for items, (_, child) in zip(lists, parts, strict=False):
        inner = _bytes_of(element, child, depth + 1)
        sums.append(f"coalesce(list_sum(list_transform({items}, lambda {element}: {inner})), 0)")
    return " + ".join(sums)


def _top_names(schema: list[tuple[Any, ...]]) -> list[str]:
    """Returns the names of the top columns; the schema lists the root, then each node before its children."""
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
