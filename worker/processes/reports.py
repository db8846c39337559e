"""Messages between the worker and its children, as JSON lines over two pipes. Knows no torch.

The worker writes one request to a child's standard input (TrainingRequest or EngineRequest), perhaps long
after its start, and later perhaps the line `stop`; end of file there means that the worker is gone. The child
writes to a pipe of its own: a training child Reports, the engine one Listening and then any number of
StateChanged.
"""

from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from app.core.datasets.rows import DatasetFormat
from app.core.datasets.unused_fields import UnusedField
from app.core.jobs.events import AnyEventData, Evaluation, Metrics
from app.core.settings import EngineSpeculation, EngineWeights, GpuPolicy, TrainingPath
from app.core.specs.job import JobSpec
from app.core.specs.states import Phase


class ProcessMessage(BaseModel):
    """Base of all messages. Unknown fields are refused: both sides are of one version."""

    model_config = ConfigDict(extra="forbid")


class FailureReport(ProcessMessage):
    """The child's work failed. Its last report."""

    type: Literal["failed"] = "failed"
    code: str
    message: str
    hint: str | None = None


CurvePoint = Annotated[Metrics | Evaluation, Field(discriminator="type")]


class TrainingRequest(ProcessMessage):
    """Everything a training child needs to know."""

    job_id: str
    attempt: int
    spec: JobSpec
    dataset: Path = Field(description="The dataset's file, on this machine.")
    dataset_format: DatasetFormat
    dataset_sha256: str
    dataset_name: str | None = None
    validation_dataset: Path | None = Field(None, description="The file of rows to evaluate on.")
    unused_fields: list[UnusedField] = Field(
        [], description="Fields of the dataset from which nothing is learned."
    )
    continue_from: Path | None = Field(
        None, description="The folder of the adapter that the job starts from."
    )
    submitted_at: datetime = Field(
        default_factory=lambda: datetime.now(UTC),
        description="When the job was submitted, in UTC: chat templates print this date in every attempt.",
    )
    models_folder: Path
    job_folder: Path = Field(description="Keeps checkpoints and TensorBoard files between attempts.")
    output_folder: Path = Field(description="Where the finished adapter goes; does not exist yet.")
    trials_folder: Path | None = Field(
        None, description="Records which optimizations passed their trials; null: each job tries them."
    )
    path: TrainingPath = TrainingPath.AUTO
    cpu_ranks: int = Field(1, description="Processes of a job where the machine has no GPU, at most.")
    ray_address: str = Field("", description="The Ray cluster of jobs over several hosts.")
    train_rows_at_once: int | None = Field(None, description="Rows in a pass at most; null: as the job asks.")
    eval_rows_at_once: int | None = Field(None, description="The same for passes of an evaluation.")
    is_alone: bool = Field(False, description="The device is the job's alone for as long as it trains.")
    last_point: CurvePoint | None = Field(
        None, description="The point of the loss curve that was recorded last, by an earlier attempt."
    )


class Waiting(ProcessMessage):
    """The child has imported everything and waits for its request."""

    type: Literal["waiting"] = "waiting"


class Happened(ProcessMessage):
    """An event to record."""

    type: Literal["happened"] = "happened"
    event: AnyEventData


class Advanced(ProcessMessage):
    """How far the job is, where that is no event."""

    type: Literal["advanced"] = "advanced"
    phase: Phase | None = None
    step: int | None = None
    total_steps: int | None = None
    epoch: float | None = None
    loss: float | None = None
    eta_seconds: float | None = None


class CheckpointAdapterSaved(ProcessMessage):
    """The adapter of a checkpoint is complete in a folder."""

    type: Literal["checkpoint_adapter_saved"] = "checkpoint_adapter_saved"
    step: int
    folder: Path


class Outcome(StrEnum):
    """How the child ended."""

    FINISHED = "finished"  # the adapter is complete in the output folder
    STOPPED = "stopped"  # it was asked to; a checkpoint of the last step is on disk
    FAILED = "failed"


class Ended(ProcessMessage):
    """The child's last report."""

    type: Literal["ended"] = "ended"
    outcome: Outcome
    code: str | None = None
    message: str | None = None
    hint: str | None = None


Report = Annotated[
    Waiting | Happened | Advanced | CheckpointAdapterSaved | Ended, Field(discriminator="type")
]
report_adapter: TypeAdapter[Report] = TypeAdapter(Report)
STOP = b"stop\n"


class VllmTarget(ProcessMessage):
    """An external vLLM that generates, and a folder of adapters that it reads too, if there is one."""

    url: str
    api_key: str | None = None
    adapters_folder: Path | None = None


class EngineRequest(ProcessMessage):
    """Everything the engine process needs to know."""

    host: str
    port: int = Field(description="0: any free port.")
    token: str = Field(description="What the API must send as its bearer token.")
    models_folder: Path
    artifacts_url: str
    cache_folder: Path = Field(description="For copies of adapters that live in an object store.")
    cache_bytes: int | None = Field(None, description="Size of those copies at most; null: any.")
    device: dict[str, Any] = Field({}, description="As `worker.models.device` prints it; empty: unknown.")
    standby: bool = Field(False, description="Start and warm up the process of preflights before the first.")
    vllm: VllmTarget | None = Field(None, description="Who generates; null: this process.")
    # These are settings; app/core/settings.py describes them.
    max_rows: int | None = None
    adapter_slots: int = 8
    cache_share: float | None = None
    max_waiting: int = 256
    max_base_models: int = 1
    switch_wait_seconds: float = 600.0
    weights: EngineWeights = EngineWeights.AUTO
    speculation: EngineSpeculation = EngineSpeculation.AUTO
    gpu_policy: GpuPolicy = GpuPolicy.AUTO
    training_path: TrainingPath = TrainingPath.AUTO


class Listening(ProcessMessage):
    """The engine takes HTTP requests now."""

    type: Literal["listening"] = "listening"
    port: int


class StateChanged(ProcessMessage):
    """The engine's state has changed; GET /state returns it.

    `is_loading`: a base model is being loaded, while libraries may hold the interpreter's lock for long.
    """

    type: Literal["state_changed"] = "state_changed"
    is_loading: bool = False
