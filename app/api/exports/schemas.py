"""What the routes of exports return. Knows no database session."""

from datetime import datetime

from pydantic import BaseModel, Field

from app.core.exports.results import Agreement, ExportedFile
from app.core.specs.export import ExportSpec, export_spec_adapter
from app.core.specs.states import ExportPhase, ExportState
from app.core.storage import tables


class ExportErrorRead(BaseModel):
    """Why an export failed."""

    code: str = Field(description="A stable word for programs.", examples=["export_mismatch"])
    message: str = Field(description="What happened, for a person.")
    hint: str | None = Field(description="What to do next.")


class ExportRead(BaseModel):
    """An adapter on its way into another format."""

    id: str = Field(description="Names the export in every path.", examples=["exp_4kq1v9x2m7ahc3zt"])
    adapter: str = Field(description="Id of the adapter.")
    adapter_name: str = Field(description="Its name when the export was asked for.")
    base_model: str = Field(description="The adapter's base model.")
    job: str | None = Field(description="Id of the job whose `push_to_hub` it is; null: it is of none.")
    spec: ExportSpec = Field(description="What was asked for.")
    state: ExportState = Field(description="Where the export stands.")
    phase: ExportPhase | None = Field(description="What a running export is doing.")
    queue_position: int | None = Field(
        None, description="Its place among the waiting exports, from 1; null: it does not wait."
    )
    progress: float = Field(description="How much of the phase is done, from 0 to 1.")
    agreement: Agreement | None = Field(
        description="How well the files, loaded afresh, agree with the live adapter."
    )
    notes: list[str] = Field(description="What a person should know of the files.")
    files: list[ExportedFile] = Field(description="What can be downloaded.")
    url: str | None = Field(description="Where it was pushed to.")
    attempts: int = Field(description="How often a worker has begun with it.")
    error: ExportErrorRead | None = Field(description="Why it failed.")
    created_at: datetime = Field(description="When it was asked for.")
    started_at: datetime | None = Field(description="When the last attempt began.")
    finished_at: datetime | None = Field(description="When it ended.")

    @classmethod
    def from_row(cls, row: tables.ExportRow, queue_position: int | None = None) -> "ExportRead":
        """The export as the API shows it."""
        return cls(
            id=row.id,
            adapter=row.adapter_id,
            adapter_name=row.adapter_name,
            base_model=row.base_model,
            job=row.job_id,
            spec=export_spec_adapter.validate_python(row.spec),
            state=ExportState(row.state),
            phase=ExportPhase(row.phase) if row.phase else None,
            queue_position=queue_position,
            progress=row.progress,
            agreement=Agreement.model_validate(row.agreement) if row.agreement else None,
            notes=row.notes,
            files=[ExportedFile.model_validate(file) for file in row.files],
            url=row.url,
            attempts=row.attempts,
            error=ExportErrorRead.model_validate(row.error) if row.error else None,
            created_at=row.created_at,
            started_at=row.started_at,
            finished_at=row.finished_at,
        )
