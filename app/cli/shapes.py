"""The parts of the API's answers that are shown. What an API of another version adds is passed over."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel

ENDED = frozenset({"succeeded", "failed", "cancelled"})


class Failure(BaseModel):
    """Why a job or a fetch failed."""

    code: str
    message: str
    hint: str | None = None


class Progress(BaseModel):
    """How far a job is."""

    step: int
    total_steps: int | None = None
    epoch: float | None = None
    loss: float | None = None
    eta_seconds: float | None = None


class Attempt(BaseModel):
    """One try at a job."""

    number: int
    worker: str
    started_at: datetime
    ended_at: datetime | None = None
    exit_reason: str | None = None


class Job(BaseModel):
    """A job."""

    id: str
    name: str
    state: str
    phase: str | None = None
    progress: Progress
    spec: dict[str, Any]
    attempts: list[Attempt]
    adapter: str | None = None
    error: Failure | None = None
    cancel_requested_at: datetime | None = None
    pause_requested_at: datetime | None = None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will happen by itself."""
        return self.state in ENDED


class Event(BaseModel):
    """One event of a job; `data` depends on the type."""

    seq: int
    at: datetime
    level: str
    type: str
    data: dict[str, Any]


class LossPoint(BaseModel):
    """A point of the loss curve."""

    kind: str
    step: int
    epoch: float
    loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    tokens_per_second: float | None = None
    memory_bytes: int | None = None


class LineProblem(BaseModel):
    """A line that was left out."""

    line: int
    message: str


class Dataset(BaseModel):
    """A dataset."""

    id: str
    name: str
    state: str
    format: str | None = None
    rows: int
    columns: list[str]
    problems: list[LineProblem] = []
    problem_count: int = 0
    hub: dict[str, Any] | None = None
    error: Failure | None = None
    created_at: datetime


class Adapter(BaseModel):
    """An adapter."""

    id: str
    name: str
    base_model: str
    job: str | None = None
    step: int | None = None
    state: str = "ready"
    error: Failure | None = None
    size_bytes: int
    created_at: datetime


class Model(BaseModel):
    """A base model."""

    name: str
    source: str
    state: str
    architecture: str | None = None
    context_length: int | None = None
    size_bytes: int | None = None


class Token(BaseModel):
    """A token of a preview."""

    text: str
    trained: bool


class PreviewRow(BaseModel):
    """A row of a preview."""

    line: int
    tokens: list[Token]
    truncated: bool
    problem: str | None = None


class Notice(BaseModel):
    """Something to know before a job starts."""

    code: str
    message: str


class Preview(BaseModel):
    """Rows as the model will see them."""

    data: list[PreviewRow]
    next: int | None = None
    warnings: list[Notice] = []


class Preflight(BaseModel):
    """What a job would do."""

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
    warnings: list[Notice]
