"""What people do with exports: submit, find, cancel, retry, delete. Nothing here commits.

What workers do with exports is in app/core/exports/queue.py.
"""

from datetime import datetime

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
from app.core.exports.queue import count_time
from app.core.keys.records import OWNER, Caller
from app.core.specs.export import ExportSpec
from app.core.specs.states import UNFINISHED, ExportState
from app.core.storage import clock, tables
from app.core.storage.ids import new_id
from app.core.storage.paging import newest_first
from app.core.work import admission


def submit(
    session: Session,
    adapter: tables.AdapterRow,
    spec: ExportSpec,
    *,
    max_waiting: int | None,
    job_id: str | None = None,
    caller: Caller = OWNER,
    now: datetime | None = None,
) -> tables.ExportRow:
    """Put an export in the queue, asked for by a caller or by a job.

    Raises QueueFull, KeyQueueFull and ScopeMissing.
    """
    admission.admit(session, tables.ExportRow, caller, spec.priority, noun="export")
    waiting = session.scalar(
        select(func.count()).select_from(tables.ExportRow).where(tables.ExportRow.state.in_(UNFINISHED))
    )
    if max_waiting is not None and (waiting or 0) >= max_waiting:
        raise QueueFull(f"{waiting} exports are waiting already.", hint="Try again later.")
    export = tables.ExportRow(
        id=new_id("exp"),
        adapter_id=adapter.id,
        adapter_name=adapter.name,
        job_id=job_id,
        base_model=adapter.base_model,
        spec=spec.model_dump(mode="json"),
        state=ExportState.QUEUED,
        key_id=caller.key_id or "",
        priority=spec.priority,
        notes=[],
        files=[],
        created_at=now or clock.now(session),
    )
    session.add(export)
    session.flush()
    return export


def get(session: Session, export_id: str, *, lock: bool = False) -> tables.ExportRow:
    """Returns an export by its id, locked until the transaction ends where `lock` says so.

    Raises ExportNotFound.
    """
    export = session.get(tables.ExportRow, export_id, populate_existing=True, with_for_update=lock or None)
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
        tables.ExportRow.adapter_id == adapter_id, tables.ExportRow.state.in_(UNFINISHED)
    )
    return session.scalar(query.limit(1))


def cancel(session: Session, export_id: str, *, now: datetime | None = None) -> tables.ExportRow:
    """End an export. Its worker finds its lease gone and drops the result. Raises ExportAlreadyEnded."""
    export = get(session, export_id, lock=True)
    if ExportState(export.state).has_ended:
        raise ExportAlreadyEnded(f"Export {export_id} is {export.state} already.")
    now = now or clock.now(session)
    if export.state == ExportState.RUNNING and export.started_at is not None:
        count_time(session, export.key_id, export.adapter_name, export.started_at, now)
    export.state = ExportState.CANCELLED
    export.phase = None
    export.lease_token = export.lease_expires_at = None
    export.finished_at = now
    session.flush()
    return export


def change_priority(
    session: Session, export_id: str, priority: int, *, caller: Caller = OWNER
) -> tables.ExportRow:
    """Give a waiting export another priority. Raises ExportNotFound, NotWaiting and ScopeMissing."""
    export = get(session, export_id, lock=True)
    admission.change_priority(export, priority, caller, noun="export")
    session.flush()
    return export


def retry(session: Session, export_id: str) -> tables.ExportRow:
    """Queue a failed or cancelled export again; a complete merged model is used again.

    Raises ExportNotRetryable and KeyQueueFull.
    """
    export = get(session, export_id, lock=True)
    if export.state not in (ExportState.FAILED, ExportState.CANCELLED):
        raise ExportNotRetryable(
            f"Export {export_id} is {export.state}; only a failed or cancelled one can be retried.",
            hint=f"POST /adapters/{export.adapter_id}/exports makes another one.",
        )
    admission.readmit(session, export, noun="export")
    export.state = ExportState.QUEUED
    export.phase = export.error = export.agreement = export.started_at = export.finished_at = None
    export.notes = []
    export.attempts = 0
    export.progress = 0.0
    session.flush()
    return export


def delete(session: Session, export_id: str) -> str:
    """Remove an export that has ended. Returns the key of all its files. Raises ExportNotEnded."""
    export = get(session, export_id, lock=True)
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
