"""Events and checkpoints of a fine-tuning job in OpenAI's format, made from native events and rows."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field

from app.api.jobs.schemas import LossPointRead
from app.core.jobs.events import (
    Checkpoint,
    Evaluation,
    Event,
    EventLevel,
    FinalEvaluation,
    Log,
    Metrics,
    PreferenceFigures,
    Samples,
    StateChange,
    Warn,
)
from app.core.specs.states import JobState
from app.core.storage import tables

_LEVELS: dict[EventLevel, Literal["info", "warn", "error"]] = {
    EventLevel.INFO: "info",
    EventLevel.WARNING: "warn",
    EventLevel.ERROR: "error",
}
_STATE_TEXTS = {
    JobState.QUEUED: "Files validated, moving job to queued state",
    JobState.RUNNING: "Fine-tuning job started",
    JobState.PAUSED: "Fine-tuning job paused",
    JobState.SUCCEEDED: "The job has successfully completed",
    JobState.FAILED: "The job failed",
    JobState.CANCELLED: "The job was cancelled",
}


class FineTuningJobEvent(BaseModel):
    """Something that happened to a job."""

    id: str = Field(description="`after` takes it.")
    object: Literal["fine_tuning.job.event"] = Field("fine_tuning.job.event", description="Always that.")
    created_at: int = Field(description="When, in seconds since 1970.")
    level: Literal["info", "warn", "error"] = Field(description="How much it matters.")
    message: str = Field(description="What happened, for a person.")
    type: Literal["message", "metrics"] = Field(description="`metrics`: `data` has losses.")
    data: dict[str, Any] = Field(description="What a program may want of it.")

    @classmethod
    def from_event(cls, job_id: str, event: Event) -> "FineTuningJobEvent":
        """The native event in OpenAI's format."""
        message, numbers = _describe(event)
        return cls(
            id=event_id(job_id, event.seq),
            created_at=int(event.at.timestamp()),
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


class FineTuningJobCheckpoint(BaseModel):
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
    def from_row(
        cls, row: tables.AdapterRow, job: tables.JobRow, points: Sequence[LossPointRead]
    ) -> "FineTuningJobCheckpoint":
        """The checkpoint, with the job's losses at its step."""
        step = job.step if row.step is None else row.step
        return cls(
            id=row.id,
            created_at=int(row.created_at.timestamp()),
            fine_tuned_model_checkpoint=row.name,
            fine_tuning_job_id=job.id,
            step_number=step,
            metrics=_metrics_at(step, points),
        )


def event_id(job_id: str, seq: int) -> str:
    """An event's id, made of the job's id and the event's seq."""
    return f"ftevent_{job_id.rpartition('_')[2]}_{seq}"


def _describe(event: Event) -> tuple[str, dict[str, Any] | None]:
    """The message of an event, and the figures of a metrics or evaluation event, else None."""
    match event.data:
        case Metrics() as found:
            numbers = {
                "step": found.step,
                "total_steps": found.total_steps,
                "train_loss": _number(found.loss),
                "train_mean_token_accuracy": found.token_accuracy,
                "learning_rate": found.learning_rate,
                **_rewards("train", found),
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
                **_rewards("valid", found),
            }
            return f"Step {found.step}: validation loss={found.loss:.2f}", numbers
        case Samples(step=step):
            return f"Step {step}: sample answers generated", None
        case FinalEvaluation() as found:
            return (
                f"{len(found.rows)} rows held out: loss of the base model={found.base_loss:.2f}, "
                f"of the fine-tuned model={found.adapter_loss:.2f}"
            ), None
        case Checkpoint(step=step):
            return f"Checkpoint created at step {step}", None
        case Log(message=message) | Warn(message=message):
            return message, None
        case StateChange() as change:
            return _state_text(change), None


def _rewards(kind: str, found: PreferenceFigures) -> dict[str, float]:
    """Of a job that learns from preferences: rewards, margin, accuracy and log-probabilities."""
    figures = found.model_dump(include=set(PreferenceFigures.model_fields), exclude_none=True)
    return {f"{kind}_{name}": value for name, value in figures.items()}


def _state_text(change: StateChange) -> str:
    if change.adapter:
        return f"New fine-tuned model created: {change.adapter}"
    if change.phase and change.attempt is None:
        return f"The job is {change.phase} now"
    text = _STATE_TEXTS[change.state]
    if change.state is JobState.QUEUED and change.reason:
        text = "Moving job to queued state"
    return f"{text}: {change.reason}" if change.reason else text


def _metrics_at(step: int, points: Sequence[LossPointRead]) -> CheckpointMetrics:
    """The last losses up to a step."""
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
    """The value, or None for NaN, which JSON does not have."""
    return value if value == value else None
