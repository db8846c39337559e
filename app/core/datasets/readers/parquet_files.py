"""Records of a Parquet file, read by DuckDB as a stream: no more than a group of rows is in memory.

DuckDB may read this one file and nothing else: no network, no extensions, no other path.
"""

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb
from duckdb.sqltypes import DuckDBPyType

from app.core.datasets.limits import Limits, describe_bytes, too_large
from app.core.datasets.problems import Record, quoted, repeated
from app.core.datasets.unused_fields import EMPTY_TEXTS
from app.core.errors.datasets import DatasetInvalid

_ROWS_AT_ONCE = 256
_MEMORY_LIMIT = "512MB"
# DuckDB reads so many rows at once, whatever their size. A file of kilobytes can repeat one megabyte a
# thousand times (dictionary encoding), so the sizes of rows are summed up before the rows are read.
_BLOCK_ROWS = 2048
_MAX_BLOCK_BYTES = 256 << 20
_MAX_ROW_BYTES = 64 << 20
# A part of a column that unpacks to more than the bytes, and to so many times its size, was made to harm:
# text is packed to a third or a tenth.
_SUSPICIOUS_BYTES = 32 << 20
_MAX_EXPANSION = 300
_MAX_PRESENCE_BYTES = 128 << 20
_SHORT_BYTES = 64
_SCALARS = ("boolean", "tinyint", "smallint", "integer", "bigint", "float", "double")


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

    def read(self, columns: Sequence[str], presence_of: Sequence[str] = ()) -> Iterator[Record]:
        """Yield the records with these columns; of `presence_of`, a short text, a number, or null."""
        names = [*columns, *presence_of]
        number = 0
        try:
            inflated = self._inflated()
            _refuse_inflated(columns, inflated)
            self._check_sizes(columns)
            presences = ["'x'" if _parts_of(name, inflated) else self._presence(name) for name in presence_of]
            selected = ", ".join([*map(_identifier, columns), *presences])
            found = self._connection.execute(f"SELECT {selected} FROM read_parquet(?)", [self._pattern])
            while rows := found.fetchmany(_ROWS_AT_ONCE):
                for row in rows:
                    number += 1
                    yield number, dict(zip(names, row, strict=True))
        except duckdb.OutOfMemoryException as error:
            raise DatasetInvalid(
                f"The rows after row {number} need more than {_MEMORY_LIMIT} of memory at once.",
                hint="Write the file with smaller row groups, or upload JSON lines.",
            ) from error
        except duckdb.Error as error:
            raise _damaged() from error
        finally:
            self._connection.close()

    def readable_columns(self) -> list[str]:
        """Returns the columns without bytes in any part, and that do not unpack to too much."""
        try:
            inflated = self._inflated()
            kinds = self._kinds()
        except duckdb.Error as error:
            raise _damaged() from error
        return [
            name for name in self.columns if not _parts_of(name, inflated) and not _holds_bytes(kinds[name])
        ]

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

    def _inflated(self) -> list[str]:
        """Returns the parts of columns that unpack to too much, by the metadata: no content is unpacked."""
        found = self._connection.execute(
            "SELECT DISTINCT path_in_schema FROM parquet_metadata(?) WHERE total_uncompressed_size > ? "
            "AND total_uncompressed_size > ? * greatest(total_compressed_size, 1)",
            [self._pattern, _SUSPICIOUS_BYTES, _MAX_EXPANSION],
        )
        return [str(path) for (path,) in found.fetchall()]

    def _check_sizes(self, columns: Sequence[str]) -> None:
        """Raise DatasetInvalid where the rows are over the limit of memory or of unpacked bytes."""
        row = self._connection.execute(
            "SELECT coalesce(max(bytes), 0), arg_max(block, bytes), coalesce(sum(bytes), 0), "
            "coalesce(max(largest), 0) FROM (SELECT sum(bytes) AS bytes, max(bytes) AS largest, block FROM ("
            f"SELECT {self._size(columns)} AS bytes, (row_number() OVER () - 1) // {_BLOCK_ROWS} AS block "
            "FROM read_parquet(?)) GROUP BY block)",
            [self._pattern],
        ).fetchone()
        assert row is not None
        largest, block, total, largest_row = row
        if largest > _MAX_BLOCK_BYTES:
            first, last = block * _BLOCK_ROWS + 1, (block + 1) * _BLOCK_ROWS
            raise DatasetInvalid(
                f"Rows {first} to {last} together take more than {describe_bytes(_MAX_BLOCK_BYTES)}.",
                hint="Upload JSON lines instead: they are read row by row.",
            )
        if largest_row > max(_MAX_ROW_BYTES, self._limits.max_row_bytes):
            raise DatasetInvalid(
                f"A row takes more than {describe_bytes(_MAX_ROW_BYTES)}.", hint="Shorten it or leave it out."
            )
        if total > self._limits.max_unpacked_bytes:
            raise too_large(self._limits)

    def _size(self, columns: Sequence[str]) -> str:
        """Returns an SQL expression for the bytes of a row."""
        kinds = self._kinds()
        return " + ".join(_bytes_of(_identifier(name), kinds[name]) for name in columns)

    def _presence(self, column: str) -> str:
        """Returns an SQL expression for what `unused_fields` needs to know of a value.

        Columns of large values, such as images, are not read: they count as values in every row.
        """
        size, rows = self._connection.execute(
            "SELECT (SELECT coalesce(sum(total_uncompressed_size), 0) FROM parquet_metadata($1) "
            "WHERE path_in_schema = $2 OR starts_with(path_in_schema, $2 || ', ')), "
            "(SELECT sum(num_rows) FROM parquet_file_metadata($1))",
            [self._pattern, column],
        ).fetchone() or (0, 0)
        if size * _BLOCK_ROWS > _MAX_PRESENCE_BYTES * max(rows, 1):
            return "'x'"
        return _presence(_identifier(column), self._kinds()[column])

    def _kinds(self) -> dict[str, DuckDBPyType]:
        table = self._connection.sql("SELECT * FROM read_parquet(?) LIMIT 0", params=[self._pattern])
        return dict(zip(table.columns, table.types, strict=True))


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


def _parts_of(column: str, paths: Sequence[str]) -> list[str]:
    """Returns those of the paths in a schema that lie in a column."""
    return [path for path in paths if path == column or path.startswith(f"{column}, ")]


def _refuse_inflated(columns: Sequence[str], inflated: Sequence[str]) -> None:
    """Raise DatasetInvalid where one of the columns unpacks to too much."""
    for part in (part for column in columns for part in _parts_of(column, inflated)):
        raise DatasetInvalid(
            f"The column {quoted([part])} unpacks to more than {_MAX_EXPANSION} times its size.",
            hint="Write the file without compression, or upload JSON lines.",
        )


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _presence(value: str, kind: DuckDBPyType) -> str:
    """Returns an SQL expression: a number or a short text itself, else null, '' or 'x'.

    It is null where a value is absent, and '' where it is empty.
    """
    if kind.id in _SCALARS:
        return value
    if kind.id == "varchar":
        return f"CASE WHEN strlen({value}) > {_SHORT_BYTES} THEN 'x' ELSE {value} END"
    is_absent = f"NOT ({_is_there(value, kind)})"
    return f"CASE WHEN {is_absent} THEN NULL WHEN {_holds_value(value, kind)} THEN 'x' ELSE '' END"


def _is_there(value: str, kind: DuckDBPyType) -> str:
    """Returns an SQL condition like `not unused_fields.is_absent`."""
    if fields := _fields_of(value, kind):
        return " OR ".join(f"({_is_there(*field)})" for field in fields)
    number = f" AND NOT isnan({value})" if kind.id in ("float", "double") else ""
    return f"{value} IS NOT NULL{number}"


def _holds_value(value: str, kind: DuckDBPyType) -> str:
    """Returns an SQL condition like `unused_fields.holds_value`; of a list it sees only the length."""
    if fields := _fields_of(value, kind):
        return " OR ".join(f"({_holds_value(*field)})" for field in fields)
    match kind.id:
        case "varchar":
            empty = ", ".join(map(_literal, EMPTY_TEXTS))
            is_long = f"strlen({value}) > {_SHORT_BYTES}"
            condition = f"CASE WHEN {is_long} THEN true ELSE trim({value}) NOT IN ({empty}) END"
        case "blob":
            condition = f"octet_length({value}) > 0"
        case "list" | "array":
            condition = f"len({value}) > 0"
        case "map":
            condition = f"cardinality({value}) > 0"
        case _:
            condition = f"{value} IS NOT NULL"
    return f"coalesce({condition}, false)"


def _fields_of(value: str, kind: DuckDBPyType) -> list[tuple[str, DuckDBPyType]]:
    if kind.id != "struct":
        return []
    return [
        (f"struct_extract({value}, {_literal(str(name))})", child)
        for name, child in kind.children
        if isinstance(child, DuckDBPyType)
    ]


def _holds_bytes(kind: DuckDBPyType) -> bool:
    """Whether a value of this type is bytes, or has a part that is."""
    if kind.id not in ("list", "array", "struct", "map"):
        return kind.id == "blob"
    return any(_holds_bytes(child) for _, child in kind.children if isinstance(child, DuckDBPyType))


def _bytes_of(value: str, kind: DuckDBPyType, depth: int = 0) -> str:
    """Returns an SQL expression for the bytes of a value, nested values included."""
    if kind.id in ("varchar", "blob"):
        count = "strlen" if kind.id == "varchar" else "octet_length"
        return f"coalesce({count}({value}), 0)"
    if kind.id not in ("list", "array", "struct", "map"):
        return "8"
    parts = [(str(name), child) for name, child in kind.children if isinstance(child, DuckDBPyType)]
    if kind.id == "struct":
        return " + ".join(_bytes_of(part, child, depth) for part, child in _fields_of(value, kind))
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
