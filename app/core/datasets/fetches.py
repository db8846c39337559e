"""The durable queue of Hub datasets to fetch: submit, claim, heartbeat, record, finish, fail, hand back.

Whose a fetch is, is a lease (leases.py). A fetch whose lease has expired is simply claimed again; one whose
dataset was deleted is gone, which its worker learns as LeaseLost. Nothing here commits or knows the Hub.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from app.core.datasets import records as dataset_records
from app.core.datasets.inspection import Inspection, OnProblem
from app.core.errors import QueueFull
from app.core.specs.states import DatasetState
from app.core.storage import tables
from app.core.storage.ids import new_id
from app.core.work.leases import Leases

_LEASES = Leases(tables.DatasetFetchRow, tables.DatasetFetchRow.dataset_id, "fetch of dataset")
HUB_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$"


class HubSource(BaseModel):
    """Which rows of which dataset of the Hub."""

    model_config = ConfigDict(extra="forbid")

    hub_dataset: Annotated[str, Field(pattern=HUB_NAME, max_length=200)] = Field(
        description="A dataset of the Hub, with its owner.", examples=["HuggingFaceH4/no_robots"]
    )
    config: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        None, description="Its configuration (subset); needed where it has several."
    )
    split: str = Field(
        "train", pattern=r"^\w+(\.\w+)*$", max_length=100, description="Its split.", examples=["train"]
    )
    revision: Annotated[str, Field(pattern=r"^[\w.][\w./-]*$", max_length=200)] | None = Field(
        None, description="Branch, tag or commit; default: the newest commit."
    )


@dataclass(frozen=True)
class FetchLease:
    """A worker's right to fetch one dataset."""

    dataset_id: str
    token: str
    source: HubSource
    column_map: dict[str, str]
    on_problem: OnProblem


@dataclass(frozen=True)
class FetchError:
    """Why a fetch failed, in words for a person."""

    code: str
    message: str
    hint: str | None = None
    problems: tuple[dict[str, object], ...] = ()
    problem_count: int = 0


def submit(
    session: Session,
    source: HubSource,
    *,
    name: str,
    column_map: Mapping[str, str],
    on_problem: OnProblem,
    max_waiting: int,
    now: datetime | None = None,
) -> tables.DatasetRow:
    """Add a dataset whose rows are to be fetched. Raises QueueFull."""
    waiting = session.scalar(select(func.count()).select_from(tables.DatasetFetchRow)) or 0
    if waiting >= max_waiting:
        raise QueueFull(f"{waiting} datasets are waiting to be fetched already.", hint="Try again later.")
    now = now or datetime.now(UTC)
    dataset = tables.DatasetRow(
        id=new_id("ds"),
        name=name,
        state=DatasetState.FETCHING,
        hub={**source.model_dump(), "commit": None},
        rows=0,
        columns=[],
        problems=[],
        problem_count=0,
        upload={},
        size_bytes=0,
        sha256="",
        artifact="",
        created_at=now,
    )
    session.add(dataset)
    session.flush()
    fetch = tables.DatasetFetchRow(
        dataset_id=dataset.id, column_map=dict(column_map), on_problem=on_problem, created_at=now
    )
    session.add(fetch)
    session.flush()
    return dataset


def claim(
    session: Session, *, lease_seconds: float, max_attempts: int, now: datetime | None = None
) -> FetchLease | None:
    """Take the oldest fetch that nobody is at, or None; one that was lost too often fails instead."""
    claimed = _LEASES.claim(
        session,
        is_free=_LEASES.is_free(now),
        lease_seconds=lease_seconds,
        now=now,
        attempts=tables.DatasetFetchRow.attempts + 1,
    )
    if claimed is None:
        return None
    fetch, token = claimed
    hub = dataset_records.get(session, fetch.dataset_id).hub or {}
    source = HubSource.model_validate({key: value for key, value in hub.items() if key != "commit"})
    lease = FetchLease(fetch.dataset_id, token, source, dict(fetch.column_map), OnProblem(fetch.on_problem))
    if fetch.attempts > max_attempts:
        fail(session, lease, _lost(max_attempts))
        return None
    return lease


def find_tokens(session: Session) -> set[str]:
    """The tokens of all fetches under way."""
    return _LEASES.find_tokens(session)


def heartbeat(
    session: Session, lease: FetchLease, *, lease_seconds: float, now: datetime | None = None
) -> None:
    """Extend the lease. Raises LeaseLost."""
    _LEASES.extend(session, lease.dataset_id, lease.token, lease_seconds=lease_seconds, now=now)


def check(session: Session, lease: FetchLease) -> None:
    """Raise LeaseLost where another worker has the fetch, or the dataset was deleted."""
    _LEASES.check(session, lease.dataset_id, lease.token)


def record(session: Session, lease: FetchLease, *, commit: str | None, rows: int) -> None:
    """Write down how far the fetch is. Raises LeaseLost."""
    dataset = _locked(session, lease)
    dataset.rows = rows
    if commit:
        dataset.hub = {**(dataset.hub or {}), "commit": commit}


def finish(session: Session, lease: FetchLease, found: Inspection, *, artifact: str) -> None:
    """The rows are in the store: the dataset is ready. Raises LeaseLost."""
    dataset = _locked(session, lease)
    dataset_records.describe(dataset, found, artifact=artifact)
    _end(session, dataset, DatasetState.READY)


def fail(session: Session, lease: FetchLease, error: FetchError) -> None:
    """The dataset failed, with the reason. Raises LeaseLost."""
    dataset = _locked(session, lease)
    dataset.error = {"code": error.code, "message": error.message, "hint": error.hint}
    dataset.rows = 0
    dataset.problems = list(error.problems)
    dataset.problem_count = error.problem_count
    _end(session, dataset, DatasetState.FAILED)


def hand_back(session: Session, lease: FetchLease) -> None:
    """Let go of a fetch because this worker stops; it does not count as an attempt. Raises LeaseLost."""
    _LEASES.hand_back(session, lease.dataset_id, lease.token)


def give_up_attempt(session: Session, lease: FetchLease, error: FetchError, *, max_attempts: int) -> None:
    """The fetching process died: let the fetch be claimed again, or fail it. Raises LeaseLost."""
    key, token = lease.dataset_id, lease.token
    if not _LEASES.may_try_again(session, key, token, max_attempts=max_attempts):
        fail(session, lease, error)


def _locked(session: Session, lease: FetchLease) -> tables.DatasetRow:
    """The dataset, for a worker that still has its lease; on PostgreSQL, the fetch's row is locked."""
    _LEASES.hold(session, lease.dataset_id, lease.token)
    return dataset_records.get(session, lease.dataset_id)


def _end(session: Session, dataset: tables.DatasetRow, state: DatasetState) -> None:
    dataset.state = state
    session.flush()
    session.execute(delete(tables.DatasetFetchRow).where(tables.DatasetFetchRow.dataset_id == dataset.id))


def _lost(attempts: int) -> FetchError:
    return FetchError(
        "worker_lost",
        f"The worker stopped answering while it fetched this dataset, {attempts} times.",
        "Look at the worker's own log; POST /datasets tries again.",
    )
