"""Datasets as rows of the database and files of the artifact store: add, find, list, delete, open."""

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.core import tables
from app.core.artifacts import ArtifactStore
from app.core.datasets import DatasetFormat, Inspection, Row, read_rows
from app.core.errors import DatasetInUse, DatasetNotFound
from app.core.ids import new_id
from app.core.paging import newest_first
from app.core.states import JobState


def store_file(store: ArtifactStore, path: Path, *, name: str, found: Inspection) -> tables.Dataset:
    """Put an inspected file into the store; the row that names it is the caller's to add."""
    assert found.format is not None
    dataset_id = new_id("ds")
    artifact = f"datasets/{dataset_id}/rows.jsonl"
    store.put_file(artifact, path)
    return tables.Dataset(
        id=dataset_id,
        name=name,
        format=found.format,
        rows=found.rows,
        columns=found.columns,
        problems=[{"line": problem.line, "message": problem.message} for problem in found.problems],
        size_bytes=path.stat().st_size,
        sha256=_sha256(path),
        artifact=artifact,
        created_at=datetime.now(UTC),
    )


def get(session: Session, dataset_id: str) -> tables.Dataset:
    """Raises DatasetNotFound."""
    dataset = session.get(tables.Dataset, dataset_id)
    if dataset is None:
        raise DatasetNotFound(
            f"There is no dataset {dataset_id!r}.",
            param="dataset",
            hint="GET /datasets lists them; POST /datasets adds one.",
        )
    return dataset


def hold(session: Session, dataset_id: str) -> None:
    """Keep a dataset from being deleted until the transaction ends. Raises DatasetNotFound."""
    get(session, dataset_id)
    # PostgreSQL needs the row's lock for it; on SQLite a write transaction is alone anyway.
    session.execute(
        select(tables.Dataset.id).where(tables.Dataset.id == dataset_id).with_for_update(read=True)
    )


def find_page(session: Session, *, after: str | None, limit: int) -> tuple[list[tables.Dataset], str | None]:
    """A page of datasets, newest first, and the cursor of the next page."""
    return newest_first(session, select(tables.Dataset), tables.Dataset, after=after, limit=limit)


def delete(session: Session, dataset_id: str) -> str:
    """Remove the row and answer the artifact's key; the file goes once the transaction is committed.

    Raises DatasetNotFound, and DatasetInUse while a job that has not ended needs it.
    """
    dataset = get(session, dataset_id)
    waiting = select(tables.Job.id).where(
        tables.Job.dataset_id == dataset_id, tables.Job.state.in_([JobState.QUEUED, JobState.RUNNING])
    )
    job_id = session.scalar(waiting.limit(1))
    if job_id:
        raise DatasetInUse(
            f"Job {job_id} needs dataset {dataset_id}.", hint=f"Cancel it first: POST /jobs/{job_id}/cancel."
        )
    session.delete(dataset)
    return dataset.artifact.rsplit("/", 1)[0]


def open_rows(store: ArtifactStore, dataset: tables.Dataset) -> Iterator[tuple[int, Row]]:
    """The dataset's rows with their line numbers, read as a stream."""
    with store.open(dataset.artifact) as lines:
        yield from read_rows(lines, DatasetFormat(dataset.format))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
