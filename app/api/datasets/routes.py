"""Datasets: upload, list, show, download, delete. Datasets of the Hub are in `hub.py`."""

from itertools import islice
from pathlib import PurePath
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Query, UploadFile
from sqlalchemy.orm import Session
from starlette.responses import StreamingResponse

from app.api.datasets import hub
from app.api.datasets.hub import find_dataset
from app.api.datasets.samples import parse_column_map, samples_in_errors
from app.api.datasets.schemas import DatasetRead, DatasetRows
from app.api.deps import After, DatasetId, Limit, ServicesDep
from app.api.http.bodies.uploads import spooled
from app.api.http.errors import documented
from app.api.http.idempotency import IdempotentRequest, IdempotentRequestDep
from app.api.http.store_threads import in_store_threads, read_in_store_threads
from app.api.schemas import DatasetRowRead, Page
from app.core.datasets import records as dataset_records
from app.core.datasets.inspection import OnProblem
from app.core.datasets.limits import Limits
from app.core.datasets.rows import as_plain, write_plain
from app.core.datasets.unused_fields import OnUnused
from app.core.storage import tables
from app.core.storage.artifacts import ArtifactStore

router = APIRouter(prefix="/datasets", tags=["Datasets"])

_MAX_ROWS = 100
_FETCHING: dict[int | str, dict[str, Any]] = {
    202: {"model": DatasetRead, "description": "A Hub dataset was named: a worker fetches it."}
}


@router.post(
    "",
    status_code=201,
    summary="Upload a dataset, or name one of the Hub",
    responses=documented(413, 429) | _FETCHING,
    openapi_extra=hub.json_body(),
)
@in_store_threads
def upload_dataset(
    file: Annotated[
        UploadFile,
        File(
            description="The rows, `curl -F file=@rows.jsonl`; their kind of file is recognised. A JSON body "
            "that names a Hub dataset needs `Content-Type: application/json`."
        ),
    ],
    idempotent: IdempotentRequestDep,
    services: ServicesDep,
    name: Annotated[
        str | None, Form(min_length=1, max_length=255, description="Default: the file's own name.")
    ] = None,
    column_map: Annotated[
        str | None, Form(description='Your columns for those of a format: `{"prompt": "question"}`.')
    ] = None,
    on_problem: Annotated[
        OnProblem, Form(description="What to do where some rows can't be used.")
    ] = OnProblem.REFUSE,
    on_unused: Annotated[
        OnUnused,
        Form(description="What to do where fields that change what is learned are not used: tools, images."),
    ] = OnUnused.REFUSE,
) -> DatasetRead:
    """Store a file of rows: JSON lines, a JSON array, CSV, TSV or Parquet, plain or packed with gzip.

    Its columns say its format: `messages`; or `prompt` and `completion`; or `text`; or `instruction` and
    `output`; or `conversations`; of preferences `prompt`, `chosen` and `rejected`, or one of these with a
    `label`; `column_map` says what others mean. A file with a bad row is refused, with
    every bad row and what is wrong, unless `on_problem` is `skip`. Fields from which nothing is learned are
    listed in `unused_fields`; a file where such a field changes what is learned (tools, images, reasoning,
    loss masks) is refused with the error `fields_unused`, unless `on_unused` is `ignore`. Where
    columns are unknown or fields unused, the error's `sample` has the first records and likely column maps.

    `curl -F file=@rows.csv -F 'column_map={"prompt": "question"}' localhost:8000/datasets`

    With a JSON body, a dataset of the Hub is named instead: `hub_dataset`, and perhaps `config`, `split` and
    `revision`. The answer is 202 at once; a worker fetches the rows, and `GET /datasets/{id}` shows when its
    `state` is `ready`, or `failed` with the `error`.

    `curl localhost:8000/datasets -H 'Content-Type: application/json' -d '{"hub_dataset": "owner/name"}'`
    """
    if earlier := idempotent.find_earlier(find_dataset):
        return earlier
    own_name = PurePath(file.filename or "").name[:255] or "dataset"
    mapped = parse_column_map(column_map)
    limits = Limits.from_settings(services.settings)
    with spooled(services.scratch, file.file) as path, samples_in_errors(path, limits, mapped):
        row = dataset_records.store_upload(
            services.store,
            path,
            name=name or own_name,
            limits=limits,
            column_map=mapped,
            on_problem=on_problem,
            on_unused=on_unused,
        )
    return _add(idempotent, services.store, row)


@router.get("", summary="List datasets")
def list_datasets(services: ServicesDep, after: After = None, limit: Limit = 50) -> Page[DatasetRead]:
    """Datasets, the newest first."""
    with services.database.snapshot() as session:
        rows, cursor = dataset_records.find_page(session, after=after, limit=limit)
    return Page(data=[DatasetRead.from_row(row) for row in rows], next=cursor)


@router.get("/{dataset_id}", summary="Show a dataset", responses=documented(404))
def show_dataset(dataset_id: DatasetId, services: ServicesDep) -> DatasetRead:
    """Format, rows and columns of a dataset."""
    with services.database.snapshot() as session:
        return find_dataset(session, dataset_id)


@router.get(
    "/{dataset_id}/download",
    response_class=StreamingResponse,
    summary="Download a dataset",
    responses=documented(404, 409)
    | {200: {"description": "JSON lines.", "content": {"application/jsonl": {"schema": {"type": "string"}}}}},
)
@in_store_threads
def download_dataset(dataset_id: DatasetId, services: ServicesDep) -> StreamingResponse:
    """The rows that can be used, as JSON lines that may be uploaded again.

    Whatever the file was, each has `messages`, or `prompt` and `completion`, or `text`; of preferences
    `prompt`, `chosen` and `rejected`, or `prompt`, `completion` and `label`.
    """
    with services.database.snapshot() as session:
        dataset = dataset_records.get_ready(session, dataset_id)
    lines = (write_plain(row) for _, row in dataset_records.open_rows(services.store, dataset))
    headers = {"content-disposition": f'attachment; filename="{dataset_id}.jsonl"'}
    return StreamingResponse(
        read_in_store_threads(services.store_threads, lines), media_type="application/jsonl", headers=headers
    )


@router.get("/{dataset_id}/rows", summary="Show rows of a dataset", responses=documented(404, 409))
@in_store_threads
def show_rows(
    dataset_id: DatasetId,
    services: ServicesDep,
    limit: Annotated[int, Query(ge=1, le=_MAX_ROWS, description="Most rows in the answer.")] = 10,
    after: Annotated[
        int, Query(ge=0, le=2**31 - 1, description="`next` of the page before: a line of the file.")
    ] = 0,
) -> DatasetRows:
    """Rows as they were read: messages with functions, calls and thoughts, or texts. No model is needed."""
    with services.database.snapshot() as session:
        dataset = dataset_records.get_ready(session, dataset_id)
    rows = dataset_records.open_rows(services.store, dataset, after=after)
    found = [DatasetRowRead(line=line, row=as_plain(row)) for line, row in islice(rows, limit + 1)]
    return DatasetRows(data=found[:limit], next=found[limit - 1].line if len(found) > limit else None)


@router.delete("/{dataset_id}", status_code=204, summary="Delete a dataset", responses=documented(404, 409))
@in_store_threads
def delete_dataset(dataset_id: DatasetId, services: ServicesDep) -> None:
    """Delete a dataset that no waiting or running job needs. One that is being fetched is fetched no more."""
    with services.database.transaction() as session:
        artifact = dataset_records.delete(session, dataset_id)
    services.store.discard(artifact)


def _add(idempotent: IdempotentRequest, store: ArtifactStore, row: tables.DatasetRow) -> DatasetRead:
    """Add the row of an upload. Its files are deleted where that fails or an equal request came first."""

    def create(session: Session) -> DatasetRead:
        session.add(row)
        session.flush()
        return DatasetRead.from_row(row)

    dataset: DatasetRead | None = None
    try:
        dataset = idempotent.create(create, find=find_dataset)
        return dataset
    finally:
        if dataset is None or dataset.id != row.id:
            store.discard(dataset_records.folder_of(row.id))
