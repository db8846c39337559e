"""Datasets as rows of the database and files of the artifact store: add, find, list, delete, open.

Fetches of Hub datasets are in app/core/datasets/fetches.py.
"""

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import delete as sql_delete, or_, select
from sqlalchemy.orm import Session

from app.core.datasets.inspection import Inspection, OnProblem, refuse_fields, refuse_problems
from app.core.datasets.inspector import inspect
from app.core.datasets.limits import Limits
from app.core.datasets.rows import Row, read_rows_after
from app.core.datasets.unused_fields import OnUnused, UnusedField
from app.core.errors.datasets import DatasetInUse, DatasetNotFound, DatasetNotReady
from app.core.specs.states import ENDED, UNFINISHED, DatasetState
from app.core.storage import tables
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.ids import new_id
from app.core.storage.paging import newest_first


def store_upload(
    store: ArtifactStore,
    upload: Path,
    *,
    name: str,
    limits: Limits,
    column_map: Mapping[str, str] | None = None,
    on_problem: OnProblem = OnProblem.REFUSE,
    on_unused: OnUnused = OnUnused.REFUSE,
) -> tables.DatasetRow:
    """Inspect an upload and put its rows into the store. Returns its table row, for the caller to add.

    The rows are written to the upload's folder until they are complete. Raises DatasetInvalid.
    """
    with tempfile.TemporaryDirectory(dir=upload.parent, prefix="rows-") as folder:
        rows = Path(folder) / "rows.jsonl"
        found = inspect(upload, rows, limits=limits, column_map=column_map)
        refuse_problems(found, on_problem)
        refuse_fields(found, on_unused)
        return store_rows(store, rows, name=name, found=found)


def store_rows(store: ArtifactStore, rows: Path, *, name: str, found: Inspection) -> tables.DatasetRow:
    """Put rows in their stored form into the store. Returns the table row, for the caller to add."""
    dataset_id = new_id("ds")
    artifact = f"{folder_of(dataset_id)}/rows.jsonl"
    store.put_file(artifact, rows)
    row = tables.DatasetRow(id=dataset_id, name=name, state=DatasetState.READY, created_at=datetime.now(UTC))
    describe(row, found, artifact=artifact)
    return row


def describe(row: tables.DatasetRow, found: Inspection, *, artifact: str) -> None:
    """Set the columns of a dataset's row: what the inspection found, and the key of the stored rows."""
    assert found.format is not None
    row.format = found.format
    row.rows = found.rows
    row.columns = found.columns
    row.problems = [{"line": problem.line, "message": problem.message} for problem in found.problems]
    row.problem_count = found.problem_count
    row.unused_fields = [one.as_record() for one in found.unused_fields]
    row.upload = asdict(found.upload)
    row.size_bytes = found.size_bytes
    row.sha256 = found.sha256
    row.artifact = artifact


def get(session: Session, dataset_id: str, *, param: str = "dataset") -> tables.DatasetRow:
    """Returns a dataset by its id, which the field `param` named. Raises DatasetNotFound."""
    dataset = session.get(tables.DatasetRow, dataset_id)
    if dataset is None:
        raise DatasetNotFound(
            f"There is no dataset {dataset_id!r}.", param=param, hint=_hint(session, dataset_id)
        )
    return dataset


def _hint(session: Session, dataset_id: str) -> str:
    """What to do about an id that no dataset has; it may be the name of one."""
    table = tables.DatasetRow
    named = session.scalar(
        select(table.id).where(table.name == dataset_id).order_by(table.created_at.desc()).limit(1)
    )
    if named is not None:
        return f"Datasets are named by their ids: the newest one called {dataset_id!r} is {named}."
    return "GET /datasets lists them; POST /datasets adds one."


def get_arrived(session: Session, dataset_id: str, *, param: str = "dataset") -> tables.DatasetRow:
    """Returns a dataset that is ready or failed. Raises DatasetNotFound; during a fetch, DatasetNotReady."""
    dataset = get(session, dataset_id, param=param)
    if dataset.state == DatasetState.FETCHING:
        raise DatasetNotReady(
            f"Dataset {dataset_id} is still being fetched from the Hub.",
            param=param,
            hint=f"GET /datasets/{dataset_id} shows when its state is `ready`.",
        )
    return dataset


def get_ready(session: Session, dataset_id: str, *, param: str = "dataset") -> tables.DatasetRow:
    """Returns a dataset in the state `ready`. Raises DatasetNotFound and DatasetNotReady."""
    dataset = get_arrived(session, dataset_id, param=param)
    if dataset.state == DatasetState.FAILED:
        reason = (dataset.error or {}).get("message", "")
        if dataset.hub is None:
            raise DatasetNotReady(
                f"Dataset {dataset_id} can't be trained on: {reason}",
                param=param,
                hint="Mend the file and upload it again.",
            )
        raise DatasetNotReady(
            f"Dataset {dataset_id} could not be fetched: {reason}",
            param=param,
            hint="POST /datasets fetches it again under a new id.",
        )
    return dataset


def hold(session: Session, dataset_id: str, *, param: str = "dataset") -> None:
    """Keep a dataset from being deleted until the transaction ends. Raises as `get_ready` does."""
    held: set[str] = session.info.setdefault("held_datasets", set())
    if dataset_id in held:
        return
    get_ready(session, dataset_id, param=param)
    # PostgreSQL needs the row's lock for it; on SQLite a write transaction is alone anyway.
    session.execute(
        select(tables.DatasetRow.id).where(tables.DatasetRow.id == dataset_id).with_for_update(read=True)
    )
    held.add(dataset_id)


def find_page(
    session: Session, *, after: str | None, limit: int
) -> tuple[list[tables.DatasetRow], str | None]:
    """Returns a page of datasets, newest first, and the cursor of the next page."""
    return newest_first(session, select(tables.DatasetRow), tables.DatasetRow, after=after, limit=limit)


def delete(session: Session, dataset_id: str) -> str:
    """Remove the row. Returns the key of its files, to be deleted once the transaction is committed.

    A fetch that is under way ends: its worker finds its lease gone. Raises DatasetNotFound, and DatasetInUse
    while a job or an evaluation that has not ended needs it.
    """
    dataset = get(session, dataset_id)
    waiting = select(tables.JobRow.id).where(
        or_(
            tables.JobRow.dataset_id == dataset_id,
            tables.JobRow.spec["validation_dataset"].as_string() == dataset_id,
        ),
        tables.JobRow.state.not_in(ENDED),
    )
    job_id = session.scalar(waiting.limit(1))
    if job_id:
        raise DatasetInUse(
            f"Job {job_id} needs dataset {dataset_id}.", hint=f"Cancel it first: POST /jobs/{job_id}/cancel."
        )
    _refuse_for_evaluation(session, dataset_id)
    session.execute(sql_delete(tables.DatasetFetchRow).where(tables.DatasetFetchRow.dataset_id == dataset_id))
    session.delete(dataset)
    return folder_of(dataset_id)


def _refuse_for_evaluation(session: Session, dataset_id: str) -> None:
    """Raise DatasetInUse where an evaluation has yet to choose its rows from the dataset."""
    row = tables.EvaluationRow
    waiting = select(row.id).where(
        row.dataset_id == dataset_id,
        row.rows.is_(None),
        row.state.in_(UNFINISHED),
    )
    evaluation_id = session.scalar(waiting.limit(1))
    if evaluation_id:
        raise DatasetInUse(
            f"Evaluation {evaluation_id} needs dataset {dataset_id}.",
            hint=f"Cancel it first: POST /evaluations/{evaluation_id}/cancel.",
        )


def find_unused(dataset: tables.DatasetRow) -> list[UnusedField]:
    """Returns the fields of a dataset from which nothing is learned."""
    return [UnusedField(**record) for record in dataset.unused_fields]


def open_rows(
    store: ArtifactStore, dataset: tables.DatasetRow, *, after: int = 0
) -> Iterator[tuple[int, Row]]:
    """Yield the dataset's rows that begin after a line, with their line numbers, read as a stream."""
    with store.open(dataset.artifact) as lines:
        yield from read_rows_after(lines, after)


def folder_of(dataset_id: str) -> str:
    """Returns the key of a dataset's files in the artifact store."""
    return f"datasets/{dataset_id}"
