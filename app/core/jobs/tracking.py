"""A job's runs in experiment trackers: how far each tracker is, and what it still lacks.

The job's recorded events are what trackers get, so an outage of a tracker, of the worker or of both loses no
point. Nothing here commits or knows a tracker's package.
"""

from dataclasses import dataclass

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.core.errors.work import LeaseLost
from app.core.jobs import events
from app.core.jobs.events import AnyEventData, Evaluation, Event, Metrics
from app.core.jobs.queue import JobLease
from app.core.specs.states import JobState
from app.core.specs.tracking import Tracker
from app.core.storage import tables

POINT_TYPES = ("metrics", "eval", "final_eval")


@dataclass(frozen=True)
class TrackedRun:
    """A worker's right to write a job's run in one tracker, and what that tracker has of the job."""

    job_id: str
    tracker: Tracker
    token: str
    attempt: int
    run_id: str | None
    seq: int
    step: int
    eval_step: int

    def lacks(self, event: Event) -> bool:
        """Whether the tracker has no such point yet: a job that resumes repeats the steps that it lost."""
        if isinstance(event.data, Metrics):
            return event.data.step > self.step
        return not isinstance(event.data, Evaluation) or event.data.step > self.eval_step


def begin(session: Session, lease: JobLease, tracker: Tracker) -> TrackedRun:
    """Take over the run of a job that this worker runs, or has just run.

    Raises LeaseLost where another worker runs the job now, or the job is deleted.
    """
    _find_end(session, lease.job_id, lease.token, lease.attempt)
    row = session.get(tables.TrackedRunRow, (lease.job_id, tracker), populate_existing=True)
    if row is None:
        row = tables.TrackedRunRow(
            job_id=lease.job_id, tracker=tracker, seq=0, step=-1, eval_step=-1, points=0
        )
        session.add(row)
    row.token, row.problem, row.is_complete = lease.token, None, False
    session.flush()
    return _read(row, lease.attempt)


def read(session: Session, run: TrackedRun) -> TrackedRun:
    """The run as it is recorded now. Raises LeaseLost."""
    return _update(session, run, token=run.token)


def find_next(session: Session, run: TrackedRun, *, limit: int) -> tuple[list[Event], JobState | None]:
    """Returns the next events that may be points of the run, oldest first, and the end as `find_end` does.

    Raises LeaseLost: events of another worker's attempt are for that worker to deliver.
    """
    end = find_end(session, run)
    return events.read(session, run.job_id, after=run.seq, limit=limit, types=POINT_TYPES), end


def find_end(session: Session, run: TrackedRun) -> JobState | None:
    """Returns the state of the job once this worker's attempt is over, None before.

    Raises LeaseLost where another worker runs the job now, or the job is deleted.
    """
    return _find_end(session, run.job_id, run.token, run.attempt)


def count_missing(session: Session, run: TrackedRun) -> int:
    """Returns how many recorded points of the job the tracker lacks, up to 10,000."""
    found = events.read(session, run.job_id, after=run.seq, limit=10_000, types=POINT_TYPES)
    return sum(run.lacks(event) for event in found)


def record_opened(session: Session, run: TrackedRun, *, run_id: str | None, url: str | None) -> TrackedRun:
    """Record which run the tracker has for the job. Raises LeaseLost."""
    return _update(session, run, run_id=run_id, url=url)


def record_delivered(session: Session, run: TrackedRun, delivered: list[Event]) -> TrackedRun:
    """Record that the tracker has these points. Raises LeaseLost."""
    points = [event for event in delivered if run.lacks(event)]
    steps = [event.data.step for event in points if isinstance(event.data, Metrics)]
    eval_steps = [event.data.step for event in points if isinstance(event.data, Evaluation)]
    return _update(
        session,
        run,
        seq=delivered[-1].seq,
        step=max([run.step, *steps]),
        eval_step=max([run.eval_step, *eval_steps]),
        points=tables.TrackedRunRow.points + len(points),
    )


def record_problem(
    session: Session, run: TrackedRun, problem: str | None, entry: AnyEventData | None = None
) -> None:
    """Record why the tracker can't be written, or null that it can, and perhaps an event of the job.

    Raises LeaseLost.
    """
    _update(session, run, problem=problem)
    if entry:
        events.append(session, run.job_id, [entry])


def record_closed(session: Session, run: TrackedRun) -> None:
    """Record that the tracker has all points and knows the end of the attempt. Raises LeaseLost."""
    _update(session, run, is_complete=True, problem=None)


def _find_end(session: Session, job_id: str, token: str, attempt: int) -> JobState | None:
    newest = select(func.max(tables.AttemptRow.number)).where(tables.AttemptRow.job_id == job_id)
    job = tables.JobRow
    query = select(job.state, job.lease_token, newest.scalar_subquery()).where(job.id == job_id)
    found = session.execute(query).one_or_none()
    if found is None or found[2] != attempt:
        raise LeaseLost(f"The job {job_id} has another attempt, or is deleted.")
    return None if found.lease_token == token else JobState(found.state)


def _update(session: Session, run: TrackedRun, **columns: object) -> TrackedRun:
    table = tables.TrackedRunRow
    row = session.scalar(
        update(table)
        .where(table.job_id == run.job_id, table.tracker == run.tracker, table.token == run.token)
        .values(**columns)
        .returning(table)
        .execution_options(synchronize_session=False, populate_existing=True)
    )
    if row is None:
        raise LeaseLost(f"The run of job {run.job_id} in {run.tracker} is not this worker's any more.")
    return _read(row, run.attempt)


def _read(row: tables.TrackedRunRow, attempt: int) -> TrackedRun:
    tracker = Tracker(row.tracker)
    return TrackedRun(row.job_id, tracker, row.token, attempt, row.run_id, row.seq, row.step, row.eval_step)
