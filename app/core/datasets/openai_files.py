"""Files of OpenAI's API. A file is a dataset, or the loss curve of a finished job.

The bytes of an upload are stored as well as its rows. A file that can't be trained on is a dataset in the
state `failed`: a job that names it fails with the reason. Result files are made of a job's events when they
are read; the job's row has their size.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Select, func, literal, or_, select
from sqlalchemy.orm import Session, lazyload

from app.core.datasets import records as dataset_records
from app.core.datasets.limits import Limits
from app.core.datasets.unused_fields import OnUnused
from app.core.errors import InvalidRequest
from app.core.errors.datasets import DatasetInUse, DatasetInvalid, DatasetNotFound, FieldsUnused
from app.core.specs.states import DatasetState, JobState
from app.core.storage import clock, tables
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.ids import new_id

FINE_TUNE, RESULTS, EVALS = "fine-tune", "fine-tune-results", "evals"
INVALID_FORMAT = "invalid_file_format"
# The code of a file that holds rows of an eval: it can't be trained on.
_EVALS_CODE = "evals_file"
_RESULT_PREFIX, _JOB_PREFIX = "res_", "job_"

Order = Literal["asc", "desc"]
File = tables.DatasetRow | tables.JobRow


def store(
    store: ArtifactStore,
    upload: Path,
    *,
    name: str,
    limits: Limits,
    on_unused: OnUnused = OnUnused.REFUSE,
    expires_at: datetime | None = None,
) -> tables.DatasetRow:
    """Put an upload into the store, valid or not. Returns its row, which the caller adds to the session."""
    try:
        row = dataset_records.store_upload(store, upload, name=name, limits=limits, on_unused=on_unused)
    except DatasetInvalid as error:
        row = _unusable(name, error)
    row.original = f"{dataset_records.folder_of(row.id)}/original"
    row.original_bytes = upload.stat().st_size
    row.expires_at = expires_at
    store.put_file(row.original, upload)
    return row


def store_for_evals(
    store: ArtifactStore, upload: Path, *, name: str, expires_at: datetime | None = None
) -> tables.DatasetRow:
    """Put rows of an eval into the store. Returns the row, which the caller adds to the session.

    A run that names the file reads it, and says what is wrong with it.
    """
    row = _unusable(name, DatasetInvalid("This file has rows of an eval: it can't be trained on."))
    row.error = {"code": _EVALS_CODE, "message": "This file has rows of an eval.", "hint": None}
    row.original = f"{dataset_records.folder_of(row.id)}/original"
    row.original_bytes = upload.stat().st_size
    row.expires_at = expires_at
    store.put_file(row.original, upload)
    return row


def is_for_evals(file: File) -> bool:
    """Whether the file was uploaded with the purpose `evals`."""
    return isinstance(file, tables.DatasetRow) and (file.error or {}).get("code") == _EVALS_CODE


def get(session: Session, file_id: str, *, param: str = "file_id") -> File:
    """Returns the dataset, or the job whose loss curve the file is. Raises DatasetNotFound."""
    job_id = _job_of_result(file_id)
    job = session.get(tables.JobRow, job_id) if job_id else None
    if job is not None and job.state == JobState.SUCCEEDED:
        return job
    dataset = session.get(tables.DatasetRow, file_id)
    if dataset is None:
        raise DatasetNotFound(f"There is no file {file_id!r}.", param=param, hint="GET /v1/files lists them.")
    return dataset


def result_of(job: tables.JobRow) -> str:
    """Returns the id of a job's result file."""
    return _RESULT_PREFIX + job.id.removeprefix(_JOB_PREFIX)


def find_page(
    session: Session, *, purpose: str | None, order: Order, after: str | None, limit: int
) -> tuple[Sequence[File], bool]:
    """Returns a page of files, and whether there are more. Raises InvalidRequest where `after` is no file."""
    last = None if after is None else _place_of(session, after)
    places = [
        place
        for name in (FINE_TUNE, EVALS, RESULTS)
        if purpose in (None, name)
        for place in session.execute(_places(name, last, order).limit(limit + 1))
    ]
    places.sort(key=lambda place: (place.created_at, place.id), reverse=order == "desc")
    return _read(session, [place.id for place in places[:limit]]), len(places) > limit


def delete(session: Session, file_id: str) -> str:
    """Remove the row. Returns the key of its files, to be deleted once the transaction is committed.

    Raises DatasetNotFound, DatasetInUse, and InvalidRequest for a result file.
    """
    if isinstance(get(session, file_id), tables.JobRow):
        raise InvalidRequest(f"{file_id} belongs to its job and can't be deleted.", param="file_id")
    return dataset_records.delete(session, file_id)


def delete_expired(session: Session, *, now: datetime | None = None) -> list[str]:
    """Remove expired files that no job needs. Returns the keys of their files, as `delete` does."""
    query = select(tables.DatasetRow.id).where(tables.DatasetRow.expires_at <= (now or clock.now(session)))
    deleted = []
    for dataset_id in session.scalars(query).all():
        try:
            deleted.append(dataset_records.delete(session, dataset_id))
        except DatasetInUse:
            continue  # until its job has ended
    return deleted


def created_at(file: File) -> datetime:
    """Returns when an upload was made, or when the job of a result file ended."""
    return file.created_at if isinstance(file, tables.DatasetRow) else file.finished_at or file.created_at


def _job_of_result(file_id: str) -> str | None:
    is_result = file_id.startswith(_RESULT_PREFIX)
    return _JOB_PREFIX + file_id.removeprefix(_RESULT_PREFIX) if is_result else None


def _place_of(session: Session, file_id: str) -> tuple[datetime, str]:
    try:
        return created_at(get(session, file_id)), file_id
    except DatasetNotFound:
        raise InvalidRequest(
            f"The cursor {file_id!r} names nothing that exists.",
            param="after",
            hint="Start again without `after`.",
        ) from None


def _unusable(name: str, error: DatasetInvalid) -> tables.DatasetRow:
    return tables.DatasetRow(
        id=new_id("ds"),
        name=name,
        state=DatasetState.FAILED,
        error={"code": INVALID_FORMAT, **_reason(error)},
        rows=0,
        columns=[],
        problems=error.problems,
        problem_count=len(error.problems),
        unused_fields=error.unused_fields if isinstance(error, FieldsUnused) else [],
        upload={},
        size_bytes=0,
        sha256="",
        artifact="",
        created_at=datetime.now(UTC),
    )


def _reason(error: DatasetInvalid) -> dict[str, str | None]:
    if isinstance(error, FieldsUnused):
        # `status_details` shows no hint, and this one says how the same file is taken.
        return {"message": f"{error.message} {error.hint}", "hint": None}
    return {"message": error.message, "hint": error.hint}


def _places(purpose: str, last: tuple[datetime, str] | None, order: Order) -> Select[Any]:
    """The times and ids of the files of one purpose, after a place in the order."""
    job, dataset = tables.JobRow, tables.DatasetRow
    created: Any
    row_id: Any
    file_id: Any
    if purpose == RESULTS:
        created, row_id = job.finished_at, job.id
        file_id = literal(_RESULT_PREFIX) + func.substr(row_id, len(_JOB_PREFIX) + 1)
    else:
        created, row_id, file_id = dataset.created_at, dataset.id, dataset.id
    query = select(created.label("created_at"), file_id.label("id"))
    is_of_eval = dataset.error["code"].as_string() == _EVALS_CODE
    conditions = {
        FINE_TUNE: is_of_eval.is_not(True),
        EVALS: is_of_eval,
        RESULTS: job.state == JobState.SUCCEEDED,
    }
    query = query.where(conditions[purpose])
    if last is not None:
        # The first condition says the same as the others with it, and can be looked up in the index.
        at, last_id = last
        if order == "desc":
            query = query.where(created <= at, or_(created < at, file_id < last_id))
        else:
            query = query.where(created >= at, or_(created > at, file_id > last_id))
    columns = (created, row_id)
    return query.order_by(*(column.desc() if order == "desc" else column for column in columns))


def _read(session: Session, file_ids: Sequence[str]) -> list[File]:
    """The files with these ids, in this order, in two queries."""
    job_ids = [job_id for file_id in file_ids if (job_id := _job_of_result(file_id))]
    # Neither attempts nor adapters are shown of a job whose curve is a file.
    jobs = select(tables.JobRow).where(tables.JobRow.id.in_(job_ids)).options(lazyload("*"))
    datasets = select(tables.DatasetRow).where(tables.DatasetRow.id.in_(file_ids))
    found: dict[str, File] = {result_of(job): job for job in session.scalars(jobs)}
    found |= {dataset.id: dataset for dataset in session.scalars(datasets)}
    return [found[file_id] for file_id in file_ids if file_id in found]
