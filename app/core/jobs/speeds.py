"""The training speed of finished jobs, as an estimate for the next job like them. Knows no device."""

from statistics import median

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.core.jobs import events
from app.core.jobs.events import Metrics
from app.core.specs.job import JobSpec
from app.core.specs.states import JobState
from app.core.storage import tables

_JOBS_LOOKED_AT = 20
_EVENTS_READ = 1000


def find_tokens_per_second(session: Session, spec: JobSpec) -> float | None:
    """Returns the speed of the last finished job with this base model, alike in kind, or None."""
    finished = (
        select(tables.JobRow)
        .where(tables.JobRow.base_model == spec.base_model, tables.JobRow.state == JobState.SUCCEEDED)
        .order_by(tables.JobRow.finished_at.desc())
        .limit(_JOBS_LOOKED_AT)
    )
    for job in session.scalars(finished):
        if _is_alike(JobSpec.model_validate(job.spec), spec):
            speed = _read_speed(session, job.id)
            if speed:
                return speed
    return None


def _is_alike(one: JobSpec, other: JobSpec) -> bool:
    return (
        one.method == other.method
        and one.training.packing == other.training.packing
        and one.quantization.load_in_4bit == other.quantization.load_in_4bit
        and _describe_sharing(one) == _describe_sharing(other)
    )


def _describe_sharing(spec: JobSpec) -> tuple[int, int, str | None]:
    """(GPUs, hosts, strategy), the strategy only where there is more than one to choose from."""
    resources = spec.resources
    has_choice = resources.gpus > 1 and spec.fsdp_obstacle is None
    return resources.gpus, resources.nodes, resources.strategy if has_choice else None


def _read_speed(session: Session, job_id: str) -> float | None:
    """Returns the median tokens per second of a job's steps: the first ones are slow."""
    found = [
        event.data.tokens_per_second
        for event in events.read(session, job_id, limit=_EVENTS_READ, types=["metrics"])
        if isinstance(event.data, Metrics) and event.data.tokens_per_second
    ]
    return median(found) if found else None
