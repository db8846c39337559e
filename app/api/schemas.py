"""What several routes of the native API return: pages, errors, workers. Knows no database session."""

from dataclasses import asdict
from datetime import datetime
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from app.core.datasets.column_maps.samples import FileSample
from app.core.datasets.readers.sources import Container
from app.core.datasets.rows import DatasetFormat, as_plain
from app.core.engine.devices import WorkerDevice
from app.core.engine.state import EngineState
from app.core.specs.priority import Priority
from app.core.storage import tables

Item = TypeVar("Item")


class Page(BaseModel, Generic[Item]):
    """One page of a list."""

    data: list[Item] = Field(description="The items of this page.")
    next: str | None = Field(description="Cursor of the next page, for `after`; null at the end.")


class PriorityChange(BaseModel):
    """Another priority for work that waits."""

    model_config = ConfigDict(extra="forbid")

    priority: Priority


class ProblemRead(BaseModel):
    """A line of a file that can't be used."""

    line: int = Field(description="Line of the file, from 1.")
    message: str = Field(description="What is wrong with it.")


class UnusedFieldRead(BaseModel):
    """A field of a file from which nothing is learned."""

    field: str = Field(description="Where it is.", examples=["messages[].tool_calls", "category"])
    rows: int = Field(description="Rows in which it has a value; empty in all: the rows that have it.")
    changes_learning: bool = Field(
        description="Whether its name says that it changes what is learned: tools, preferences, images, "
        "reasoning. Such a file is refused unless `on_unused` is `ignore`."
    )
    lines: list[int] = Field([], description="The first lines with a value.")


class ColumnGuessRead(BaseModel):
    """A format that the file may have, and which of its columns would be which of the format's."""

    format: DatasetFormat = Field(description="The format.")
    column_map: dict[str, str] = Field(description="For `column_map` of the upload.")


class SampleRecordRead(BaseModel):
    """A record of a file, as it is there."""

    line: int = Field(description="Where it begins: line of the file, or row of a Parquet file, from 1.")
    values: dict[str, Any] = Field(description="The value of each column.")


class DatasetRowRead(BaseModel):
    """A row as it was read."""

    line: int = Field(description="Line of the file, or row of a Parquet file, from 1.")
    row: dict[str, Any] = Field(
        description="`messages` and perhaps `tools`; or `prompt` and `completion`, with a `label` or not; or "
        "`text`; or `prompt`, `chosen` and `rejected`. These parts are text, or lists of messages."
    )


class ReadingErrorRead(BaseModel):
    """Why the file would be refused with this `column_map`."""

    code: str = Field(description="A stable word for programs.", examples=["dataset_invalid"])
    message: str = Field(description="What is wrong, for a person.")
    hint: str | None = Field(description="What to do next.")


class DatasetSampleRead(BaseModel):
    """The first records of a file, what its columns may mean, and how they are read."""

    container: Container = Field(description="The kind of file.")
    columns: list[str] = Field(description="Its columns.")
    records: list[SampleRecordRead] = Field(description="The first records, as they are in the file.")
    guesses: list[ColumnGuessRead] = Field(
        description="Column maps that are likely to be right, the likeliest first."
    )
    column_map: dict[str, str] = Field(
        description="With what the rows were read: the map of the request, or none, or the likeliest guess."
    )
    format: DatasetFormat | None = Field(description="The format of `rows`; null: they can't be read so.")
    rows: list[DatasetRowRead] = Field(description="The first records, as they are read.")
    problems: list[ProblemRead] = Field(description="Those of the first records that can't be used.")
    unused_fields: list[UnusedFieldRead] = Field(
        description="Fields of the first records from which nothing is learned."
    )
    error: ReadingErrorRead | None = Field(description="Why the file would be refused; null: it would not.")

    @classmethod
    def from_sample(cls, sample: FileSample) -> "DatasetSampleRead":
        """The sample as the API shows it."""
        reading = sample.reading
        found = reading.found
        error = reading.error
        return cls(
            container=sample.container,
            columns=sample.columns,
            records=[SampleRecordRead(line=line, values=values) for line, values in sample.records],
            guesses=[ColumnGuessRead(**asdict(guess)) for guess in sample.guesses],
            column_map=reading.column_map,
            format=found.format if found else None,
            rows=[DatasetRowRead(line=line, row=as_plain(row)) for line, row in reading.rows],
            problems=[ProblemRead(**asdict(problem)) for problem in found.problems] if found else [],
            unused_fields=[UnusedFieldRead(**one.as_record()) for one in found.unused_fields]
            if found
            else [],
            error=ReadingErrorRead(code=error.code, message=error.message, hint=error.hint)
            if error
            else None,
        )


class ErrorRead(BaseModel):
    """What went wrong, and what to do next."""

    type: str = Field(description="The kind of error.", examples=["invalid_request_error"])
    code: str = Field(description="A stable word for programs.", examples=["invalid_request"])
    message: str = Field(description="What happened, for a person.")
    param: str | None = Field(description="The field it is about.", examples=["training.learning_rate"])
    hint: str | None = Field(description="What to do next.")
    problems: list[ProblemRead] | None = Field(None, description="With `dataset_invalid`: every bad line.")
    unused_fields: list[UnusedFieldRead] | None = Field(
        None, description="With `fields_unused`: the fields for which the file was refused."
    )
    sample: DatasetSampleRead | None = Field(
        None, description="Where a file's columns are unknown, or fields unused: its first records."
    )


class ErrorResponse(BaseModel):
    """The one shape of every error."""

    error: ErrorRead


class WorkerRead(BaseModel):
    """A worker that is alive."""

    id: str = Field(description="Names the worker in attempts.")
    roles: list[str] = Field(description="Any of `train`, `serve`, and `cluster`: jobs over several hosts.")
    device: dict[str, Any] = Field(
        description="The first device, as the worker describes it, and what is free of it and how busy it is."
    )
    devices: list[WorkerDevice] = Field(
        description="Every device of the worker's host, what it does, and how busy it is."
    )
    engine: EngineState | None = Field(description="What its engine serves.")
    problems: list[str] = Field(description="What is wrong with its machine, as it found at its start.")
    trackers: list[str] = Field(description="The trackers that it has packages for; `report_to` names them.")
    has_hub_token: bool | None = Field(
        description="Whether it has a token for the Hub, to push to it; null: unknown."
    )
    started_at: datetime = Field(description="When the worker started.")
    heartbeat_at: datetime = Field(description="When it was last heard of.")

    @classmethod
    def from_row(cls, row: tables.WorkerRow) -> "WorkerRead":
        """The worker as the API shows it: neither the engine's address nor its token."""
        return cls(
            id=row.id,
            roles=row.roles,
            device=row.device,
            devices=[WorkerDevice.model_validate(device) for device in row.devices],
            engine=EngineState.model_validate(row.engine_state) if row.engine_state else None,
            problems=row.problems,
            trackers=row.trackers,
            has_hub_token=row.has_hub_token,
            started_at=row.started_at,
            heartbeat_at=row.heartbeat_at,
        )
