"""Cursor pages over a table with `created_at` and `id`: newest first, stable while rows are being added."""

from typing import TypeVar

from sqlalchemy import Select, tuple_
from sqlalchemy.orm import Session

from app.core.errors import InvalidRequest
from app.core.storage import tables

Row = TypeVar(
    "Row",
    tables.JobRow,
    tables.DatasetRow,
    tables.AdapterRow,
    tables.AdapterImportRow,
    tables.ExportRow,
    tables.ModelDownloadRow,
    tables.WebhookRow,
    tables.WebhookDeliveryRow,
)


def newest_first(
    session: Session, query: Select[Row], table: type[Row], *, after: str | None, limit: int
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
        query = query.where(tuple_(table.created_at, table.id) < tuple_(last.created_at, last.id))
    ordered = query.order_by(table.created_at.desc(), table.id.desc()).limit(limit + 1)
    rows = list(session.scalars(ordered))
    more = len(rows) > limit
    return rows[:limit], rows[limit - 1].id if more else None
