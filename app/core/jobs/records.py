"""What people do with jobs: submit, find, list, cancel, pause, resume, retry.

What workers do with jobs is in app/core/jobs/queue.py. Nothing here commits: the caller's transaction does.
"""

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import ColumnElement, delete as sql_delete, func, or_, select, update
from sqlalchemy.orm import InstrumentedAttribute, Session

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
from app.core.jobs import events, placement
from app.core.jobs.events import StateChange
from app.core.keys.records import OWNER, Caller
from app.core.specs.job import JobSpec
from app.core.specs.states import TRANSITIONS, JobState
from app.core.storage import clock, tables
from app.core.storage.ids import new_id
from app.core.storage.paging import newest_first
from app.core.work import admission
from app.core.work.failures import WorkFailure

_RETRYABLE = (JobState.FAILED, JobState.CANCELLED)
_NAMED_ADAPTERS = 5


def submit(
    session: Session,
    spec: JobSpec,
    *,
    max_queued: int,
    caller: Caller = OWNER,
    now: datetime | None = None,
    flush: bool = True,
) -> tables.JobRow:
    """Put a job of this caller in the queue. Raises QueueFull, KeyQueueFull and ScopeMissing.

    Without `flush` its rows are written at the end of the transaction, together with those of other jobs.
    """
    admission.admit(session, tables.JobRow, caller, spec.priority, noun="job")
    _count_in(session, max_queued)
    job_id = new_id("job")
    now = now or clock.now(session)
    job = tables.JobRow(
        id=job_id,
        name=spec.name or job_id,
        state=JobState.QUEUED,
        spec=spec.model_dump(mode="json"),
        base_model=spec.base_model,
        dataset_id=spec.dataset,
        gpus=placement.count_gpus(spec),
        key_id=caller.key_id or "",
        priority=spec.priority,
        step=0,
        lost_attempts=0,
        last_event_seq=1,
        created_at=now,
        events=[events.first(StateChange(state=JobState.QUEUED), now)],
        metadata_rows=_metadata_rows(spec.metadata),
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
    _set_state(job, JobState.FAILED, now or clock.now(session))
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
        query = query.where(_contains(search))
    return newest_first(session, query, tables.JobRow, after=after, limit=limit)


def count_by_state(session: Session) -> dict[JobState, int]:
    """Returns the number of jobs in each state, 0 included."""
    rows = session.execute(select(tables.JobRow.state, func.count()).group_by(tables.JobRow.state)).all()
    return dict.fromkeys(JobState, 0) | {JobState(state): count for state, count in rows}


def count_waiting(session: Session) -> int:
    """Returns how many jobs wait, those that this transaction has submitted included."""
    waiting: int | None = session.info.get("queued_jobs")
    if waiting is None:
        waiting = session.scalar(select(func.count()).where(tables.JobRow.state == JobState.QUEUED)) or 0
    return waiting


def request_cancel(session: Session, job_id: str, *, now: datetime | None = None) -> tables.JobRow:
    """Cancel a waiting or paused job at once; request that a running one stops. Raises JobAlreadyEnded."""
    now = now or clock.now(session)
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
    now = now or clock.now(session)
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

    Raises JobNotPaused and KeyQueueFull.
    """
    job = _locked(session, job_id)
    if job.pause_requested_at is not None and job.cancel_requested_at is None:
        job.pause_requested_at = None
        events.append(session, job_id, [events.Log(message="The pause is taken back.")])
    elif job.state == JobState.PAUSED:
        admission.readmit(session, job, noun="job")
        _set_state(job, JobState.QUEUED, now or clock.now(session))
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
    """Queue a failed or cancelled job again, from its last checkpoint.

    Raises JobNotRetryable and KeyQueueFull.
    """
    job = _locked(session, job_id)
    if job.state not in _RETRYABLE:
        raise JobNotRetryable(
            f"Job {job_id} is {job.state}; only a failed or cancelled job can be retried.",
            hint=f"POST /jobs/{job_id}/resume goes on with it."
            if job.state == JobState.PAUSED
            else "Submit a new job with POST /jobs to train again.",
        )
    admission.readmit(session, job, noun="job")
    _set_state(job, JobState.QUEUED, now or clock.now(session))
    job.error_code = job.error_message = job.error_hint = None
    job.finished_at = job.cancel_requested_at = None
    job.lost_attempts = 0
    session.flush()
    events.append(session, job_id, [StateChange(state=JobState.QUEUED, reason="retry")])
    return get(session, job_id)


def change_priority(session: Session, job_id: str, priority: int, *, caller: Caller = OWNER) -> tables.JobRow:
    """Give a waiting or paused job another priority. Raises JobNotFound, NotWaiting and ScopeMissing."""
    job = _locked(session, job_id)
    admission.change_priority(job, priority, caller, noun="job")
    session.flush()
    events.append(session, job_id, [events.Log(message=f"The priority is {priority} now.")])
    return get(session, job_id)


def change_metadata(session: Session, job_id: str, metadata: Mapping[str, str]) -> tables.JobRow:
    """Replace a job's metadata, in whatever state it is. Nothing that trains reads it. Raises JobNotFound."""
    job = _locked(session, job_id)
    job.spec = {**job.spec, "metadata": dict(metadata)}
    session.execute(sql_delete(tables.JobMetadataRow).where(tables.JobMetadataRow.job_id == job_id))
    for row in _metadata_rows(metadata):
        row.job_id = job_id
        session.add(row)
    session.flush()
    return get(session, job_id)


def record_result_size(session: Session, job_id: str, size_bytes: int | None) -> None:
    """Record the size of a job's loss curve as a file; null: it has to be measured again."""
    session.execute(update(tables.JobRow).where(tables.JobRow.id == job_id).values(result_bytes=size_bytes))


def find_unmeasured(session: Session, *, limit: int) -> list[str]:
    """Returns ids of jobs that have succeeded and whose result file has not been measured, newest first."""
    job = tables.JobRow
    query = select(job.id).where(job.state == JobState.SUCCEEDED, job.result_bytes.is_(None))
    return list(session.scalars(query.order_by(job.finished_at.desc()).limit(limit)))


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
    session.execute(sql_delete(tables.TrackedRunRow).where(tables.TrackedRunRow.job_id == job_id))
    session.execute(sql_delete(tables.JobMetadataRow).where(tables.JobMetadataRow.job_id == job_id))
    session.execute(sql_delete(tables.JobRow).where(tables.JobRow.id == job_id))


def _have(metadata: Mapping[str, str]) -> list[ColumnElement[bool]]:
    entry = tables.JobMetadataRow
    if not metadata:
        return [tables.JobRow.id.not_in(select(entry.job_id))]
    return [
        tables.JobRow.id.in_(select(entry.job_id).where(entry.key == key, entry.value == value))
        for key, value in metadata.items()
    ]


def _contains(search: str) -> ColumnElement[bool]:
    job, entry = tables.JobRow, tables.JobMetadataRow

    def contains(*columns: InstrumentedAttribute[str]) -> ColumnElement[bool]:
        return or_(*(column.icontains(search, autoescape=True) for column in columns))

    tagged = select(entry.job_id).where(contains(entry.key, entry.value))
    return or_(contains(job.name, job.id, job.base_model), job.id.in_(tagged))


def _metadata_rows(metadata: Mapping[str, str]) -> list[tables.JobMetadataRow]:
    return [tables.JobMetadataRow(key=key, value=value) for key, value in metadata.items()]


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
    job.queued_at = now if state is JobState.QUEUED else job.queued_at
    job.finished_at = now if state.has_ended else None
