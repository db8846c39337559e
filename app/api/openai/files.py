"""/v1/files: upload, list, show, download and delete. A file is a dataset; result files are loss curves."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import PurePath
from typing import Annotated, BinaryIO, Literal

from fastapi import APIRouter, File, Form, Path, Query, UploadFile
from pydantic import BaseModel, Field
from sqlalchemy.orm import Session
from starlette.responses import Response, StreamingResponse

from app.api.deps import MAX_PAGE, Services, ServicesDep
from app.api.http.bodies.uploads import spooled
from app.api.http.idempotency import IdempotentRequestDep
from app.api.http.store_threads import in_store_threads, read_in_store_threads
from app.api.jobs import loss_curve
from app.api.jobs.history import read_curve
from app.api.openai.lists import OpenAIPage
from app.api.openai.parameters import reject_parameter
from app.core.datasets import openai_files, records as dataset_records
from app.core.datasets.limits import Limits
from app.core.datasets.rows import write_plain
from app.core.datasets.unused_fields import OnUnused
from app.core.errors.datasets import DatasetNotFound
from app.core.jobs import records as job_records
from app.core.specs.states import DatasetState
from app.core.storage import tables

router = APIRouter(prefix="/files")

MIN_EXPIRY_SECONDS, MAX_EXPIRY_SECONDS = 3600, 2_592_000
_CHUNK_BYTES = 1 << 20
_MEDIA_TYPE = "application/octet-stream"
FileId = Annotated[str, Path(description="The file's id.", examples=["ds_4kq1v9x2m7ahc3zt"])]


class FileObject(BaseModel):
    """A file: an upload, a native dataset, or the loss curve of a finished job."""

    id: str = Field(description="`training_file` takes it, and so does `dataset` of a native job.")
    object: Literal["file"] = Field("file", description="Always `file`.")
    bytes: int = Field(description="Its size.")
    created_at: int = Field(description="When it was made, in seconds since 1970.")
    expires_at: int | None = Field(None, description="When it will be deleted.")
    filename: str = Field(description="Its name.")
    purpose: Literal["fine-tune", "fine-tune-results", "evals"] = Field(description="What it is for.")
    status: Literal["uploaded", "processed", "error"] = Field(
        description="`uploaded`: a worker still fetches it from the Hub. `error`: that failed."
    )
    status_details: str | None = Field(None, description="Why it can't be trained on.")


class FileDeleted(BaseModel):
    """The file is gone."""

    id: str = Field(description="The file's id.")
    object: Literal["file"] = Field("file", description="Always `file`.")
    deleted: Literal[True] = Field(True, description="Always true.")


@router.post("", summary="Upload a file")
@in_store_threads
def upload_file(
    services: ServicesDep,
    idempotent: IdempotentRequestDep,
    file: Annotated[UploadFile, File(description="JSON lines, or any kind that `POST /datasets` takes.")],
    purpose: Annotated[str, Form(description="`fine-tune` or `evals`.")],
    expires_anchor: Annotated[
        Literal["created_at"] | None, Form(alias="expires_after[anchor]", description="Only `created_at`.")
    ] = None,
    expires_seconds: Annotated[
        int | None,
        Form(
            alias="expires_after[seconds]",
            ge=MIN_EXPIRY_SECONDS,
            le=MAX_EXPIRY_SECONDS,
            description="How long to keep it; later than that it goes once no job needs it.",
        ),
    ] = None,
    on_unused: Annotated[
        OnUnused,
        Form(
            description="Not OpenAI's (`extra_body`): whether a file with fields that change what is learned "
            "and are not used, such as tools, is trained on without them."
        ),
    ] = OnUnused.REFUSE,
) -> FileObject:
    """Store a file to train on, or rows of an eval. What can't be used is taken too: what names it fails."""
    if purpose not in (openai_files.FINE_TUNE, openai_files.EVALS):
        reject_parameter("purpose", f"{purpose!r} is not supported here; only 'fine-tune' and 'evals' are")
    earlier = idempotent.find_earlier(
        lambda session, file_id: _show(services, openai_files.get(session, file_id))
    )
    if earlier is not None:
        return earlier
    lifetime = timedelta(seconds=expires_seconds) if expires_seconds else None
    with spooled(services.scratch, file.file) as path:
        name = PurePath(file.filename or "").name[:255] or "file"
        expires_at = datetime.now(UTC) + lifetime if lifetime else None
        if purpose == openai_files.EVALS:
            row = openai_files.store_for_evals(services.store, path, name=name, expires_at=expires_at)
        else:
            row = openai_files.store(
                services.store,
                path,
                name=name,
                limits=Limits.from_settings(services.settings),
                on_unused=on_unused,
                expires_at=expires_at,
            )

    def create(session: Session) -> FileObject:
        session.add(row)
        session.flush()
        return _show(services, row)

    made = idempotent.create(
        create, find=lambda session, file_id: _show(services, openai_files.get(session, file_id))
    )
    if made.id != row.id:
        services.store.discard(dataset_records.folder_of(row.id))
    return made


@router.get("", summary="List files")
def list_files(
    services: ServicesDep,
    purpose: Annotated[str | None, Query(description="Only files of this purpose.")] = None,
    order: Annotated[openai_files.Order, Query(description="By the time they were made.")] = "desc",
    after: Annotated[str | None, Query(max_length=64, description="Id of the last file seen.")] = None,
    limit: Annotated[
        int, Query(ge=1, le=10_000, description=f"Most files in the answer, never more than {MAX_PAGE}.")
    ] = MAX_PAGE,
) -> OpenAIPage[FileObject]:
    """Files, the newest first. With `purpose` of another kind there are none."""
    if purpose not in (None, openai_files.FINE_TUNE, openai_files.RESULTS, openai_files.EVALS):
        return OpenAIPage(data=[], has_more=False)
    with services.database.snapshot() as session:
        found, has_more = openai_files.find_page(
            session, purpose=purpose, order=order, after=after, limit=min(limit, MAX_PAGE)
        )
    return OpenAIPage(data=[_show(services, file) for file in found], has_more=has_more)


@router.get("/{file_id}", summary="Show a file")
def show_file(file_id: FileId, services: ServicesDep) -> FileObject:
    """One file."""
    with services.database.snapshot() as session:
        file = openai_files.get(session, file_id)
    return _show(services, file)


@router.get("/{file_id}/content", summary="Download a file", response_class=StreamingResponse)
@in_store_threads
def read_file(file_id: FileId, services: ServicesDep) -> Response:
    """An upload's own bytes; the rows of a native dataset as JSON lines; a loss curve as CSV."""
    with services.database.snapshot() as session:
        file = openai_files.get(session, file_id)
        if isinstance(file, tables.DatasetRow) and file.original is None:
            dataset_records.get_ready(session, file_id, param="file_id")
    if isinstance(file, tables.JobRow):
        return Response(_curve(services, file), media_type="text/csv")
    if file.original is None:
        rows = dataset_records.open_rows(services.store, file)
        return StreamingResponse(
            read_in_store_threads(services.store_threads, (write_plain(row) for _, row in rows)),
            media_type="application/jsonl",
        )
    try:
        return StreamingResponse(
            read_in_store_threads(services.store_threads, _chunks(services.store.open(file.original))),
            media_type=_MEDIA_TYPE,
        )
    except FileNotFoundError:
        raise DatasetNotFound(f"The bytes of file {file_id!r} are gone.", param="file_id") from None


@router.delete("/{file_id}", summary="Delete a file")
@in_store_threads
def delete_file(file_id: FileId, services: ServicesDep) -> FileDeleted:
    """Delete a file that no job needs any more."""
    with services.database.transaction() as session:
        folder = openai_files.delete(session, file_id)
    services.store.discard(folder)
    return FileDeleted(id=file_id)


def _show(services: Services, file: openai_files.File) -> FileObject:
    created_at = int(openai_files.created_at(file).timestamp())
    if isinstance(file, tables.JobRow):
        return FileObject(
            id=openai_files.result_of(file),
            bytes=_measure(services, file),
            created_at=created_at,
            filename="step_metrics.csv",
            purpose="fine-tune-results",
            status="processed",
        )
    return FileObject(
        id=file.id,
        bytes=file.size_bytes if file.original_bytes is None else file.original_bytes,
        created_at=created_at,
        expires_at=int(file.expires_at.timestamp()) if file.expires_at else None,
        filename=file.name,
        purpose="evals" if openai_files.is_for_evals(file) else "fine-tune",
        status=_status(file),
        status_details=(file.error or {}).get("message"),
    )


def _status(dataset: tables.DatasetRow) -> Literal["uploaded", "processed", "error"]:
    if dataset.state == DatasetState.FETCHING:
        return "uploaded"
    # OpenAI takes any upload, and says what is wrong with it when a job is made.
    return "error" if dataset.state == DatasetState.FAILED and dataset.hub else "processed"


def _measure(services: Services, job: tables.JobRow) -> int:
    """The size of a job's result file. It is recorded: a job that has succeeded gets no more points."""
    if job.result_bytes is None:
        job.result_bytes = len(_curve(services, job))
        with services.database.transaction() as session:
            job_records.record_result_size(session, job.id, job.result_bytes)
    return job.result_bytes


def measure_results(services: Services, *, limit: int) -> None:
    """Measure result files that nobody has asked for yet, so that a list of them need not."""
    with services.database.snapshot() as session:
        unmeasured = job_records.find_unmeasured(session, limit=limit)
    for job_id in unmeasured:
        size_bytes = len(loss_curve.to_csv(read_curve(services.database, job_id)).encode())
        with services.database.transaction() as session:
            job_records.record_result_size(session, job_id, size_bytes)


def _curve(services: Services, job: tables.JobRow) -> bytes:
    return loss_curve.to_csv(read_curve(services.database, job.id)).encode()


def _chunks(stream: BinaryIO) -> Iterator[bytes]:
    with stream:
        while chunk := stream.read(_CHUNK_BYTES):
            yield chunk
