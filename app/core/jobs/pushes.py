"""Pushes of jobs to the Hub: the export that a job gets as it succeeds, and its end in the job's events."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.core.errors.jobs import JobNotFound
from app.core.exports import records as export_records
from app.core.exports.queue import ExportLease
from app.core.jobs import events
from app.core.jobs.events import AnyEventData, Log, Warn
from app.core.jobs.queue import JobLease
from app.core.keys.records import Caller
from app.core.specs.states import ExportState
from app.core.storage import tables


def submit(session: Session, lease: JobLease, adapter: tables.AdapterRow) -> None:
    """Put the push of a job's adapter in the queue of exports, if its spec has one."""
    push = lease.spec.push_to_hub
    if push is None:
        return
    # It counts for the job's key and waits with the job's priority, which may have been changed. Scopes and
    # limits of the key were checked for the job: nothing is refused here.
    job = tables.JobRow
    key_id, priority = session.execute(select(job.key_id, job.priority).where(job.id == lease.job_id)).one()
    spec = push.as_export().model_copy(update={"priority": priority})
    export = export_records.submit(
        session, adapter, spec, max_waiting=None, job_id=lease.job_id, caller=Caller(key_id=key_id)
    )
    line = Log(message=f"{adapter.name} will be pushed to {push.repository}: export {export.id}.")
    events.append(session, lease.job_id, [line])


def find(session: Session, job_id: str) -> tables.ExportRow | None:
    """Returns the push of a job, or None."""
    row = tables.ExportRow
    return session.scalar(select(row).where(row.job_id == job_id).order_by(row.created_at.desc()).limit(1))


def record_end(session: Session, lease: ExportLease, state: ExportState, columns: Mapping[str, Any]) -> None:
    """Add the end of an export to the events of the job that it was made for, if there is one."""
    job_id = session.scalar(select(tables.ExportRow.job_id).where(tables.ExportRow.id == lease.export_id))
    if job_id is None:
        return
    entry: AnyEventData = Log(message=f"The adapter is on the Hub: {columns.get('url')}")
    if state is ExportState.FAILED:
        entry = _explain_failure(lease.export_id, columns["error"])
    try:
        events.append(session, job_id, [entry])
    except JobNotFound:  # It was deleted; what is on the Hub stays.
        return


def _explain_failure(export_id: str, error: Mapping[str, str | None]) -> Warn:
    retry = f"POST /exports/{export_id}/retry"
    hint = (error["hint"] or "").replace("POST /exports/{id}/retry", retry)
    reason = (error["message"] or "").removesuffix(".")
    parts = [f"The adapter could not be pushed to the Hub: {reason}.", hint]
    if retry not in hint:
        parts.append(f"{retry} tries again.")
    return Warn(code="hub_push_failed", message=" ".join(part for part in parts if part))
