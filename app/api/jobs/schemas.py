"""What the routes of jobs return. Knows no database session."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from app.core.jobs.events import Event
from app.core.specs.job import JobSpec, Metadata
from app.core.specs.states import ExitReason, JobState, Phase
from app.core.storage import tables


class ProgressRead(BaseModel):
    """How far a job is."""

    step: int = Field(description="Optimizer steps done.")
    total_steps: int | None = Field(description="Optimizer steps in all, once known.")
    epoch: float | None = Field(description="Passes over the dataset done.")
    loss: float | None = Field(description="The loss last logged.")
    eta_seconds: float | None = Field(description="About how long the job still takes.")


class AttemptRead(BaseModel):
    """One try at a job by one worker."""

    number: int = Field(description="Counts from 1.")
    worker: str = Field(description="Id of the worker.")
    started_at: datetime = Field(description="When the worker took the job.")
    ended_at: datetime | None = Field(description="When the try ended; null while it goes on.")
    exit_reason: ExitReason | None = Field(description="How the try ended; null while it goes on.")


class JobErrorRead(BaseModel):
    """Why a job failed."""

    code: str = Field(description="A stable word for programs.", examples=["out_of_memory"])
    message: str = Field(description="What happened, for a person.")
    hint: str | None = Field(description="What to do next.")


class JobRead(BaseModel):
    """A fine-tuning job."""

    id: str = Field(description="Names the job in every path.", examples=["job_4kq1v9x2m7ahc3zt"])
    name: str = Field(description="The name that was given, or the id.")
    state: JobState = Field(description="Where the job stands.")
    phase: Phase | None = Field(description="What a running job is doing.")
    queue_position: int | None = Field(
        None,
        description="Its place among the waiting jobs, from 1; null: it does not wait.",
    )
    progress: ProgressRead = Field(description="How far it is.")
    spec: JobSpec = Field(description="What was asked for, with every default filled in.")
    attempts: list[AttemptRead] = Field(description="Every try, the first one first.")
    adapter: str | None = Field(description="Id of the finished adapter; `/generate` takes it.")
    error: JobErrorRead | None = Field(description="Why the job failed.")
    cancel_requested_at: datetime | None = Field(description="When the job was asked to stop.")
    pause_requested_at: datetime | None = Field(
        description="When it was asked to pause; null once it has, or if it is to go on."
    )
    created_at: datetime = Field(description="When it was submitted.")
    started_at: datetime | None = Field(description="When a worker first took it.")
    finished_at: datetime | None = Field(description="When it ended.")

    @classmethod
    def from_row(cls, row: tables.JobRow, queue_position: int | None = None) -> "JobRead":
        """The job as the API shows it."""
        return cls(
            id=row.id,
            name=row.name,
            state=JobState(row.state),
            phase=Phase(row.phase) if row.phase else None,
            queue_position=queue_position,
            progress=_progress(row),
            spec=JobSpec.model_validate(row.spec),
            attempts=[_attempt(attempt) for attempt in row.attempts],
            adapter=row.adapter.id if row.adapter else None,
            error=_job_error(row),
            cancel_requested_at=row.cancel_requested_at,
            pause_requested_at=row.pause_requested_at,
            created_at=row.created_at,
            started_at=row.started_at,
            finished_at=row.finished_at,
        )


class JobChange(BaseModel):
    """What may be changed of a job."""

    model_config = ConfigDict(extra="forbid")

    metadata: Metadata = Field(description="Replaces the job's metadata: notes and tags of your own.")


class EventPage(BaseModel):
    """One page of events, the oldest first."""

    data: list[Event] = Field(description="The events of this page.")
    next: int | None = Field(description="For `after`: there are more events now; null: these are all.")


class LossPointRead(BaseModel):
    """One logged step (`train`), or one evaluation on the rows held out (`eval`)."""

    kind: Literal["train", "eval"] = Field(description="Which loss it is.")
    step: int = Field(description="Optimizer step.")
    epoch: float = Field(description="Passes over the dataset done.")
    loss: float = Field(description="`train`: the mean since the last point.")
    token_accuracy: float | None = Field(None, description="Share of tokens whose likeliest guess was right.")
    learning_rate: float | None = Field(None, description="At this step.")
    grad_norm: float | None = Field(None, description="Norm of the gradients before they were clipped.")
    tokens: int | None = Field(None, description="Tokens seen since the start, padding left out.")
    tokens_per_second: float | None = Field(None, description="Training speed.")
    memory_bytes: int | None = Field(None, description="Peak device memory; on a CPU, of the process.")
    memory_used_bytes: int | None = Field(
        None, description="Memory in use then: on a GPU by all processes, on a CPU by this job's."
    )
    gpu_utilization_percent: float | None = Field(
        None, description="Share of the last second in which the GPU computed; null: it can't be read."
    )
    at: datetime = Field(description="When it was logged.")


class LossCurveRead(BaseModel):
    """Every point, by step."""

    data: list[LossPointRead] = Field(description="The points, by step.")


class LossesRead(BaseModel):
    """The training losses of one job, in few points."""

    job: str = Field(description="Id of the job.")
    losses: list[float] = Field(description="By step; the last one that was logged is the last one here.")


class LossesPage(BaseModel):
    """The training losses of several jobs."""

    data: list[LossesRead] = Field(description="One item for each job that has a loss.")


def _progress(row: tables.JobRow) -> ProgressRead:
    return ProgressRead(
        step=row.step,
        total_steps=row.total_steps,
        epoch=row.epoch,
        loss=row.loss,
        eta_seconds=row.eta_seconds,
    )


def _attempt(row: tables.AttemptRow) -> AttemptRead:
    return AttemptRead(
        number=row.number,
        worker=row.worker_id,
        started_at=row.started_at,
        ended_at=row.ended_at,
        exit_reason=ExitReason(row.exit_reason) if row.exit_reason else None,
    )


def _job_error(row: tables.JobRow) -> JobErrorRead | None:
    if row.error_code is None:
        return None
    return JobErrorRead(code=row.error_code, message=row.error_message or "", hint=row.error_hint)
