"""What people do with downloads of base models: submit, find, cancel. Nothing here commits."""

from datetime import datetime, timedelta

from sqlalchemy import delete as sql_delete, select
from sqlalchemy.orm import Session

from app.core.errors import InvalidRequest, QueueFull
from app.core.errors.base_models import DownloadEnded, DownloadNotFound
from app.core.specs.states import UNFINISHED, DownloadState
from app.core.storage import clock, tables
from app.core.storage.ids import new_id
from app.core.storage.paging import newest_first

# How long the record of a download that has ended is stored.
_RECORD_DAYS = 7


def submit(
    session: Session, base_model: str, *, max_waiting: int, now: datetime | None = None
) -> tables.ModelDownloadRow:
    """Put a download in the queue. Returns the one that waits already, where there is one.

    Raises InvalidRequest for a name that is no Hub id, and QueueFull.
    """
    if "/" not in base_model:
        raise InvalidRequest(
            f"{base_model!r} is not a model of the Hub.",
            param="base_model",
            hint="A Hub model is named with its owner, as in 'HuggingFaceTB/SmolLM2-135M-Instruct'.",
        )
    waiting = session.scalars(
        select(tables.ModelDownloadRow).where(tables.ModelDownloadRow.state.in_(UNFINISHED)).with_for_update()
    ).all()
    for row in waiting:
        if row.base_model == base_model:
            return row
    if len(waiting) >= max_waiting:
        raise QueueFull(f"{len(waiting)} downloads are waiting already.", hint="Try again later.")
    download = tables.ModelDownloadRow(
        id=new_id("dl"),
        base_model=base_model,
        state=DownloadState.QUEUED,
        created_at=now or clock.now(session),
    )
    session.add(download)
    session.flush()
    return download


def get(session: Session, download_id: str, *, lock: bool = False) -> tables.ModelDownloadRow:
    """Returns a download by its id, locked until the transaction ends where `lock` says so.

    Raises DownloadNotFound.
    """
    download = session.get(
        tables.ModelDownloadRow, download_id, populate_existing=True, with_for_update=lock or None
    )
    if download is None:
        raise DownloadNotFound(
            f"There is no download {download_id!r}.",
            hint="GET /models/downloads lists those of the last week.",
        )
    return download


def find_page(
    session: Session, *, after: str | None, limit: int
) -> tuple[list[tables.ModelDownloadRow], str | None]:
    """Returns a page of downloads, newest first, and the cursor of the next page."""
    query = select(tables.ModelDownloadRow)
    return newest_first(session, query, tables.ModelDownloadRow, after=after, limit=limit)


def cancel(session: Session, download_id: str, *, now: datetime | None = None) -> tables.ModelDownloadRow:
    """End a download; what has arrived stays in the cache. Raises DownloadNotFound, DownloadEnded."""
    download = get(session, download_id, lock=True)
    if DownloadState(download.state).has_ended:
        raise DownloadEnded(f"Download {download_id} is {download.state} already.")
    download.state = DownloadState.CANCELLED
    download.lease_token = download.lease_expires_at = None
    download.finished_at = now or clock.now(session)
    session.flush()
    return download


def prune(session: Session, *, now: datetime | None = None) -> None:
    """Delete the records of downloads that ended more than a week ago."""
    before = (now or clock.now(session)) - timedelta(days=_RECORD_DAYS)
    session.execute(sql_delete(tables.ModelDownloadRow).where(tables.ModelDownloadRow.finished_at < before))
