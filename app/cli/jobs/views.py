"""The fields of jobs that commands show. Fields that another version adds are ignored."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel

from app.cli.views import ENDED, FailureView, NoticeView


class ProgressView(BaseModel):
    """How far a job is."""

    step: int
    total_steps: int | None = None
    epoch: float | None = None
    loss: float | None = None
    eta_seconds: float | None = None


class AttemptView(BaseModel):
    """One try at a job."""

    number: int
    worker: str
    started_at: datetime
    ended_at: datetime | None = None
    exit_reason: str | None = None


class HeldOutRowView(BaseModel):
    """A row that was held out, with the answers of base model and adapter."""

    prompt: str
    expected: str
    base_loss: float | None
    adapter_loss: float | None
    base_answer: str | None = None
    adapter_answer: str | None = None


class FinalEvaluationView(BaseModel):
    """The evaluation with which a job ends."""

    held_out: int
    base_loss: float | None
    adapter_loss: float | None
    rows: list[HeldOutRowView]


class CheckpointView(BaseModel):
    """The newest checkpoint of a job."""

    step: int
    host: str
    stored_step: int | None = None


class TrackedRunView(BaseModel):
    """A job's run in a tracker."""

    tracker: str
    url: str | None = None
    run_id: str | None = None
    points: int
    problem: str | None = None
    is_complete: bool = False


class PushView(BaseModel):
    """The push of a job's adapter to the Hub."""

    export: str
    repository: str
    state: str
    url: str | None = None
    error: FailureView | None = None


class JobView(BaseModel):
    """A job."""

    id: str
    name: str
    state: str
    phase: str | None = None
    queue_position: int | None = None
    waiting_for: str | None = None
    progress: ProgressView
    checkpoint: CheckpointView | None = None
    spec: dict[str, Any]
    attempts: list[AttemptView]
    adapter: str | None = None
    final_evaluation: FinalEvaluationView | None = None
    tracked_runs: list[TrackedRunView] = []
    push: PushView | None = None
    error: FailureView | None = None
    cancel_requested_at: datetime | None = None
    pause_requested_at: datetime | None = None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def has_ended(self) -> bool:
        """Whether the job is in a final state."""
        return self.state in ENDED


class EventView(BaseModel):
    """One event of a job; `data` depends on the type."""

    seq: int
    at: datetime
    level: str
    type: str
    data: dict[str, Any]


class LossPointView(BaseModel):
    """A point of the loss curve."""

    kind: str
    step: int
    epoch: float
    loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    tokens_per_second: float | None = None
    memory_bytes: int | None = None
    reward_margin: float | None = None
    reward_accuracy: float | None = None


class SampleAnswerView(BaseModel):
    """An answer of a model in training."""

    prompt: str
    expected: str | None = None
    answer: str


class SamplesView(BaseModel):
    """The sample answers of one step."""

    step: int
    is_final: bool = False
    answers: list[SampleAnswerView]


class PreflightView(BaseModel):
    """What a job would do and need."""

    rows: int
    training_rows: int
    evaluation_rows: int
    sampled_rows: int | None = None
    tokens: dict[str, Any]
    trained_token_share: float
    truncated: dict[str, Any]
    dropped: dict[str, Any]
    optimizer_steps: int
    memory: dict[str, int]
    device: dict[str, Any]
    fits: bool
    chosen: dict[str, Any]
    disk: dict[str, int]
    time: dict[str, Any]
    warnings: list[NoticeView]
