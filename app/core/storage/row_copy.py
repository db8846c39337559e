"""Copies all rows from one database to another, of the same kind or not: SQLite and PostgreSQL alike."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, func, select

from app.core.storage import tables
from app.core.storage.database import Database

_CHUNK_ROWS = 1000
# What is true only of the box as it runs now, and what can be made again: files of exports are not in a
# backup.
_LEFT_OUT = {tables.WorkerRow.__tablename__, tables.ExportRow.__tablename__}
_TABLES = [table for table in tables.Table.metadata.sorted_tables if table.name not in _LEFT_OUT]


@contextmanager
def one_state(database: Database) -> Iterator[Connection]:
    """A connection that reads the state of one moment, whatever is written meanwhile."""
    options = (
        {"read_only": True}
        if database.engine.dialect.name == "sqlite"
        else {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    )
    with database.engine.connect().execution_options(**options) as connection, connection.begin():
        yield connection


def copy_rows(source: Connection, target: Connection) -> None:
    """Every row but those of workers and exports; rows come after the rows that they refer to."""
    for table in _TABLES:
        found = source.execute(select(table).execution_options(yield_per=_CHUNK_ROWS))
        for rows in found.mappings().partitions():
            target.execute(table.insert(), [dict(row) for row in rows])


def is_empty(connection: Connection) -> bool:
    """Whether there is no row that a copy would bring."""
    return not any(connection.scalar(select(func.count()).select_from(table)) for table in _TABLES)
