"""The durable job queue, as a worker uses it: claim, heartbeat, record, finish, release, requeue expired.

It differs from `WorkQueue`: every attempt has a row, every change of state an event, and a person may ask a
running job to pause or to cancel. Submit, cancel, pause and retry are in records.py. Nothing here commits.
"""

from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import ColumnElement, and_, func, select, true, update
from sqlalchemy.orm import Session

from app.core.errors.work import LeaseLost
from app.core.jobs import events, placement
from app.core.jobs.events import AnyEventData, StateChange
from app.core.jobs.keys import work_done
from app.core.jobs.placement import Host
from app.core.specs.job import JobSpec
from app.core.specs.states import ExitReason, JobState, Phase, StopRequest
from app.core.storage import clock, tables
from app.core.work.failures import WorkFailure
from app.core.work.leases import RELEASED, Leases, WorkLease

# Workers that claim at the same moment choose the same job.
_MOST_TRIES = 16

LEASES = Leases(tables.JobRow, tables.JobRow.id, "job", tables.JobRow.state == JobState.RUNNING)


@dataclass(frozen=True)
class JobLease(WorkLease):
    """A worker's right to run one attempt at a job."""

    attempt: int
    worker_id: str
    spec: JobSpec
    dataset_id: str
    gpus: int = 1

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self.key


@dataclass(frozen=True)
class JobProgress:
    """How far a running job is; None leaves the recorded value."""

    phase: Phase | None = None
    step: int | None = None
    total_steps: int | None = None
    epoch: float | None = None
    loss: float | None = None
    eta_seconds: float | None = None


def claim(
    session: Session,
    worker_id: str,
    *,
    lease_seconds: float,
    host: Host | None = None,
    now: datetime | None = None,
) -> JobLease | None:
    """Take a waiting job, or None. Safe against other workers on SQLite and PostgreSQL.

    It is the one that `placement.choose` finds for the host; without `host`, the next one in turn.
    """
    now = now or clock.now(session)
    if host is None:
        claimed = _claim(session, true(), lease_seconds=lease_seconds, now=now)
    else:
        claimed = _claim_chosen(session, host, lease_seconds=lease_seconds, now=now)
    if claimed is None:
        return None
    job, token = claimed
    number = len(job.attempts) + 1
    session.add(tables.AttemptRow(job_id=job.id, number=number, worker_id=worker_id, started_at=now))
    events.append(
        session, job.id, [StateChange(state=JobState.RUNNING, phase=Phase.PREPARING, attempt=number)]
    )
    spec = JobSpec.model_validate(job.spec)
    return JobLease(job.id, token, number, worker_id, spec, job.dataset_id, job.gpus)


def _claim_chosen(
    session: Session, host: Host, *, lease_seconds: float, now: datetime
) -> tuple[tables.JobRow, str] | None:
    """Claim the job that is best for the host, or the next one where another worker takes it just now."""
    for _ in range(_MOST_TRIES):
        job_id = placement.choose(session, host, lease_seconds=lease_seconds, now=now)
        if job_id is None:
            return None
        claimed = _claim(session, tables.JobRow.id == job_id, lease_seconds=lease_seconds, now=now)
        if claimed is not None:
            placement.record_taken(session, host, claimed[0].gpus)
            return claimed
        host = replace(host, running={*host.running, job_id})
    return None


def _claim(
    session: Session, is_wanted: ColumnElement[bool], *, lease_seconds: float, now: datetime
) -> tuple[tables.JobRow, str] | None:
    return LEASES.claim(
        session,
        is_free=and_(tables.JobRow.state == JobState.QUEUED, is_wanted),
        lease_seconds=lease_seconds,
        now=now,
        state=JobState.RUNNING,
        phase=Phase.PREPARING,
        started_at=func.coalesce(tables.JobRow.started_at, now),
    )


def heartbeat(
    session: Session, lease: JobLease, *, lease_seconds: float, now: datetime | None = None
) -> None:
    """Extend the lease. Raises LeaseLost."""
    LEASES.extend(session, lease, lease_seconds=lease_seconds, now=now)


def find_stop_request(session: Session, lease: JobLease) -> StopRequest | None:
    """The stop that a person requested of the job, or None. Raises LeaseLost."""
    row = session.execute(
        select(tables.JobRow.cancel_requested_at, tables.JobRow.pause_requested_at).where(
            tables.JobRow.id == lease.job_id, tables.JobRow.lease_token == lease.token
        )
    ).one_or_none()
    if row is None:
        raise LeaseLost
    if row.cancel_requested_at is not None:
        return StopRequest.CANCEL
    return StopRequest.PAUSE if row.pause_requested_at is not None else None


def find_phase(session: Session, lease: JobLease) -> Phase | None:
    """The phase in the job's row."""
    phase = session.scalar(select(tables.JobRow.phase).where(tables.JobRow.id == lease.job_id))
    return Phase(phase) if phase else None


def record(
    session: Session, lease: JobLease, entries: list[AnyEventData], progress: JobProgress | None = None
) -> None:
    """Write events and progress of a running job. Raises LeaseLost."""
    changes = {k: v for k, v in vars(progress or JobProgress()).items() if v is not None}
    # Without changes the guard still has to hold, and on PostgreSQL it locks the row.
    LEASES.update(session, lease, **(changes or {"lease_token": lease.token}))
    events.append(session, lease.job_id, entries)


def succeed(session: Session, lease: JobLease, *, adapter_name: str, now: datetime | None = None) -> None:
    """End the job as succeeded; its adapter row is added by the caller in this transaction."""
    change = StateChange(state=JobState.SUCCEEDED, adapter=adapter_name)
    _end(session, lease, change, ExitReason.SUCCEEDED, now)


def fail(session: Session, lease: JobLease, failure: WorkFailure, *, now: datetime | None = None) -> None:
    """End the job as failed, with the reason. Raises LeaseLost."""
    change = StateChange(state=JobState.FAILED, reason=failure.message, error_code=failure.code)
    _end(session, lease, change, ExitReason.FAILED, now, failure)


def finish_cancelled(session: Session, lease: JobLease, *, now: datetime | None = None) -> None:
    """End the job as cancelled. Raises LeaseLost."""
    _end(session, lease, StateChange(state=JobState.CANCELLED), ExitReason.CANCELLED, now)


def release(session: Session, lease: JobLease, *, reason: str, now: datetime | None = None) -> None:
    """Put a stopped job back in the queue, or cancel or pause it where a person requested that.

    Raises LeaseLost.
    """
    request = find_stop_request(session, lease)
    if request is StopRequest.CANCEL:
        return finish_cancelled(session, lease, now=now)
    if request is StopRequest.PAUSE:
        change = StateChange(state=JobState.PAUSED)
        return _leave(session, lease, change, ExitReason.PAUSED, now or clock.now(session), eta_seconds=None)
    change = StateChange(state=JobState.QUEUED, reason=reason)
    _leave(session, lease, change, ExitReason.HANDED_BACK, now or clock.now(session))


def give_up_attempt(
    session: Session,
    lease: JobLease,
    failure: WorkFailure,
    *,
    max_lost_attempts: int,
    now: datetime | None = None,
) -> JobState:
    """The training process died: queue the job again, or fail it when that happened too often."""
    job = session.get(tables.JobRow, lease.job_id, populate_existing=True)
    if job is None or job.lease_token != lease.token:
        raise LeaseLost
    return _lose(session, job, ExitReason.PROCESS_DIED, failure, max_lost_attempts, now or clock.now(session))


def requeue_expired(
    session: Session, *, max_lost_attempts: int, now: datetime | None = None
) -> list[tuple[str, JobState]]:
    """Take running jobs whose lease has expired away from their worker; returns ids and new states."""
    now = now or clock.now(session)
    failure = WorkFailure(
        "worker_lost",
        "The worker stopped answering while it ran this job.",
        "Look at the worker's own log; POST /jobs/{id}/retry goes on from the last checkpoint.",
    )
    return [
        (job.id, _lose(session, job, ExitReason.WORKER_LOST, failure, max_lost_attempts, now))
        for job in LEASES.find_expired(session, now)
    ]


def find_running(session: Session) -> dict[str, str]:
    """Returns the ids of the workers that run jobs now, by the ids of the jobs."""
    attempts = tables.AttemptRow
    found = session.execute(
        select(attempts.job_id, attempts.worker_id)
        .join(tables.JobRow, tables.JobRow.id == attempts.job_id)
        .where(tables.JobRow.state == JobState.RUNNING, attempts.ended_at.is_(None))
    )
    return {row.job_id: row.worker_id for row in found}


def _lose(
    session: Session,
    job: tables.JobRow,
    exit_reason: ExitReason,
    failure: WorkFailure,
    max_lost_attempts: int,
    now: datetime,
) -> JobState:
    """Queue a job again after its worker or process has ended; fail, cancel or pause it where that is due."""
    lease = _present_lease(job)
    lost = job.lost_attempts + 1
    if job.cancel_requested_at is not None:
        _end(session, lease, StateChange(state=JobState.CANCELLED), exit_reason, now)
        return JobState.CANCELLED
    if job.pause_requested_at is not None:
        change = StateChange(state=JobState.PAUSED, reason=failure.message)
        _leave(session, lease, change, exit_reason, now, lost_attempts=lost, eta_seconds=None)
        return JobState.PAUSED
    if lost >= max_lost_attempts:
        last = WorkFailure(
            failure.code, f"{failure.message} That was attempt {lost} to end so.", failure.hint
        )
        change = StateChange(state=JobState.FAILED, reason=last.message, error_code=last.code)
        _end(session, lease, change, exit_reason, now, last)
        return JobState.FAILED
    change = StateChange(state=JobState.QUEUED, reason=failure.message)
    _leave(session, lease, change, exit_reason, now, lost_attempts=lost)
    return JobState.QUEUED


def _present_lease(job: tables.JobRow) -> JobLease:
    """The lease in the job's row, whichever worker has it."""
    last = job.attempts[-1]
    spec = JobSpec.model_validate(job.spec)
    return JobLease(job.id, job.lease_token or "", last.number, last.worker_id, spec, job.dataset_id)


def _end(
    session: Session,
    lease: JobLease,
    change: StateChange,
    exit_reason: ExitReason,
    now: datetime | None,
    failure: WorkFailure | None = None,
) -> None:
    now = now or clock.now(session)
    columns: dict[str, object] = {"finished_at": now, "eta_seconds": None}
    if failure:
        columns |= {
            "error_code": failure.code,
            "error_message": failure.message,
            "error_hint": failure.hint,
        }
    _leave(session, lease, change, exit_reason, now, **columns)


def _leave(
    session: Session,
    lease: JobLease,
    change: StateChange,
    exit_reason: ExitReason,
    now: datetime,
    **columns: object,
) -> None:
    """Give up the lease: change the state, close the attempt, record an event."""
    LEASES.update(
        session,
        lease,
        state=change.state,
        phase=None,
        **RELEASED,
        pause_requested_at=None,
        **({"queued_at": now} if change.state is JobState.QUEUED else {}),
        **columns,
    )
    session.execute(
        update(tables.AttemptRow)
        .where(tables.AttemptRow.job_id == lease.job_id, tables.AttemptRow.number == lease.attempt)
        .values(ended_at=now, exit_reason=exit_reason)
    )
    work_done.record(session, lease.job_id, lease.attempt, now)
    events.append(session, lease.job_id, [change.model_copy(update={"attempt": lease.attempt})])
