"""Exports of adapters: ask for one, follow it, download its files, cancel, retry, delete."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Body, Query, Request, Response
from fastapi.openapi.models import Example
from sqlalchemy.orm import Session

from app.api.deps import AdapterName, After, ExportId, Limit, ServicesDep
from app.api.exports.schemas import ExportRead
from app.api.http import ranges
from app.api.http.access.auth import CallerDep
from app.api.http.errors import documented
from app.api.http.idempotency import IdempotentRequestDep
from app.api.http.store_threads import in_store_threads
from app.api.schemas import Page, PriorityChange
from app.core.adapters.names import get_adapter
from app.core.errors import InvalidRequest
from app.core.errors.exports import ExportNotFound
from app.core.exports import records as export_records
from app.core.exports.results import file_stem
from app.core.specs.export import ExportSpec
from app.core.storage.tables import ExportRow
from app.core.work import turns

router = APIRouter(tags=["Exports"])

_EXAMPLES: dict[str, Example] = {
    "gguf": {"summary": "For llama.cpp, in 8 bits", "value": {"format": "gguf", "type": "q8_0"}},
    "k_quants": {
        "summary": "For llama.cpp and Ollama, in 4 and in 6 bits",
        "value": {"format": "gguf", "type": ["q4_k_m", "q6_k"], "importance_matrix": True},
    },
    "merged": {
        "summary": "A whole model in safetensors",
        "value": {"format": "merged", "base": "dequantized"},
    },
    "fp8": {"summary": "For vLLM and SGLang, in FP8", "value": {"format": "fp8"}},
    "awq": {"summary": "For vLLM and SGLang, in 4 bits", "value": {"format": "awq"}},
    "hub": {"summary": "Push to the Hub", "value": {"format": "hub", "repository": "me/support-bot"}},
}


@router.post(
    "/adapters/{id_or_name}/exports",
    status_code=202,
    summary="Export an adapter",
    responses=documented(404, 429),
)
def submit_export(
    id_or_name: AdapterName,
    spec: Annotated[ExportSpec, Body(openapi_examples=_EXAMPLES)],
    idempotent: IdempotentRequestDep,
    response: Response,
    services: ServicesDep,
    caller: CallerDep,
) -> ExportRead:
    """Ask a worker for an adapter in another format. The files are compared with the live adapter first."""

    def create(session: Session) -> ExportRead:
        adapter = get_adapter(session, id_or_name)
        most = services.settings.max_queued_jobs
        return _read(session, export_records.submit(session, adapter, spec, max_waiting=most, caller=caller))

    export = idempotent.create(create, find=_find)
    response.headers["location"] = f"/exports/{export.id}"
    return export


@router.get("/adapters/{id_or_name}/exports", summary="List an adapter's exports", responses=documented(404))
def list_adapter_exports(
    id_or_name: AdapterName, services: ServicesDep, after: After = None, limit: Limit = 50
) -> Page[ExportRead]:
    """Exports of one adapter, the newest first."""
    with services.database.snapshot() as session:
        adapter = get_adapter(session, id_or_name)
        rows, cursor = export_records.find_page(session, adapter_id=adapter.id, after=after, limit=limit)
        return Page(data=_read_all(session, rows), next=cursor)


@router.get("/exports", summary="List exports")
def list_exports(services: ServicesDep, after: After = None, limit: Limit = 50) -> Page[ExportRead]:
    """Exports of all adapters, the newest first; also of adapters that were deleted since."""
    with services.database.snapshot() as session:
        rows, cursor = export_records.find_page(session, adapter_id=None, after=after, limit=limit)
        return Page(data=_read_all(session, rows), next=cursor)


@router.get("/exports/{export_id}", summary="Show an export", responses=documented(404))
def show_export(export_id: ExportId, services: ServicesDep) -> ExportRead:
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
@in_store_threads
def download_export(
    export_id: ExportId,
    request: Request,
    services: ServicesDep,
    file: Annotated[
        str | None, Query(max_length=255, description="One file by its name; default: all.")
    ] = None,
) -> Response:
    """The file; of an export with several, a tar of them. A download that broke off goes on with a range.

    `curl -C - -o helper.zip 'localhost:8000/exports/exp_…/download'`; `X-Checksum-SHA256` is that of the
    whole file.
    """
    with services.database.snapshot() as session:
        row = export_records.get(session, export_id)
        export_records.check_downloadable(row)
        export, artifact = ExportRead.from_row(row), row.artifact
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
    return ranges.answer(request, download, services.store_threads)


@router.patch("/exports/{export_id}", summary="Change an export's priority", responses=documented(404, 409))
def change_export(
    export_id: ExportId, body: Annotated[PriorityChange, Body()], services: ServicesDep, caller: CallerDep
) -> ExportRead:
    """Give an export that waits another place in the queue."""
    with services.database.transaction() as session:
        return _read(
            session, export_records.change_priority(session, export_id, body.priority, caller=caller)
        )


@router.post(
    "/exports/{export_id}/cancel", status_code=202, summary="Cancel an export", responses=documented(404, 409)
)
def cancel_export(export_id: ExportId, services: ServicesDep) -> ExportRead:
    """End an export; what it had made is removed."""
    with services.database.transaction() as session:
        return ExportRead.from_row(export_records.cancel(session, export_id))


@router.post(
    "/exports/{export_id}/retry",
    status_code=202,
    summary="Retry an export",
    responses=documented(404, 409, 429),
)
def retry_export(export_id: ExportId, services: ServicesDep) -> ExportRead:
    """Run a failed or cancelled export again. Of a failed one the merged model is kept, and used."""
    with services.database.transaction() as session:
        return _read(session, export_records.retry(session, export_id))


@router.delete(
    "/exports/{export_id}", status_code=204, summary="Delete an export", responses=documented(404, 409)
)
@in_store_threads
def delete_export(export_id: ExportId, services: ServicesDep) -> None:
    """Delete an export that has ended, and its files. What was pushed to the Hub stays there."""
    with services.database.transaction() as session:
        folder = export_records.delete(session, export_id)
    services.store.discard(folder)


def _find(session: Session, export_id: str) -> ExportRead:
    return _read(session, export_records.get(session, export_id))


def _read(session: Session, row: ExportRow) -> ExportRead:
    return _read_all(session, [row])[0]


def _read_all(session: Session, rows: Sequence[ExportRow]) -> list[ExportRead]:
    places = turns.find_places(session, ExportRow, rows)
    return [ExportRead.from_row(row, places.get(row.id)) for row in rows]
