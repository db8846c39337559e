"""The fields of the API's objects that commands show. Fields that another version adds are ignored."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel

from app.cli.failures import LineProblem

ENDED = frozenset({"succeeded", "failed", "cancelled"})


class FailureView(BaseModel):
    """Why a job or a fetch failed."""

    code: str
    message: str
    hint: str | None = None


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


class JobView(BaseModel):
    """A job."""

    id: str
    name: str
    state: str
    phase: str | None = None
    queue_position: int | None = None
    progress: ProgressView
    spec: dict[str, Any]
    attempts: list[AttemptView]
    adapter: str | None = None
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


class UnusedFieldView(BaseModel):
    """A field of a dataset from which nothing is learned."""

    field: str
    rows: int
    changes_learning: bool


class DatasetView(BaseModel):
    """A dataset."""

    id: str
    name: str
    state: str
    format: str | None = None
    rows: int
    columns: list[str]
    problems: list[LineProblem] = []
    problem_count: int = 0
    unused_fields: list[UnusedFieldView] = []
    hub: dict[str, Any] | None = None
    error: FailureView | None = None
    created_at: datetime


class AdapterView(BaseModel):
    """An adapter."""

    id: str
    name: str
    base_model: str
    job: str | None = None
    step: int | None = None
    state: str = "ready"
    error: FailureView | None = None
    size_bytes: int
    created_at: datetime


class NeedsView(BaseModel):
    """What needs a base model."""

    jobs: list[str] = []
    exports: list[str] = []
    imports: list[str] = []
    adapters: int = 0


class HubModelView(BaseModel):
    """A model of the Hub."""

    name: str
    parameters: int | None = None
    size_bytes: int | None = None
    license: str | None = None
    is_gated: bool = False
    downloads: int | None = None
    downloaded: bool = False


class FitView(BaseModel):
    """Whether a job on a base model fits into the memory of a device."""

    fits: bool
    needed_bytes: int
    memory_bytes: int
    device: str
    parameters: int
    batch_size: int
    row_tokens: int


class DownloadView(BaseModel):
    """A download of a base model."""

    id: str
    base_model: str
    state: str
    done_bytes: int
    total_bytes: int | None = None
    error: FailureView | None = None


class BaseModelView(BaseModel):
    """A base model."""

    name: str
    source: str
    state: str
    architecture: str | None = None
    context_length: int | None = None
    size_bytes: int | None = None
    used_at: datetime | None = None
    needed_by: NeedsView = NeedsView()


class ExportedFileView(BaseModel):
    """A file of an export."""

    name: str
    size_bytes: int


class AgreementView(BaseModel):
    """How well the files of an export agree with the live adapter."""

    mean_kl: float
    greedy_match: float


class ExportView(BaseModel):
    """An export."""

    id: str
    adapter: str
    adapter_name: str
    spec: dict[str, Any]
    state: str
    phase: str | None = None
    progress: float
    agreement: AgreementView | None = None
    notes: list[str] = []
    files: list[ExportedFileView] = []
    url: str | None = None
    error: FailureView | None = None
    created_at: datetime

    @property
    def size_bytes(self) -> int:
        """The size of its files together."""
        return sum(file.size_bytes for file in self.files)


class WebhookView(BaseModel):
    """A webhook."""

    id: str
    name: str
    url: str
    event_types: list[str]
    enabled: bool


class DeliveryView(BaseModel):
    """One event for one webhook, and what came of sending it."""

    id: str
    event_type: str
    job: str | None = None
    state: str
    response_status: int | None = None
    error: str | None = None
    created_at: datetime


class TokenView(BaseModel):
    """A token of a preview."""

    text: str
    trained: bool


class PreviewRowView(BaseModel):
    """A row of a preview."""

    line: int
    tokens: list[TokenView]
    truncated: bool
    problem: str | None = None
    notices: list[str] = []


class NoticeView(BaseModel):
    """A warning of a preview or a preflight."""

    code: str
    message: str


class PreviewView(BaseModel):
    """Rows of a dataset, rendered and tokenized."""

    data: list[PreviewRowView]
    next: int | None = None
    warnings: list[NoticeView] = []


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


class QueueCountsView(BaseModel):
    """Jobs, counted by state."""

    by_state: dict[str, int]


class StoredView(BaseModel):
    """How many things of one kind are stored, and their size."""

    count: int
    size_bytes: int


class DiskView(BaseModel):
    """A folder, and the disk that it is on."""

    folder: str
    path: str
    total_bytes: int
    free_bytes: int


class StatusWorkerView(BaseModel):
    """A worker that is alive."""

    id: str
    roles: list[str]
    device: dict[str, Any]
    engine: dict[str, Any] | None = None
    problems: list[str] = []
    heartbeat_at: datetime


class VersionsView(BaseModel):
    """What runs at the API."""

    tunesmith: str


class StatusView(BaseModel):
    """The API and its workers at a glance."""

    started_at: datetime
    versions: VersionsView
    workers: list[StatusWorkerView]
    queue: QueueCountsView
    datasets: StoredView
    adapters: StoredView
    disks: list[DiskView]


class StoredKindView(BaseModel):
    """What is stored of one kind."""

    kind: str
    count: int
    size_bytes: int | None = None
    deletable_count: int
    deletable_bytes: int | None = None
    keep_days: float
