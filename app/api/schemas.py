"""What the native API answers: one class a thing, each made from its row. Knows no database session."""

from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, Field

from app.core.datasets.rows import DatasetFormat
from app.core.engine.messages import EngineState
from app.core.specs.job import JobSpec
from app.core.specs.states import AdapterState, DatasetState, ExitReason, JobState, Phase
from app.core.storage import tables

Item = TypeVar("Item")


class Page(BaseModel, Generic[Item]):
    """One page of a list."""

    data: list[Item] = Field(description="The items of this page.")
    next: str | None = Field(description="Cursor of the next page, for `after`; null at the end.")


class Problem(BaseModel):
    """A line of a file that can't be used."""

    line: int = Field(description="Line of the file, from 1.")
    message: str = Field(description="What is wrong with it.")


class ErrorBody(BaseModel):
    """What went wrong, and what to do next."""

    type: str = Field(description="The kind of error.", examples=["invalid_request_error"])
    code: str = Field(description="A stable word for programs.", examples=["invalid_request"])
    message: str = Field(description="What happened, for a person.")
    param: str | None = Field(description="The field it is about.", examples=["training.learning_rate"])
    hint: str | None = Field(description="What to do next.")
    problems: list[Problem] | None = Field(None, description="With `dataset_invalid`: every bad line.")


class ErrorAnswer(BaseModel):
    """The one shape of every error."""

    error: ErrorBody


class HubOrigin(BaseModel):
    """Where on the Hub a dataset came from."""

    hub_dataset: str = Field(description="The dataset's name on the Hub.")
    config: str | None = Field(description="Its configuration; null: the default one.")
    split: str = Field(description="Its split.")
    revision: str | None = Field(description="The revision that was asked for; null: the newest.")
    commit: str | None = Field(description="The commit that was read; null until it is known.")


class DatasetError(BaseModel):
    """Why a Hub dataset could not be fetched."""

    code: str = Field(description="A stable word for programs.", examples=["hub_dataset_missing"])
    message: str = Field(description="What happened, for a person.")
    hint: str | None = Field(description="What to do next.")


class Dataset(BaseModel):
    """A dataset, uploaded or fetched from the Hub."""

    id: str = Field(description="Names the dataset in a job.", examples=["ds_4kq1v9x2m7ahc3zt"])
    name: str = Field(description="The file's or the Hub dataset's name, or the one that was given.")
    state: DatasetState = Field(
        description="`fetching`: it is read from the Hub. `ready`: jobs may name it. `failed`: see `error`."
    )
    format: DatasetFormat | None = Field(
        description="What the rows look like, found from their columns; null until it is ready."
    )
    rows: int = Field(description="Rows that can be used; those read so far while it is fetched.")
    columns: list[str] = Field(description="Every column that a row has.")
    size_bytes: int = Field(description="Size of its rows as they are stored; 0 until it is ready.")
    problems: list[Problem] = Field(
        description="Rows that were skipped, or for which it failed; the first hundred."
    )
    problem_count: int = Field(description="How many rows were skipped, or can't be used where it failed.")
    hub: HubOrigin | None = Field(description="Where it came from; null: it was uploaded.")
    error: DatasetError | None = Field(description="Why it failed.")
    created_at: datetime = Field(description="When it was uploaded or asked for.")

    @classmethod
    def from_row(cls, row: tables.DatasetRow) -> "Dataset":
        """The dataset as the API shows it."""
        return cls(
            id=row.id,
            name=row.name,
            state=DatasetState(row.state),
            format=DatasetFormat(row.format) if row.format else None,
            rows=row.rows,
            columns=row.columns,
            size_bytes=row.size_bytes,
            problems=[Problem.model_validate(problem) for problem in row.problems],
            problem_count=row.problem_count,
            hub=HubOrigin.model_validate(row.hub) if row.hub else None,
            error=DatasetError.model_validate(row.error) if row.error else None,
            created_at=row.created_at,
        )


class Progress(BaseModel):
    """How far a job is."""

    step: int = Field(description="Optimizer steps done.")
    total_steps: int | None = Field(description="Optimizer steps in all, once known.")
    epoch: float | None = Field(description="Passes over the dataset done.")
    loss: float | None = Field(description="The loss last logged.")
    eta_seconds: float | None = Field(description="About how long the job still takes.")


class Attempt(BaseModel):
    """One try at a job by one worker."""

    number: int = Field(description="Counts from 1.")
    worker: str = Field(description="Id of the worker.")
    started_at: datetime = Field(description="When the worker took the job.")
    ended_at: datetime | None = Field(description="When the try ended; null while it goes on.")
    exit_reason: ExitReason | None = Field(description="How the try ended; null while it goes on.")


class JobError(BaseModel):
    """Why a job failed."""

    code: str = Field(description="A stable word for programs.", examples=["out_of_memory"])
    message: str = Field(description="What happened, for a person.")
    hint: str | None = Field(description="What to do next.")


class Job(BaseModel):
    """A fine-tuning job."""

    id: str = Field(description="Names the job in every path.", examples=["job_4kq1v9x2m7ahc3zt"])
    name: str = Field(description="The name that was given, or the id.")
    state: JobState = Field(description="Where the job stands.")
    phase: Phase | None = Field(description="What a running job is doing.")
    progress: Progress = Field(description="How far it is.")
    spec: JobSpec = Field(description="What was asked for, with every default filled in.")
    attempts: list[Attempt] = Field(description="Every try, the first one first.")
    adapter: str | None = Field(description="Id of the finished adapter; `/generate` takes it.")
    error: JobError | None = Field(description="Why the job failed.")
    cancel_requested_at: datetime | None = Field(description="When the job was asked to stop.")
    pause_requested_at: datetime | None = Field(
        description="When it was asked to pause; null once it has, or if it is to go on."
    )
    created_at: datetime = Field(description="When it was submitted.")
    started_at: datetime | None = Field(description="When a worker first took it.")
    finished_at: datetime | None = Field(description="When it ended.")

    @classmethod
    def from_row(cls, row: tables.JobRow) -> "Job":
        """The job as the API shows it."""
        return cls(
            id=row.id,
            name=row.name,
            state=JobState(row.state),
            phase=Phase(row.phase) if row.phase else None,
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


class AdapterError(BaseModel):
    """Why an import failed, or what it waits for."""

    code: str = Field(description="Stable, for programs.")
    message: str = Field(description="For people.")
    hint: str | None = Field(description="What to do.")


class Adapter(BaseModel):
    """A LoRA adapter: finished, or being imported."""

    id: str = Field(description="Names the adapter for good.", examples=["ad_4kq1v9x2m7ahc3zt"])
    name: str = Field(description="The job's name; the API takes it wherever it takes the id.")
    base_model: str = Field(description="The base model it was trained against.")
    job: str | None = Field(description="Id of the job that made it.")
    step: int | None = Field(description="The step at which the job kept it; null: it is the finished one.")
    state: AdapterState = Field(
        description="`ready`: it answers. `importing`: it is being proved. `failed`: `error` says why."
    )
    error: AdapterError | None = Field(None, description="Of an import: why it failed, or what it waits for.")
    size_bytes: int = Field(description="Size of its files.")
    created_at: datetime = Field(description="When its job finished.")

    @classmethod
    def from_row(cls, row: tables.AdapterRow) -> "Adapter":
        """The adapter as the API shows it."""
        return cls(
            id=row.id,
            name=row.name,
            base_model=row.base_model,
            job=row.job_id,
            step=row.step,
            state=AdapterState.READY,
            size_bytes=row.size_bytes,
            created_at=row.created_at,
        )

    @classmethod
    def from_import(cls, row: tables.AdapterImportRow) -> "Adapter":
        """An import as the API shows it."""
        return cls(
            id=row.id,
            name=row.name,
            base_model=row.base_model,
            job=None,
            step=None,
            state=AdapterState(row.state),
            error=AdapterError.model_validate(row.error) if row.error else None,
            size_bytes=row.size_bytes,
            created_at=row.created_at,
        )


class Model(BaseModel):
    """A base model that may be named."""

    name: str = Field(description="`base_model` takes it.", examples=["SmolLM2-135M-Instruct"])
    source: Literal["local", "hub"] = Field(
        description="`local`: in the models folder. `hub`: the worker downloads it when it is first needed."
    )
    architecture: str | None = Field(None, description="Its class in transformers, from `config.json`.")
    context_length: int | None = Field(None, description="Most tokens of prompt and answer together.")
    size_bytes: int | None = Field(None, description="Size of the files on disk.")
    loaded: bool = Field(description="Whether an engine holds it now, so that it answers at once.")
    state: Literal["loaded", "loading", "on_disk", "on_hub"] = Field(
        description="`loaded`: it answers at once. `loading`: an engine is loading it, and requests wait. "
        "`on_disk`: the first request loads it, which may wait until another base model is not needed. "
        "`on_hub`: the same, and it may have to be downloaded first."
    )
    waiting: int = Field(0, description="Requests that wait for it, as of the worker's last word.")


class Models(Page[Model]):
    """The base models that may be named."""

    any_hub_model: bool = Field(description="Whether any other Hub id may be named too: no allow-list.")


class Worker(BaseModel):
    """A worker that is alive."""

    id: str = Field(description="Names the worker in attempts.")
    roles: list[str] = Field(description="`train`, `serve`, or both.")
    device: dict[str, Any] = Field(
        description="The device, as the worker describes it, and what is free of it and how busy it is."
    )
    engine: EngineState | None = Field(description="What its engine serves.")
    problems: list[str] = Field(description="What is wrong with its machine, as it found at its start.")
    started_at: datetime = Field(description="When the worker started.")
    heartbeat_at: datetime = Field(description="When it was last heard of.")

    @classmethod
    def from_row(cls, row: tables.WorkerRow) -> "Worker":
        """The worker as the API shows it: neither the engine's address nor its token."""
        return cls(
            id=row.id,
            roles=row.roles,
            device=row.device,
            engine=EngineState.model_validate(row.engine_state) if row.engine_state else None,
            problems=row.problems,
            started_at=row.started_at,
            heartbeat_at=row.heartbeat_at,
        )


def _progress(row: tables.JobRow) -> Progress:
    return Progress(
        step=row.step,
        total_steps=row.total_steps,
        epoch=row.epoch,
        loss=row.loss,
        eta_seconds=row.eta_seconds,
    )


def _attempt(row: tables.AttemptRow) -> Attempt:
    return Attempt(
        number=row.number,
        worker=row.worker_id,
        started_at=row.started_at,
        ended_at=row.ended_at,
        exit_reason=ExitReason(row.exit_reason) if row.exit_reason else None,
    )


def _job_error(row: tables.JobRow) -> JobError | None:
    if row.error_code is None:
        return None
    return JobError(code=row.error_code, message=row.error_message or "", hint=row.error_hint)
