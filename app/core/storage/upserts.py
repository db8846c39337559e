"""Inserts that meet a row of the same primary key, on SQLite and PostgreSQL."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.core.storage.tables import Table


def insert_missing(session: Session, table: type[Table], row: Mapping[str, Any]) -> None:
    """Insert a row; does nothing where there is one of its primary key."""
    session.execute(_insert(session, table).values(**row).on_conflict_do_nothing())


def add_up(session: Session, table: type[Table], rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows; where there is one of the same primary key, its other columns grow by the new row's."""
    keys = [column.name for column in table.__table__.primary_key]
    for row in rows:
        insert = _insert(session, table).values(**row)
        grown = {name: getattr(table, name) + insert.excluded[name] for name in row if name not in keys}
        session.execute(insert.on_conflict_do_update(index_elements=keys, set_=grown))


def _insert(session: Session, table: type[Table]) -> Any:
    is_sqlite = session.get_bind().dialect.name == "sqlite"
    return (sqlite.insert if is_sqlite else postgresql.insert)(table)
