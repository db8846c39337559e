"""What an attempt at a job has used, added to the usage of the key that submitted the job."""

from datetime import datetime

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.core.jobs import events
from app.core.keys import usage
from app.core.keys.usage import Amounts, UsageKey
from app.core.specs.job import JobSpec
from app.core.storage import tables


def record(session: Session, job_id: str, attempt: int, now: datetime) -> None:
    """Add the seconds of an attempt that ends now, and the tokens that it was trained on.

    Seconds are times its GPUs on all hosts. The tokens of a job that goes on from a checkpoint are counted
    once.
    """
    own = tables.AttemptRow
    started_at = session.scalar(select(own.started_at).where(own.job_id == job_id, own.number == attempt))
    job = tables.JobRow
    row = session.execute(select(job.key_id, job.base_model, job.spec).where(job.id == job_id)).one()
    gpus = JobSpec.model_validate(row.spec).resources.ranks
    metrics = events.read_last_metrics(session, [job_id]).get(job_id)
    trained = metrics.tokens if metrics else 0
    before = session.scalar(select(func.max(own.trained_tokens)).where(own.job_id == job_id)) or 0
    session.execute(
        update(own).where(own.job_id == job_id, own.number == attempt).values(trained_tokens=trained)
    )
    seconds = (now - started_at).total_seconds() if started_at else 0.0
    used = Amounts(training_tokens=max(0, trained - before), training_seconds=max(0.0, seconds) * gpus)
    usage.add(session, {UsageKey(row.key_id, now.date(), row.base_model): used})
