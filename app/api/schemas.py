"""What several routes of the native API return: pages, errors, workers. Knows no database session."""

from datetime import datetime
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, Field

from app.core.engine.state import EngineState
from app.core.storage import tables

Item = TypeVar("Item")


class Page(BaseModel, Generic[Item]):
    """One page of a list."""

    data: list[Item] = Field(description="The items of this page.")
    next: str | None = Field(description="Cursor of the next page, for `after`; null at the end.")


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


class ErrorResponse(BaseModel):
    """The one shape of every error."""

    error: ErrorRead


class WorkerRead(BaseModel):
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
    def from_row(cls, row: tables.WorkerRow) -> "WorkerRead":
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
