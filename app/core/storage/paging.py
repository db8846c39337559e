"""Cursor pages over a table with `created_at` and `id`, by age: stable while rows are being added."""

from typing import Literal, TypeVar

from sqlalchemy import Select, tuple_
from sqlalchemy.orm import Session

from app.core.errors import InvalidRequest
from app.core.storage import tables

Order = Literal["asc", "desc"]
Row = TypeVar(
    "Row",
    tables.JobRow,
    tables.DatasetRow,
    tables.AdapterRow,
    tables.AdapterImportRow,
    tables.ExportRow,
    tables.EvaluationRow,
    tables.EvaluationDefinitionRow,
    tables.ModelDownloadRow,
    tables.WebhookRow,
    tables.WebhookDeliveryRow,
)


def newest_first(
    session: Session, query: Select[Row], table: type[Row], *, after: str | None, limit: int
) -> tuple[list[Row], str | None]:
    """Returns one page of `query`, the newest first, as `by_age` does."""
    return by_age(session, query, table, order="desc", after=after, limit=limit)


def by_age(
    session: Session, query: Select[Row], table: type[Row], *, order: Order, after: str | None, limit: int
) -> tuple[list[Row], str | None]:
    """Returns one page of `query`, and the cursor of the next page or None at the end.

    The cursor is the id of the page's last row. Raises InvalidRequest where `after` is no row's id.
    """
    if after is not None:
        last = session.get(table, after)
        if last is None:
            raise InvalidRequest(
                f"The cursor {after!r} names nothing that exists.",
                param="after",
                hint="Start again without `after`.",
            )
        key, place = tuple_(table.created_at, table.id), tuple_(last.created_at, last.id)
        query = query.where(key > place if order == "asc" else key < place)
    columns = (table.created_at, table.id)
    ordered = query.order_by(*(one.asc() if order == "asc" else one.desc() for one in columns))
    rows = list(session.scalars(ordered.limit(limit + 1)))
    more = len(rows) > limit
    return rows[:limit], rows[limit - 1].id if more else None
