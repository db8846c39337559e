"""Jobs, their events and their checkpoints as OpenAI's clients know them, each made from native rows."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, Field

from app.api.loss_curve import LossPoint
from app.core import files, fine_tuning, tables
from app.core.adapters import ORGANIZATION
from app.core.events import Checkpoint, Evaluation, Event, Level, Log, Metrics, StateChange, Warn
from app.core.specs import JobSpec
from app.core.states import JobState

Item = TypeVar("Item")
_LEVELS: dict[Level, Literal["info", "warn", "error"]] = {
    Level.INFO: "info",
    Level.WARNING: "warn",
    Level.ERROR: "error",
}
_STATE_TEXTS = {
    JobState.QUEUED: "Files validated, moving job to queued state",
    JobState.RUNNING: "Fine-tuning job started",
    JobState.PAUSED: "Fine-tuning job paused",
    JobState.SUCCEEDED: "The job has successfully completed",
    JobState.FAILED: "The job failed",
    JobState.CANCELLED: "The job was cancelled",
}


class Page(BaseModel, Generic[Item]):
    """One page of a list; `after` the id of the last item is the next one."""

    object: Literal["list"] = Field("list", description="Always `list`.")
    data: list[Item] = Field(description="The items of this page.")
    has_more: bool = Field(description="Whether there are more.")
    first_id: str | None = Field(None, description="Id of the first item.")
    last_id: str | None = Field(None, description="Id of the last item.")

    @classmethod
    def of(cls, data: list[Item], *, has_more: bool) -> "Page[Item]":
        """A page that names its ends."""
        ids = [str(getattr(item, "id", "")) for item in data]
        return cls(
            data=data,
            has_more=has_more,
            first_id=ids[0] if ids else None,
            last_id=ids[-1] if ids else None,
        )


class HyperparametersUsed(BaseModel):
    """What `auto` came to."""

    n_epochs: float | int = Field(description="Passes over the file.")
    batch_size: int = Field(description="Rows that an optimizer step learns from.")
    learning_rate_multiplier: float = Field(description="Times 2e-4.")


class SupervisedUsed(BaseModel):
    """How it is trained."""

    hyperparameters: HyperparametersUsed = Field(description="What `auto` came to.")


class MethodUsed(BaseModel):
    """The kind of training."""

    type: Literal["supervised"] = Field("supervised", description="Always `supervised`.")
    supervised: SupervisedUsed = Field(description="How it is trained.")


class JobError(BaseModel):
    """Why the job failed."""

    code: str = Field(description="A stable word for programs.", examples=["invalid_n_examples"])
    message: str = Field(description="What happened, for a person.")
    param: str | None = Field(description="The parameter it is about.")


class FineTuningJob(BaseModel):
    """A job, made here or through the native API."""

    id: str = Field(description="Names the job, in the native API too.")
    object: Literal["fine_tuning.job"] = Field("fine_tuning.job", description="Always `fine_tuning.job`.")
    created_at: int = Field(description="When it was made, in seconds since 1970.")
    finished_at: int | None = Field(description="When it ended.")
    model: str = Field(description="The base model.")
    fine_tuned_model: str | None = Field(description="Name of the finished adapter; `model` takes it.")
    organization_id: str = Field(description="Always the same.")
    status: str = Field(description="Where it stands; `paused` is not among OpenAI's own words.")
    training_file: str = Field(description="Id of the file.")
    validation_file: str | None = Field(description="Id of the file to evaluate on.")
    hyperparameters: HyperparametersUsed = Field(description="What `auto` came to.")
    method: MethodUsed = Field(description="How it is trained.")
    result_files: list[str] = Field(description="Once it has succeeded: the id of its loss curve, as CSV.")
    seed: int = Field(description="Seed of data order and initialisation.")
    trained_tokens: int | None = Field(description="Tokens seen, once it has ended.")
    error: JobError | None = Field(description="Why it failed.")
    estimated_finish: int | None = Field(description="About when it will end.")
    integrations: list[Any] = Field([], description="Always empty.")
    metadata: dict[str, str] | None = Field(description="Words of your own.")
    user_provided_suffix: str | None = Field(description="The suffix that was asked for.")
    name: str = Field(description="Not OpenAI's. Name of the native job.")
    spec: JobSpec = Field(description="Not OpenAI's. Every setting of the native job.")

    @classmethod
    def from_row(cls, row: tables.Job, *, trained_tokens: int | None) -> "FineTuningJob":
        """The job; `trained_tokens` as its events have it."""
        spec, state = JobSpec.model_validate(row.spec), JobState(row.state)
        used = _used(spec)
        return cls(
            id=row.id,
            created_at=_seconds(row.created_at),
            finished_at=_seconds(row.finished_at) if row.finished_at else None,
            model=row.base_model,
            fine_tuned_model=row.adapter.name if row.adapter else None,
            organization_id=ORGANIZATION,
            status=state,
            training_file=row.dataset_id,
            validation_file=spec.validation_dataset,
            hyperparameters=used,
            method=MethodUsed(supervised=SupervisedUsed(hyperparameters=used)),
            result_files=[files.result_of(row)] if state is JobState.SUCCEEDED else [],
            seed=spec.training.seed,
            trained_tokens=trained_tokens if state.has_ended else None,
            error=_error(row),
            estimated_finish=_estimated_finish(row),
            metadata=spec.metadata or None,
            user_provided_suffix=spec.suffix or None,
            name=row.name,
            spec=spec,
        )


class JobEvent(BaseModel):
    """Something that happened to a job."""

    id: str = Field(description="`after` takes it.")
    object: Literal["fine_tuning.job.event"] = Field("fine_tuning.job.event", description="Always that.")
    created_at: int = Field(description="When, in seconds since 1970.")
    level: Literal["info", "warn", "error"] = Field(description="How much it matters.")
    message: str = Field(description="What happened, for a person.")
    type: Literal["message", "metrics"] = Field(description="`metrics`: `data` has losses.")
    data: dict[str, Any] = Field(description="What a program may want of it.")

    @classmethod
    def from_event(cls, job_id: str, event: Event) -> "JobEvent":
        """The native event in OpenAI's words."""
        message, numbers = _told(event)
        return cls(
            id=event_id(job_id, event.seq),
            created_at=_seconds(event.at),
            level=_LEVELS[event.level],
            message=message,
            type="metrics" if numbers else "message",
            data=numbers or {},
        )


class CheckpointMetrics(BaseModel):
    """The losses at a checkpoint."""

    step: int = Field(description="Optimizer steps done.")
    train_loss: float | None = Field(None, description="Mean training loss, as logged last.")
    train_mean_token_accuracy: float | None = Field(None, description="Of the same steps.")
    valid_loss: float | None = Field(None, description="Loss on the rows held out, as evaluated last.")
    valid_mean_token_accuracy: float | None = Field(None, description="Of the same rows.")
    full_valid_loss: float | None = Field(None, description="The same: all rows are evaluated.")
    full_valid_mean_token_accuracy: float | None = Field(None, description="The same.")


class JobCheckpoint(BaseModel):
    """An adapter that a job kept on its way, or its finished one."""

    id: str = Field(description="The adapter's id; `after` takes it.")
    object: Literal["fine_tuning.job.checkpoint"] = Field(
        "fine_tuning.job.checkpoint", description="Always that."
    )
    created_at: int = Field(description="When it was kept, in seconds since 1970.")
    fine_tuned_model_checkpoint: str = Field(description="Its name; `model` takes it.")
    fine_tuning_job_id: str = Field(description="The job.")
    step_number: int = Field(description="Optimizer steps done.")
    metrics: CheckpointMetrics = Field(description="The losses there.")

    @classmethod
    def from_row(cls, row: tables.Adapter, job: tables.Job, points: Sequence[LossPoint]) -> "JobCheckpoint":
        """The checkpoint, with its place in the job's loss curve."""
        step = job.step if row.step is None else row.step
        return cls(
            id=row.id,
            created_at=_seconds(row.created_at),
            fine_tuned_model_checkpoint=row.name,
            fine_tuning_job_id=job.id,
            step_number=step,
            metrics=_metrics_at(step, points),
        )


def event_id(job_id: str, seq: int) -> str:
    """An event's id, which holds its place."""
    return f"ftevent_{job_id.rpartition('_')[2]}_{seq}"


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())


def _used(spec: JobSpec) -> HyperparametersUsed:
    used = fine_tuning.hyperparameters(spec.training)
    return HyperparametersUsed.model_validate(vars(used))


def _error(row: tables.Job) -> JobError | None:
    if row.error_code is None:
        return None
    message = row.error_message or ""
    text = f"{message} {row.error_hint}" if row.error_hint else message
    return JobError(code=row.error_code, message=text, param=fine_tuning.param_of(row.error_code, message))


def _estimated_finish(row: tables.Job) -> int | None:
    if row.state != JobState.RUNNING or row.eta_seconds is None:
        return None
    return _seconds(datetime.now(UTC) + timedelta(seconds=row.eta_seconds))


def _told(event: Event) -> tuple[str, dict[str, Any] | None]:
    """The words, and for a point of the loss curve its numbers."""
    match event.data:
        case Metrics() as found:
            numbers = {
                "step": found.step,
                "total_steps": found.total_steps,
                "train_loss": _number(found.loss),
                "train_mean_token_accuracy": found.token_accuracy,
                "learning_rate": found.learning_rate,
            }
            return f"Step {found.step}/{found.total_steps}: training loss={found.loss:.2f}", numbers
        case Evaluation() as found:
            loss = _number(found.loss)
            numbers = {
                "step": found.step,
                "valid_loss": loss,
                "valid_mean_token_accuracy": found.token_accuracy,
                "full_valid_loss": loss,
                "full_valid_mean_token_accuracy": found.token_accuracy,
            }
            return f"Step {found.step}: validation loss={found.loss:.2f}", numbers
        case Checkpoint(step=step):
            return f"Checkpoint created at step {step}", None
        case Log(message=message) | Warn(message=message):
            return message, None
        case StateChange() as change:
            return _state_text(change), None


def _state_text(change: StateChange) -> str:
    if change.adapter:
        return f"New fine-tuned model created: {change.adapter}"
    if change.phase and change.attempt is None:
        return f"The job is {change.phase} now"
    text = _STATE_TEXTS[change.state]
    if change.state is JobState.QUEUED and change.reason:
        text = "Moving job to queued state"
    return f"{text}: {change.reason}" if change.reason else text


def _metrics_at(step: int, points: Sequence[LossPoint]) -> CheckpointMetrics:
    """The last points up to a step."""
    train = next((one for one in reversed(points) if one.kind == "train" and one.step <= step), None)
    valid = next((one for one in reversed(points) if one.kind == "eval" and one.step <= step), None)
    found = CheckpointMetrics(step=step)
    if train:
        found.train_loss, found.train_mean_token_accuracy = _number(train.loss), train.token_accuracy
    if valid:
        loss, accuracy = _number(valid.loss), valid.token_accuracy
        found.valid_loss = found.full_valid_loss = loss
        found.valid_mean_token_accuracy = found.full_valid_mean_token_accuracy = accuracy
    return found


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return value if value == value else None
