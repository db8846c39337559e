"""What the routes of datasets return. Knows no database session."""

from datetime import datetime

from pydantic import BaseModel, Field

from app.api.schemas import DatasetRowRead, ProblemRead, UnusedFieldRead
from app.core.datasets.rows import DatasetFormat
from app.core.specs.states import DatasetState
from app.core.storage import tables


class HubOriginRead(BaseModel):
    """Where on the Hub a dataset came from."""

    hub_dataset: str = Field(description="The dataset's name on the Hub.")
    config: str | None = Field(description="Its configuration; null: the default one.")
    split: str = Field(description="Its split.")
    revision: str | None = Field(description="The revision that was asked for; null: the newest.")
    commit: str | None = Field(description="The commit that was read; null until it is known.")


class DatasetErrorRead(BaseModel):
    """Why a Hub dataset could not be fetched."""

    code: str = Field(description="A stable word for programs.", examples=["hub_dataset_missing"])
    message: str = Field(description="What happened, for a person.")
    hint: str | None = Field(description="What to do next.")


class DatasetRead(BaseModel):
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
    problems: list[ProblemRead] = Field(
        description="Rows that were skipped, or for which it failed; the first hundred."
    )
    problem_count: int = Field(description="How many rows were skipped, or can't be used where it failed.")
    unused_fields: list[UnusedFieldRead] = Field(
        description="Fields from which nothing is learned, those that change what is learned first."
    )
    hub: HubOriginRead | None = Field(description="Where it came from; null: it was uploaded.")
    error: DatasetErrorRead | None = Field(description="Why it failed.")
    created_at: datetime = Field(description="When it was uploaded or asked for.")

    @classmethod
    def from_row(cls, row: tables.DatasetRow) -> "DatasetRead":
        """The dataset as the API shows it."""
        return cls(
            id=row.id,
            name=row.name,
            state=DatasetState(row.state),
            format=DatasetFormat(row.format) if row.format else None,
            rows=row.rows,
            columns=row.columns,
            size_bytes=row.size_bytes,
            problems=[ProblemRead.model_validate(problem) for problem in row.problems],
            problem_count=row.problem_count,
            unused_fields=[UnusedFieldRead.model_validate(unused) for unused in row.unused_fields],
            hub=HubOriginRead.model_validate(row.hub) if row.hub else None,
            error=DatasetErrorRead.model_validate(row.error) if row.error else None,
            created_at=row.created_at,
        )


class DatasetRows(BaseModel):
    """One page of a dataset's rows."""

    data: list[DatasetRowRead] = Field(description="The rows of this page.")
    next: int | None = Field(description="Line of the last one, for `after`; null at the end.")
