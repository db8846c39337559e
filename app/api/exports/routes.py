"""Exports of adapters: ask for one, follow it, download its files, cancel, retry, delete."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Body, Query, Request, Response
from fastapi.openapi.models import Example
from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from app.api.deps import AdapterName, After, ExportId, Limit, ServicesDep
from app.api.http import ranges
from app.api.http.errors import documented
from app.api.http.idempotency import OnceDep
from app.api.schemas import Page
from app.core.adapters import records as adapter_records
from app.core.errors import InvalidRequest
from app.core.errors.exports import ExportNotFound
from app.core.exports import records as export_records
from app.core.exports.results import Agreement, ExportedFile, file_stem
from app.core.specs.export import ExportSpec, export_spec_adapter
from app.core.specs.states import ExportPhase, ExportState
from app.core.storage import tables

router = APIRouter(tags=["Exports"])

_EXAMPLES: dict[str, Example] = {
    "gguf": {"summary": "For llama.cpp, in 8 bits", "value": {"format": "gguf", "type": "q8_0"}},
    "merged": {
        "summary": "A whole model in safetensors",
        "value": {"format": "merged", "base": "dequantized"},
    },
    "hub": {"summary": "Push to the Hub", "value": {"format": "hub", "repository": "me/support-bot"}},
}


class ExportError(BaseModel):
    """Why an export failed."""

    code: str = Field(description="A stable word for programs.", examples=["export_mismatch"])
    message: str = Field(description="What happened, for a person.")
    hint: str | None = Field(description="What to do next.")


class Export(BaseModel):
    """An adapter on its way into another format."""

    id: str = Field(description="Names the export in every path.", examples=["exp_4kq1v9x2m7ahc3zt"])
    adapter: str = Field(description="Id of the adapter.")
    adapter_name: str = Field(description="Its name when the export was asked for.")
    base_model: str = Field(description="The adapter's base model.")
    spec: ExportSpec = Field(description="What was asked for.")
    state: ExportState = Field(description="Where the export stands.")
    phase: ExportPhase | None = Field(description="What a running export is doing.")
    progress: float = Field(description="How much of the phase is done, from 0 to 1.")
    agreement: Agreement | None = Field(
        description="How well the files, loaded afresh, agree with the live adapter."
    )
    notes: list[str] = Field(description="What a person should know of the files.")
    files: list[ExportedFile] = Field(description="What can be downloaded.")
    url: str | None = Field(description="Where it was pushed to.")
    attempts: int = Field(description="How often a worker has begun with it.")
    error: ExportError | None = Field(description="Why it failed.")
    created_at: datetime = Field(description="When it was asked for.")
    started_at: datetime | None = Field(description="When the last attempt began.")
    finished_at: datetime | None = Field(description="When it ended.")

    @classmethod
    def from_row(cls, row: tables.ExportRow) -> "Export":
        """The export as the API shows it."""
        return cls(
            id=row.id,
            adapter=row.adapter_id,
            adapter_name=row.adapter_name,
            base_model=row.base_model,
            spec=export_spec_adapter.validate_python(row.spec),
            state=ExportState(row.state),
            phase=ExportPhase(row.phase) if row.phase else None,
            progress=row.progress,
            agreement=Agreement.model_validate(row.agreement) if row.agreement else None,
            notes=row.notes,
            files=[ExportedFile.model_validate(file) for file in row.files],
            url=row.url,
            attempts=row.attempts,
            error=ExportError.model_validate(row.error) if row.error else None,
            created_at=row.created_at,
            started_at=row.started_at,
            finished_at=row.finished_at,
        )


@router.post(
    "/adapters/{id_or_name}/exports",
    status_code=202,
    summary="Export an adapter",
    responses=documented(404, 429),
)
def submit_export(
    id_or_name: AdapterName,
    spec: Annotated[ExportSpec, Body(openapi_examples=_EXAMPLES)],
    once: OnceDep,
    response: Response,
    services: ServicesDep,
) -> Export:
    """Ask a worker for an adapter in another format. The files are compared with the live adapter first."""

    def make(session: Session) -> Export:
        adapter = adapter_records.get(session, id_or_name)
        row = export_records.submit(session, adapter, spec, max_waiting=services.settings.max_queued_jobs)
        return Export.from_row(row)

    export = once.make(make, find=_find)
    response.headers["location"] = f"/exports/{export.id}"
    return export


@router.get("/adapters/{id_or_name}/exports", summary="List an adapter's exports", responses=documented(404))
def list_adapter_exports(
    id_or_name: AdapterName, services: ServicesDep, after: After = None, limit: Limit = 50
) -> Page[Export]:
    """Exports of one adapter, the newest first."""
    with services.database.snapshot() as session:
        adapter = adapter_records.get(session, id_or_name)
        rows, cursor = export_records.find_page(session, adapter_id=adapter.id, after=after, limit=limit)
        return Page(data=[Export.from_row(row) for row in rows], next=cursor)


@router.get("/exports", summary="List exports")
def list_exports(services: ServicesDep, after: After = None, limit: Limit = 50) -> Page[Export]:
    """Exports of all adapters, the newest first; also of adapters that were deleted since."""
    with services.database.snapshot() as session:
        rows, cursor = export_records.find_page(session, adapter_id=None, after=after, limit=limit)
        return Page(data=[Export.from_row(row) for row in rows], next=cursor)


@router.get("/exports/{export_id}", summary="Show an export", responses=documented(404))
def show_export(export_id: ExportId, services: ServicesDep) -> Export:
    """State, phase, progress, agreement with the live adapter, files, and the error of a failed export."""
    with services.database.snapshot() as session:
        return _find(session, export_id)


@router.get(
    "/exports/{export_id}/download",
    response_class=Response,
    summary="Download an export",
    responses=documented(404, 409, 416)
    | {
        200: {"description": "The file, or a tar of all files.", "content": {"application/octet-stream": {}}},
        206: {"description": "The range that was asked for."},
    },
)
def download_export(
    export_id: ExportId,
    request: Request,
    services: ServicesDep,
    file: Annotated[
        str | None, Query(max_length=255, description="One file by its name; default: all.")
    ] = None,
) -> Response:
    """The file; of an export with several, a tar of them. A download that broke off goes on with a range.

    `curl -C - -OJ 'localhost:8000/exports/exp_…/download'`; `X-Checksum-SHA256` is that of the whole file.
    """
    with services.database.snapshot() as session:
        row = export_records.get(session, export_id)
        export_records.check_downloadable(row)
        export, artifact = Export.from_row(row), row.artifact
    assert artifact is not None
    files = [found for found in export.files if file in (None, found.name)]
    if not files:
        names = ", ".join(found.name for found in export.files)
        raise InvalidRequest(f"The export has no file {file!r}.", param="file", hint=f"It has: {names}.")
    if set(services.store.list_files(artifact)) < {found.name for found in files}:
        raise ExportNotFound(f"The files of export {export_id} are gone.", hint="Export the adapter again.")
    if len(files) == 1:
        download = ranges.one_file(services.store, artifact, files[0])
    else:
        folder = f"{file_stem(export.adapter_name)}-{export.spec.format}"
        download = ranges.tar_of(services.store, artifact, files, folder)
    return ranges.answer(request, download)


@router.post(
    "/exports/{export_id}/cancel", status_code=202, summary="Cancel an export", responses=documented(404, 409)
)
def cancel_export(export_id: ExportId, services: ServicesDep) -> Export:
    """End an export; what it had made is removed."""
    with services.database.transaction() as session:
        return Export.from_row(export_records.cancel(session, export_id))


@router.post(
    "/exports/{export_id}/retry", status_code=202, summary="Retry an export", responses=documented(404, 409)
)
def retry_export(export_id: ExportId, services: ServicesDep) -> Export:
    """Run a failed or cancelled export again. Of a failed one the merged model is kept, and used."""
    with services.database.transaction() as session:
        return Export.from_row(export_records.retry(session, export_id))


@router.delete(
    "/exports/{export_id}", status_code=204, summary="Delete an export", responses=documented(404, 409)
)
def delete_export(export_id: ExportId, services: ServicesDep) -> None:
    """Delete an export that has ended, and its files. What was pushed to the Hub stays there."""
    with services.database.transaction() as session:
        folder = export_records.delete(session, export_id)
    services.store.delete(folder)


def _find(session: Session, export_id: str) -> Export:
    return Export.from_row(export_records.get(session, export_id))
