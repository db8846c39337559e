"""The durable queue of Hub datasets to fetch: submit, and what it adds to `WorkQueue` for a worker.

Nothing here commits or knows the Hub.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from app.core.datasets import records as dataset_records
from app.core.datasets.inspection import Inspection, OnProblem
from app.core.datasets.unused_fields import OnUnused
from app.core.errors import QueueFull
from app.core.specs.patterns import HUB_NAME, HUB_REVISION, HUB_SPLIT
from app.core.specs.states import DatasetState
from app.core.storage import clock, tables
from app.core.storage.ids import new_id
from app.core.work.failures import WorkFailure
from app.core.work.leases import Leases, WorkLease
from app.core.work.queue import WorkQueue


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
        "train", pattern=HUB_SPLIT, max_length=100, description="Its split.", examples=["train"]
    )
    revision: Annotated[str, Field(pattern=HUB_REVISION, max_length=200)] | None = Field(
        None, description="Branch, tag or commit; default: the newest commit."
    )


@dataclass(frozen=True)
class FetchLease(WorkLease):
    """A worker's right to fetch one dataset."""

    source: HubSource
    column_map: dict[str, str]
    on_problem: OnProblem
    on_unused: OnUnused

    @property
    def dataset_id(self) -> str:
        """The dataset's id."""
        return self.key

    @property
    def folder(self) -> str:
        """The key of this attempt's folder in the store: another worker may be fetching the same dataset."""
        return f"datasets/{self.dataset_id}/{self.token}"


@dataclass(frozen=True)
class DatasetFailure(WorkFailure):
    """Why a fetch failed, with the rows that can't be used and the unused fields where there are any."""

    problems: tuple[dict[str, object], ...] = ()
    problem_count: int = 0
    unused_fields: tuple[dict[str, object], ...] = ()


def submit(
    session: Session,
    source: HubSource,
    *,
    name: str,
    column_map: Mapping[str, str],
    on_problem: OnProblem,
    on_unused: OnUnused = OnUnused.REFUSE,
    max_waiting: int,
    now: datetime | None = None,
) -> tables.DatasetRow:
    """Add a dataset whose rows are to be fetched. Raises QueueFull."""
    waiting = session.scalar(select(func.count()).select_from(tables.DatasetFetchRow)) or 0
    if waiting >= max_waiting:
        raise QueueFull(f"{waiting} datasets are waiting to be fetched already.", hint="Try again later.")
    now = now or clock.now(session)
    dataset = tables.DatasetRow(
        id=new_id("ds"),
        name=name,
        state=DatasetState.FETCHING,
        hub={**source.model_dump(), "commit": None},
        rows=0,
        columns=[],
        problems=[],
        problem_count=0,
        unused_fields=[],
        upload={},
        size_bytes=0,
        sha256="",
        artifact="",
        created_at=now,
    )
    session.add(dataset)
    session.flush()
    fetch = tables.DatasetFetchRow(
        dataset_id=dataset.id,
        column_map=dict(column_map),
        on_problem=on_problem,
        on_unused=on_unused,
        created_at=now,
    )
    session.add(fetch)
    session.flush()
    return dataset


class FetchQueue(WorkQueue[tables.DatasetFetchRow, FetchLease]):
    """The queue of fetches. One whose dataset was deleted is gone."""

    leases = Leases(tables.DatasetFetchRow, tables.DatasetFetchRow.dataset_id, "fetch of dataset")

    def make_lease(self, session: Session, row: tables.DatasetFetchRow, token: str) -> FetchLease:
        """The lease on a fetch that was just claimed."""
        hub = dataset_records.get(session, row.dataset_id).hub or {}
        source = HubSource.model_validate({key: value for key, value in hub.items() if key != "commit"})
        return FetchLease(
            row.dataset_id,
            token,
            source,
            dict(row.column_map),
            OnProblem(row.on_problem),
            OnUnused(row.on_unused),
        )

    def record(self, session: Session, lease: FetchLease, *, commit: str | None, rows: int) -> None:
        """Record the progress of the fetch. Raises LeaseLost."""
        dataset = self._hold_dataset(session, lease)
        dataset.rows = rows
        if commit:
            dataset.hub = {**(dataset.hub or {}), "commit": commit}

    def finish(self, session: Session, lease: FetchLease, found: Inspection, *, artifact: str) -> None:
        """The rows are in the store: the dataset is ready. Raises LeaseLost."""
        dataset = self._hold_dataset(session, lease)
        dataset_records.describe(dataset, found, artifact=artifact)
        _end(session, dataset, DatasetState.READY)

    def fail(self, session: Session, lease: FetchLease, failure: WorkFailure) -> None:
        """The dataset failed, with the reason. Raises LeaseLost."""
        dataset = self._hold_dataset(session, lease)
        dataset.error = {"code": failure.code, "message": failure.message, "hint": failure.hint}
        dataset.rows = 0
        rows = failure if isinstance(failure, DatasetFailure) else None
        dataset.problems = list(rows.problems) if rows else []
        dataset.problem_count = rows.problem_count if rows else 0
        dataset.unused_fields = list(rows.unused_fields) if rows else []
        _end(session, dataset, DatasetState.FAILED)

    def explain_loss(self, attempts: int) -> WorkFailure:
        """The failure of a fetch whose workers were lost so many times."""
        return WorkFailure(
            "worker_lost",
            f"The worker stopped answering while it fetched this dataset, {attempts} times.",
            "Look at the worker's own log; POST /datasets tries again.",
        )

    def _hold_dataset(self, session: Session, lease: FetchLease) -> tables.DatasetRow:
        """Returns the dataset; locks the fetch's row on PostgreSQL. Raises LeaseLost."""
        self.leases.hold(session, lease)
        return dataset_records.get(session, lease.dataset_id)


fetch_queue = FetchQueue()


def _end(session: Session, dataset: tables.DatasetRow, state: DatasetState) -> None:
    dataset.state = state
    session.flush()
    session.execute(delete(tables.DatasetFetchRow).where(tables.DatasetFetchRow.dataset_id == dataset.id))
