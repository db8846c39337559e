"""What people do with exports: submit, find, cancel, retry, delete. Nothing here commits.

What workers do with exports is in app/core/exports/queue.py.
"""

from datetime import UTC, datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.core.errors import QueueFull
from app.core.errors.exports import (
    ExportAlreadyEnded,
    ExportNotEnded,
    ExportNotFound,
    ExportNotReady,
    ExportNotRetryable,
)
from app.core.specs.export import ExportSpec
from app.core.specs.states import ExportState
from app.core.storage import tables
from app.core.storage.ids import new_id
from app.core.storage.paging import newest_first

_WAITING = (ExportState.QUEUED, ExportState.RUNNING)


def submit(
    session: Session,
    adapter: tables.AdapterRow,
    spec: ExportSpec,
    *,
    max_waiting: int,
    now: datetime | None = None,
) -> tables.ExportRow:
    """Put an export in the queue. Raises QueueFull."""
    waiting = session.scalar(
        select(func.count()).select_from(tables.ExportRow).where(tables.ExportRow.state.in_(_WAITING))
    )
    if (waiting or 0) >= max_waiting:
        raise QueueFull(f"{waiting} exports are waiting already.", hint="Try again later.")
    export = tables.ExportRow(
        id=new_id("exp"),
        adapter_id=adapter.id,
        adapter_name=adapter.name,
        base_model=adapter.base_model,
        spec=spec.model_dump(mode="json"),
        state=ExportState.QUEUED,
        notes=[],
        files=[],
        created_at=now or datetime.now(UTC),
    )
    session.add(export)
    session.flush()
    return export


def get(session: Session, export_id: str) -> tables.ExportRow:
    """Returns an export by its id. Raises ExportNotFound."""
    export = session.get(tables.ExportRow, export_id, populate_existing=True)
    if export is None:
        raise ExportNotFound(f"There is no export {export_id!r}.", hint="GET /exports lists them.")
    return export


def find_page(
    session: Session, *, adapter_id: str | None, after: str | None, limit: int
) -> tuple[list[tables.ExportRow], str | None]:
    """Returns a page of exports, of one adapter or of all, newest first, and the cursor of the next page."""
    query = select(tables.ExportRow)
    if adapter_id is not None:
        query = query.where(tables.ExportRow.adapter_id == adapter_id)
    return newest_first(session, query, tables.ExportRow, after=after, limit=limit)


def find_waiting(session: Session, adapter_id: str) -> str | None:
    """Returns the id of an export of this adapter that has not ended, or None."""
    query = select(tables.ExportRow.id).where(
        tables.ExportRow.adapter_id == adapter_id, tables.ExportRow.state.in_(_WAITING)
    )
    return session.scalar(query.limit(1))


def cancel(session: Session, export_id: str, *, now: datetime | None = None) -> tables.ExportRow:
    """End an export. Its worker finds its lease gone and drops the result. Raises ExportAlreadyEnded."""
    export = _locked(session, export_id)
    if ExportState(export.state).has_ended:
        raise ExportAlreadyEnded(f"Export {export_id} is {export.state} already.")
    export.state = ExportState.CANCELLED
    export.phase = None
    export.lease_token = export.lease_expires_at = None
    export.finished_at = now or datetime.now(UTC)
    session.flush()
    return export


def retry(session: Session, export_id: str) -> tables.ExportRow:
    """Queue a failed or cancelled export again; a complete merged model is used again.

    Raises ExportNotRetryable.
    """
    export = _locked(session, export_id)
    if export.state not in (ExportState.FAILED, ExportState.CANCELLED):
        raise ExportNotRetryable(
            f"Export {export_id} is {export.state}; only a failed or cancelled one can be retried.",
            hint=f"POST /adapters/{export.adapter_id}/exports makes another one.",
        )
    export.state = ExportState.QUEUED
    export.phase = export.error = export.agreement = export.started_at = export.finished_at = None
    export.notes = []
    export.attempts = 0
    export.progress = 0.0
    session.flush()
    return export


def delete(session: Session, export_id: str) -> str:
    """Remove an export that has ended. Returns the key of all its files. Raises ExportNotEnded."""
    export = _locked(session, export_id)
    if not ExportState(export.state).has_ended:
        raise ExportNotEnded(
            f"Export {export_id} is {export.state}.",
            hint=f"Cancel it first: POST /exports/{export_id}/cancel.",
        )
    session.delete(export)
    return name_folder(export_id)


def check_downloadable(export: tables.ExportRow) -> None:
    """Raise ExportNotReady where the export has no files to download."""
    if export.state != ExportState.SUCCEEDED:
        raise ExportNotReady(
            f"Export {export.id} is {export.state}.", hint=f"GET /exports/{export.id} says how far it is."
        )
    if not export.files:
        raise ExportNotReady(f"Export {export.id} was pushed to {export.url}; it has no files here.")


def name_folder(export_id: str) -> str:
    """Returns the key, in the artifact store, of all files of an export."""
    return f"exports/{export_id}"


def _locked(session: Session, export_id: str) -> tables.ExportRow:
    """Returns the export, its row locked until the transaction ends. Raises ExportNotFound."""
    query = select(tables.ExportRow).where(tables.ExportRow.id == export_id).with_for_update()
    session.scalar(query.execution_options(populate_existing=True))
    return get(session, export_id)
