"""Datasets: upload, list, show, delete."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from shutil import copyfileobj
from typing import Annotated, BinaryIO

from fastapi import APIRouter, File, Form, UploadFile

from app.api.deps import After, DatasetId, Limit, ServicesDep
from app.api.errors import documented
from app.api.schemas import Dataset, Page
from app.core import dataset_records, datasets
from app.core.settings import Settings

router = APIRouter(prefix="/datasets", tags=["Datasets"])

_COPY_BYTES = 1 << 20


@router.post("", status_code=201, summary="Upload a dataset", responses=documented(413))
def upload_dataset(
    file: Annotated[UploadFile, File(description="JSON lines: one object a line, in UTF-8.")],
    services: ServicesDep,
    name: Annotated[
        str | None, Form(min_length=1, max_length=255, description="Default: the file's own name.")
    ] = None,
) -> Dataset:
    """Store a file of training rows.

    Its columns say its format: `messages`; or `prompt` and `completion`; or `text`; or `instruction` and
    `output`; or `conversations`. A file with a bad line is refused, with every bad line and what is wrong.

    `curl -F file=@rows.jsonl localhost:8000/datasets`
    """
    with _as_file(services.settings, file.file) as path:
        with path.open("rb") as lines:
            found = datasets.inspect(lines, max_rows=services.settings.max_dataset_rows)
        datasets.refuse_problems(found)
        own_name = PurePath(file.filename or "").name[:255] or "dataset"
        row = dataset_records.store_file(services.store, path, name=name or own_name, found=found)
    with services.database.transaction() as session:
        session.add(row)
    return Dataset.from_row(row)


@router.get("", summary="List datasets")
def list_datasets(services: ServicesDep, after: After = None, limit: Limit = 50) -> Page[Dataset]:
    """Datasets, the newest first."""
    with services.database.snapshot() as session:
        rows, cursor = dataset_records.find_page(session, after=after, limit=limit)
    return Page(data=[Dataset.from_row(row) for row in rows], next=cursor)


@router.get("/{dataset_id}", summary="Show a dataset", responses=documented(404))
def show_dataset(dataset_id: DatasetId, services: ServicesDep) -> Dataset:
    """Format, rows and columns of a dataset."""
    with services.database.snapshot() as session:
        return Dataset.from_row(dataset_records.get(session, dataset_id))


@router.delete("/{dataset_id}", status_code=204, summary="Delete a dataset", responses=documented(404, 409))
def delete_dataset(dataset_id: DatasetId, services: ServicesDep) -> None:
    """Delete a dataset that no waiting or running job needs."""
    with services.database.transaction() as session:
        artifact = dataset_records.delete(session, dataset_id)
    services.store.delete(artifact)


@contextmanager
def _as_file(settings: Settings, upload: BinaryIO) -> Iterator[Path]:
    """The upload as a file with a path, for as long as it is needed."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=settings.data_dir, prefix="upload-", suffix=".jsonl") as copy:
        copyfileobj(upload, copy, _COPY_BYTES)
        copy.flush()
        yield Path(copy.name)
