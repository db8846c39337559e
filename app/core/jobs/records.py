"""What people do with jobs: submit, find, list, cancel, pause, resume, retry.

What workers do with jobs is in app/core/jobs/queue.py. Nothing here commits: the caller's transaction does.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from sqlalchemy import ColumnElement, Text, cast, delete as sql_delete, func, or_, select
from sqlalchemy.orm import Session

from app.core.errors import QueueFull
from app.core.errors.jobs import (
    JobAlreadyEnded,
    JobHasAdapters,
    JobNotEnded,
    JobNotFound,
    JobNotPausable,
    JobNotPaused,
    JobNotRetryable,
)
from app.core.jobs import events
from app.core.jobs.events import StateChange
from app.core.specs.job import JobSpec
from app.core.specs.states import TRANSITIONS, JobState
from app.core.storage import tables
from app.core.storage.ids import new_id
from app.core.storage.paging import newest_first
from app.core.work.failures import WorkFailure

_RETRYABLE = (JobState.FAILED, JobState.CANCELLED)
_NAMED_ADAPTERS = 5


def submit(
    session: Session, spec: JobSpec, *, max_queued: int, now: datetime | None = None, flush: bool = True
) -> tables.JobRow:
    """Put a job at the end of the queue. Raises QueueFull.

    Without `flush` its rows are written at the end of the transaction, together with those of other jobs.
    """
    _count_in(session, max_queued)
    job_id = new_id("job")
    job = tables.JobRow(
        id=job_id,
        name=spec.name or job_id,
        state=JobState.QUEUED,
        spec=spec.model_dump(mode="json"),
        base_model=spec.base_model,
        dataset_id=spec.dataset,
        step=0,
        lost_attempts=0,
        last_event_seq=1,
        created_at=now or datetime.now(UTC),
        events=[events.first(StateChange(state=JobState.QUEUED))],
    )
    session.add(job)
    if flush:
        session.flush()
    return job


def fail_unstarted(
    session: Session, job_id: str, failure: WorkFailure, *, now: datetime | None = None
) -> tables.JobRow:
    """Fail a waiting job whose datasets can't be trained on."""
    job = _locked(session, job_id)
    _set_state(job, JobState.FAILED, now or datetime.now(UTC))
    job.error_code, job.error_message, job.error_hint = failure.code, failure.message, failure.hint
    session.flush()
    change = StateChange(state=JobState.FAILED, reason=failure.message, error_code=failure.code)
    events.append(session, job_id, [change])
    return get(session, job_id)


def get(session: Session, job_id: str) -> tables.JobRow:
    """Returns the job as it is in the database now. Raises JobNotFound."""
    job = session.get(tables.JobRow, job_id, populate_existing=True)
    if job is None:
        raise JobNotFound(f"There is no job {job_id!r}.", hint="GET /jobs lists them.")
    return job


def find_page(
    session: Session,
    *,
    state: JobState | None = None,
    metadata: Mapping[str, str] | None = None,
    search: str | None = None,
    after: str | None,
    limit: int,
) -> tuple[list[tables.JobRow], str | None]:
    """Returns a page of jobs, newest first, and the cursor of the next page.

    `metadata` selects jobs that have all of its entries; an empty one, jobs without metadata. `search`
    selects jobs whose name, id, base model or metadata contains it, in whatever case.
    """
    query = select(tables.JobRow)
    if state is not None:
        query = query.where(tables.JobRow.state == state)
    if metadata is not None:
        query = query.where(*_have(metadata))
    if search:
        metadata_text = cast(tables.JobRow.spec["metadata"], Text)
        columns = (tables.JobRow.name, tables.JobRow.id, tables.JobRow.base_model, metadata_text)
        query = query.where(or_(*(column.icontains(search, autoescape=True) for column in columns)))
    return newest_first(session, query, tables.JobRow, after=after, limit=limit)


def count_by_state(session: Session) -> dict[JobState, int]:
    """Returns the number of jobs in each state, 0 included."""
    rows = session.execute(select(tables.JobRow.state, func.count()).group_by(tables.JobRow.state)).all()
    return dict.fromkeys(JobState, 0) | {JobState(state): count for state, count in rows}


def find_queue_positions(session: Session, rows: Sequence[tables.JobRow]) -> dict[str, int]:
    """Returns the places of all waiting jobs in the queue, from 1; nothing where none of `rows` waits."""
    if not any(row.state == JobState.QUEUED for row in rows):
        return {}
    waiting = select(tables.JobRow.id).where(tables.JobRow.state == JobState.QUEUED)
    ids = session.scalars(waiting.order_by(tables.JobRow.created_at, tables.JobRow.id))
    return {job_id: place for place, job_id in enumerate(ids, start=1)}


def count_waiting(session: Session) -> int:
    """Returns how many jobs wait, those that this transaction has submitted included."""
    waiting: int | None = session.info.get("queued_jobs")
    if waiting is None:
        waiting = session.scalar(select(func.count()).where(tables.JobRow.state == JobState.QUEUED)) or 0
    return waiting


def find_oldest_queued_at(session: Session) -> datetime | None:
    """Returns when the job that has waited longest was submitted, or None."""
    oldest = select(tables.JobRow.created_at).where(tables.JobRow.state == JobState.QUEUED)
    return session.scalar(oldest.order_by(tables.JobRow.created_at).limit(1))


def request_cancel(session: Session, job_id: str, *, now: datetime | None = None) -> tables.JobRow:
    """Cancel a waiting or paused job at once; request that a running one stops. Raises JobAlreadyEnded."""
    now = now or datetime.now(UTC)
    job = _unended(session, job_id)
    if job.state in (JobState.QUEUED, JobState.PAUSED):
        _set_state(job, JobState.CANCELLED, now)
        events.append(session, job_id, [StateChange(state=JobState.CANCELLED)])
    elif job.cancel_requested_at is None:
        job.cancel_requested_at = now
        events.append(session, job_id, [events.Log(message="Cancel requested: stopping after this step.")])
    session.flush()
    return get(session, job_id)


def request_pause(session: Session, job_id: str, *, now: datetime | None = None) -> tables.JobRow:
    """Pause a waiting job at once; request that a running one stops after its step with a checkpoint.

    Raises JobAlreadyEnded and JobNotPausable.
    """
    now = now or datetime.now(UTC)
    job = _unended(session, job_id)
    if job.state == JobState.PAUSED:
        raise JobNotPausable(f"Job {job_id} is paused already.", hint=f"POST /jobs/{job_id}/resume goes on.")
    if job.cancel_requested_at is not None:
        raise JobNotPausable(
            f"Job {job_id} is being cancelled.",
            hint=f"Once it is, POST /jobs/{job_id}/retry goes on with it.",
        )
    if job.state == JobState.QUEUED:
        _set_state(job, JobState.PAUSED, now)
        events.append(session, job_id, [StateChange(state=JobState.PAUSED)])
    elif job.pause_requested_at is None:
        job.pause_requested_at = now
        events.append(session, job_id, [events.Log(message="Pause requested: stopping after this step.")])
    session.flush()
    return get(session, job_id)


def resume(session: Session, job_id: str, *, now: datetime | None = None) -> tables.JobRow:
    """Queue a paused job again, from its last checkpoint, or withdraw a pause that was only requested.

    Raises JobNotPaused.
    """
    job = _locked(session, job_id)
    if job.pause_requested_at is not None and job.cancel_requested_at is None:
        job.pause_requested_at = None
        events.append(session, job_id, [events.Log(message="The pause is taken back.")])
    elif job.state == JobState.PAUSED:
        _set_state(job, JobState.QUEUED, now or datetime.now(UTC))
        events.append(session, job_id, [StateChange(state=JobState.QUEUED, reason="resumed")])
    else:
        state = JobState(job.state)
        raise JobNotPaused(
            f"Job {job_id} is {state}, not paused.",
            hint=f"POST /jobs/{job_id}/retry runs it again."
            if state in _RETRYABLE
            else "Only a paused job can be resumed.",
        )
    session.flush()
    return get(session, job_id)


def retry(session: Session, job_id: str, *, now: datetime | None = None) -> tables.JobRow:
    """Queue a failed or cancelled job again, from its last checkpoint. Raises JobNotRetryable."""
    job = _locked(session, job_id)
    if job.state not in _RETRYABLE:
        raise JobNotRetryable(
            f"Job {job_id} is {job.state}; only a failed or cancelled job can be retried.",
            hint=f"POST /jobs/{job_id}/resume goes on with it."
            if job.state == JobState.PAUSED
            else "Submit a new job with POST /jobs to train again.",
        )
    _set_state(job, JobState.QUEUED, now or datetime.now(UTC))
    job.error_code = job.error_message = job.error_hint = None
    job.finished_at = job.cancel_requested_at = None
    job.lost_attempts = 0
    session.flush()
    events.append(session, job_id, [StateChange(state=JobState.QUEUED, reason="retry")])
    return get(session, job_id)


def change_metadata(session: Session, job_id: str, metadata: Mapping[str, str]) -> tables.JobRow:
    """Replace a job's metadata, in whatever state it is. Nothing that trains reads it. Raises JobNotFound."""
    job = _locked(session, job_id)
    job.spec = {**job.spec, "metadata": dict(metadata)}
    session.flush()
    return get(session, job_id)


def delete(session: Session, job_id: str) -> None:
    """Remove an ended job with its attempts and events. Its folder is the caller's to delete.

    Raises JobNotFound, JobNotEnded, and JobHasAdapters: an adapter's record names the job that made it.
    """
    job = _locked(session, job_id)
    if not JobState(job.state).has_ended:
        raise JobNotEnded(
            f"Job {job_id} is {job.state}; only a job that has ended can be deleted.",
            hint=f"Cancel it first: POST /jobs/{job_id}/cancel.",
        )
    adapters = select(tables.AdapterRow).where(tables.AdapterRow.job_id == job_id)
    made = list(session.scalars(adapters.order_by(tables.AdapterRow.created_at).limit(_NAMED_ADAPTERS)))
    if made:
        names = ", ".join(repr(adapter.name) for adapter in made)
        raise JobHasAdapters(
            f"Job {job_id} made {names}, which {'exists' if len(made) == 1 else 'exist'} still.",
            hint=f"Delete what it made first: DELETE /adapters/{made[0].id}.",
        )
    session.execute(sql_delete(tables.EventRow).where(tables.EventRow.job_id == job_id))
    session.execute(sql_delete(tables.AttemptRow).where(tables.AttemptRow.job_id == job_id))
    session.execute(sql_delete(tables.JobRow).where(tables.JobRow.id == job_id))


def _have(metadata: Mapping[str, str]) -> list[ColumnElement[bool]]:
    column = tables.JobRow.spec["metadata"]
    if not metadata:
        return [or_(column.as_string().is_(None), column.as_string() == "{}")]
    return [column[key].as_string() == value for key, value in metadata.items()]


def _count_in(session: Session, max_queued: int) -> None:
    """Count one more job in the queue; the database is queried once per transaction. Raises QueueFull."""
    waiting = count_waiting(session)
    if waiting >= max_queued:
        raise QueueFull(f"{waiting} jobs are waiting already.", hint="Try again when some have finished.")
    session.info["queued_jobs"] = waiting + 1


def _unended(session: Session, job_id: str) -> tables.JobRow:
    job = _locked(session, job_id)
    state = JobState(job.state)
    if state.has_ended:
        raise JobAlreadyEnded(f"Job {job_id} is {state} already.", hint="GET /jobs/{id} shows how it ended.")
    return job


def _locked(session: Session, job_id: str) -> tables.JobRow:
    job = session.scalar(select(tables.JobRow).where(tables.JobRow.id == job_id).with_for_update())
    if job is None:
        raise JobNotFound(f"There is no job {job_id!r}.", hint="GET /jobs lists them.")
    return job


def _set_state(job: tables.JobRow, state: JobState, now: datetime) -> None:
    assert state in TRANSITIONS[JobState(job.state)], (job.state, state)
    job.state = state
    job.phase = None
    job.finished_at = now if state.has_ended else None
