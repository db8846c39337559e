"""What the routes of jobs return. Knows no database session."""

from datetime import datetime
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.core.jobs.events import EvaluatedRow, Event, FinalEvaluation, Loss, PreferenceFigures
from app.core.specs.job import JobSpec, Metadata
from app.core.specs.priority import Priority
from app.core.specs.states import ExitReason, ExportState, JobState, Phase
from app.core.specs.tracking import Tracker
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


class CheckpointRead(BaseModel):
    """The newest checkpoint of a job, from which another attempt goes on."""

    step: int = Field(description="The optimizer step after which it was taken.")
    host: str = Field(description="The host that wrote it.")
    stored_step: int | None = Field(
        description="The step of the newest one in the artifact store, from which other hosts go on; null: "
        "none is there."
    )


class TrackedRunRead(BaseModel):
    """A job's run in an experiment tracker."""

    tracker: Tracker = Field(description="Which tracker.")
    url: str | None = Field(description="The run's page, where the tracker has one.")
    run_id: str | None = Field(description="The tracker's id of the run; null: it is not open yet.")
    points: int = Field(description="Points of the job's curves that the tracker has.")
    problem: str | None = Field(description="Why it lacks points; null: nothing is wrong.")
    is_complete: bool = Field(description="Whether it has all points up to the end of the last attempt.")

    @classmethod
    def from_row(cls, row: tables.TrackedRunRow) -> Self:
        """The run as the API shows it."""
        values = {name: getattr(row, name) for name in cls.model_fields}
        return cls.model_validate(values)


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
    waiting_for: str | None = Field(
        None,
        description="What a waiting job needs besides its turn; null: nothing.",
        examples=["a worker with my-model in its models folder"],
    )
    progress: ProgressRead = Field(description="How far it is.")
    checkpoint: CheckpointRead | None = Field(
        None, description="Its newest checkpoint; null: there is none, or the job has succeeded."
    )
    spec: JobSpec = Field(description="What was asked for, with every default filled in.")
    attempts: list[AttemptRead] = Field(description="Every try, the first one first.")
    adapter: str | None = Field(description="Id of the finished adapter; `/generate` takes it.")
    error: JobErrorRead | None = Field(description="Why the job failed.")
    tracked_runs: list[TrackedRunRead] = Field(
        description="Its runs in trackers, once a worker has begun it. Those in `report_to`, without "
        "TensorBoard, which is files."
    )
    cancel_requested_at: datetime | None = Field(description="When the job was asked to stop.")
    pause_requested_at: datetime | None = Field(
        description="When it was asked to pause; null once it has, or if it is to go on."
    )
    created_at: datetime = Field(description="When it was submitted.")
    started_at: datetime | None = Field(description="When a worker first took it.")
    finished_at: datetime | None = Field(description="When it ended.")

    @classmethod
    def from_row(
        cls, row: tables.JobRow, queue_position: int | None = None, *, waiting_for: str | None = None
    ) -> Self:
        """The job as the API shows it."""
        return cls(
            id=row.id,
            name=row.name,
            state=JobState(row.state),
            phase=Phase(row.phase) if row.phase else None,
            queue_position=queue_position,
            waiting_for=waiting_for if row.state == JobState.QUEUED else None,
            progress=_progress(row),
            checkpoint=_checkpoint(row),
            spec=JobSpec.model_validate(row.spec),
            attempts=[_attempt(attempt) for attempt in row.attempts],
            adapter=row.adapter.id if row.adapter else None,
            error=_job_error(row),
            tracked_runs=[TrackedRunRead.from_row(run) for run in row.tracked_runs],
            cancel_requested_at=row.cancel_requested_at,
            pause_requested_at=row.pause_requested_at,
            created_at=row.created_at,
            started_at=row.started_at,
            finished_at=row.finished_at,
        )


class FinalEvaluationRead(BaseModel):
    """Base model and adapter next to each other, on rows that the job did not learn from."""

    step: int = Field(description="The step whose adapter the job saves.")
    epoch: float = Field(description="Passes over the dataset done at that step.")
    seconds: float = Field(description="How long it took.")
    held_out: int = Field(description="How many rows were held out; `rows` are some of them, up to 20.")
    base_loss: Loss = Field(description="Mean loss of the base model over all tokens of the rows' answers.")
    adapter_loss: Loss = Field(description="The same with the adapter.")
    rows: list[EvaluatedRow] = Field(description="In the order of the dataset.")

    @classmethod
    def make(cls, found: FinalEvaluation) -> "FinalEvaluationRead":
        """The evaluation as it was recorded."""
        return cls.model_construct(**{name: getattr(found, name) for name in cls.model_fields})


class JobPushRead(BaseModel):
    """The push of a job's adapter to the Hub."""

    export: str = Field(
        description="Id of the export; `POST /exports/{id}/retry` repeats one that failed or was cancelled."
    )
    repository: str = Field(description="owner/name.")
    state: ExportState = Field(description="Where the push stands.")
    url: str | None = Field(description="Where it was pushed to.")
    error: JobErrorRead | None = Field(description="Why it failed.")

    @classmethod
    def from_row(cls, row: tables.ExportRow) -> Self:
        """The push as the API shows it."""
        error = JobErrorRead.model_validate(row.error) if row.error else None
        return cls(
            export=row.id,
            repository=row.spec["repository"],
            state=ExportState(row.state),
            url=row.url,
            error=error,
        )


class JobDetailsRead(JobRead):
    """A fine-tuning job, with what its evaluation found, and its push to the Hub."""

    push: JobPushRead | None = Field(
        None,
        description="Its push to the Hub; null: it has no `push_to_hub`, has not succeeded yet, or its "
        "export was deleted.",
    )

    final_evaluation: FinalEvaluationRead | None = Field(
        None,
        description="Base model and adapter on rows that were held out; null: the job is not that far, held "
        "out none or was submitted with `evaluate: false`.",
    )


class JobChange(BaseModel):
    """What may be changed of a job; what is left out stays."""

    model_config = ConfigDict(extra="forbid")

    metadata: Metadata | None = Field(
        None, description="Replaces the job's metadata: notes and tags of your own."
    )
    priority: Priority | None = Field(None, description="Its place in the queue while it waits: -10 to 10.")

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if self.metadata is None and self.priority is None:
            raise ValueError("give `metadata`, `priority` or both")
        return self


class EventPage(BaseModel):
    """One page of events, the oldest first."""

    data: list[Event] = Field(description="The events of this page.")
    next: int | None = Field(description="For `after`: there are more events now; null: these are all.")


class LossFigures(BaseModel):
    """A logged loss, and what was measured with it."""

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


class LossPointRead(PreferenceFigures, LossFigures):
    """One logged step (`train`), or one evaluation on the rows held out (`eval`)."""

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


def _checkpoint(row: tables.JobRow) -> CheckpointRead | None:
    if row.checkpoint_step is None or row.checkpoint_host is None:
        return None
    return CheckpointRead(
        step=row.checkpoint_step, host=row.checkpoint_host, stored_step=row.stored_checkpoint_step
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
