"""Copies all rows from one database to another; each may be SQLite or PostgreSQL."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, func, select

from app.core.storage import tables
from app.core.storage.database import Database

_CHUNK_ROWS = 1000
# Workers are only those that run now. Exports and base models can be had again: no file of them is copied.
_LEFT_OUT = {table.__tablename__ for table in (tables.WorkerRow, tables.ExportRow, tables.ModelDownloadRow)}
_TABLES = [table for table in tables.Table.metadata.sorted_tables if table.name not in _LEFT_OUT]


@contextmanager
def one_state(database: Database) -> Iterator[Connection]:
    """Open a connection that reads one snapshot, whatever is written meanwhile."""
    options = (
        {"read_only": True}
        if database.engine.dialect.name == "sqlite"
        else {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    )
    with database.engine.connect().execution_options(**options) as connection, connection.begin():
        yield connection


def copy_rows(source: Connection, target: Connection) -> None:
    """Copy every row but those of workers, exports and downloads, each after the rows that it refers to."""
    for table in _TABLES:
        found = source.execute(select(table).execution_options(yield_per=_CHUNK_ROWS))
        for rows in found.mappings().partitions():
            target.execute(table.insert(), [dict(row) for row in rows])


def is_empty(connection: Connection) -> bool:
    """Whether the tables that `copy_rows` copies are empty."""
    return not any(connection.scalar(select(func.count()).select_from(table)) for table in _TABLES)
