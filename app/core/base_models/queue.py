"""The durable queue of downloads of base models, as a worker uses it. Nothing here commits."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import ColumnElement, and_, or_
from sqlalchemy.orm import Session

from app.core.specs.states import DownloadState
from app.core.storage import clock, tables
from app.core.work.failures import WorkFailure
from app.core.work.leases import RELEASED, Leases, WorkLease
from app.core.work.queue import WorkQueue


@dataclass(frozen=True)
class DownloadLease(WorkLease):
    """A worker's right to download one base model."""

    base_model: str


class DownloadQueue(WorkQueue[tables.ModelDownloadRow, DownloadLease]):
    """The queue of downloads. One that was cancelled has no lease."""

    leases = Leases(tables.ModelDownloadRow, tables.ModelDownloadRow.id, "download")
    released_columns: ClassVar[dict[str, Any]] = {"state": DownloadState.QUEUED}

    def is_free(self, session: Session, now: datetime) -> ColumnElement[bool]:
        """A condition: the download waits, or its worker was lost."""
        row = tables.ModelDownloadRow
        is_lost = and_(row.state == DownloadState.RUNNING, row.lease_expires_at < now)
        return or_(row.state == DownloadState.QUEUED, is_lost)

    def claimed_columns(self, now: datetime) -> dict[str, Any]:
        """Columns that a claim sets, besides those of the lease."""
        return {"state": DownloadState.RUNNING, "started_at": now}

    def make_lease(self, session: Session, row: tables.ModelDownloadRow, token: str) -> DownloadLease:
        """The lease on a download that was just claimed."""
        return DownloadLease(row.id, token, row.base_model)

    def record(self, session: Session, lease: DownloadLease, *, done_bytes: int, total_bytes: int) -> None:
        """Record the progress of the download. Raises LeaseLost."""
        self.leases.update(session, lease, done_bytes=done_bytes, total_bytes=total_bytes)

    def finish(self, session: Session, lease: DownloadLease, *, total_bytes: int) -> None:
        """End the download as succeeded: the model is in the cache. Raises LeaseLost."""
        self._end(
            session,
            lease,
            DownloadState.SUCCEEDED,
            done_bytes=total_bytes,
            total_bytes=total_bytes,
            error=None,
        )

    def fail(self, session: Session, lease: DownloadLease, failure: WorkFailure) -> None:
        """End the download as failed, with the reason. Raises LeaseLost."""
        error = {"code": failure.code, "message": failure.message, "hint": failure.hint}
        self._end(session, lease, DownloadState.FAILED, error=error)

    def explain_loss(self, attempts: int) -> WorkFailure:
        """The failure of a download whose workers were lost so many times."""
        return WorkFailure(
            "worker_lost",
            f"The worker stopped answering during this download, {attempts} times.",
            "Look at the worker's own log; POST /models/downloads goes on with what has arrived.",
        )

    def _end(self, session: Session, lease: DownloadLease, state: DownloadState, **columns: object) -> None:
        self.leases.update(session, lease, **RELEASED, state=state, finished_at=clock.now(session), **columns)


download_queue = DownloadQueue()
